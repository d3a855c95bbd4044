"""A model that is ready to answer: what one replica holds."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack

import numpy as np
import torch

from voxray.core.errors import ResourceError
from voxray.core.recipe import Recipe
from voxray.core.storage import sync_all
from voxray.core.volume import Grid, Volume
from voxray.inference.predictor import Prediction, Predictor, Prepared, prepare_scan
from voxray.inference.trained_model import open_model
from voxray.results.answers import write_answer
from voxray.runtimes.device import choose_device
from voxray.serving.cards import card
from voxray.serving.config import ServedModel
from voxray.serving.paths import ServicePaths
from voxray.serving.workers.answered_by import write_answered_by
from voxray.serving.workers.batching import BatchingNetwork
from voxray.serving.workers.protocol import Step
from voxray.serving.workers.study_scans import prepare_study

_TINY = 32
"""Voxels along each side of the scan that a health check answers."""
_CHECK_SHARE = 50
"""A check may cost a fiftieth of the time."""
_CHECK_EVERY_S = 30.0
_TELL_S = 0.25
"""How often it is told how far an answer is: each word passes through three processes."""
_STUCK_S = 900.0
"""A window that takes longer than this will not come."""
_PATIENCE_S = 0.1
"""How long a check waits for a thread before it takes the model to be busy."""


class AbandonedError(Exception):
    """Nobody waits for the answer any more."""


class WarmModel:
    """One model, warm, on one device; scans are answered one by one, and written while the next is answered."""

    def __init__(self, name: str, model: ServedModel, places: ServicePaths) -> None:
        if model.num_gpus == 0 and model.device == "auto" and not torch.cuda.is_available():
            torch.set_num_threads(model.threads or os.cpu_count() or 1)
        self._trained = open_model(
            model.path,
            overrides=model.overrides,
            device=str(choose_device(model.device)),
            runtime=model.runtime,
            precision=model.precision,
        )
        self._predictor = self._trained.predictor()
        self._together = share_windows(self._predictor, model.window_batch) if model.window_batch > 1 else ()
        self._places = places
        # The same threads for every answer: each holds buffers of torch's own, which a new one would take again.
        self._threads = ThreadPoolExecutor(model.at_once if self._together else 1, thread_name_prefix=name)
        self._moved = time.monotonic()
        self.info = card(name, model).model_copy(
            update={"sha256": self._trained.stamp.sha256, "engine": self._trained.stamp.engine, "ready": True}
        )
        self._last_check, self._check_s = 0.0, 0.0
        self.check()

    def answer(self, scan: Prepared | None, job: str, study: str, watch: Callable[[float], None]) -> Step:
        """Answers a scan, prepared here where it is not yet; the last step, the answer being on the disk then."""
        begin = time.monotonic()
        scan = scan or prepare_study(self._places, study, self._trained.recipe.grid)
        prepare_s = time.monotonic() - begin
        self._predictor.require_memory(scan.grid)
        prediction, seconds = self._threads.submit(self._timed, scan, watch).result()
        folder = self._places.job(job)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_answered_by(folder, self.info)
        write_answer(prediction, folder, case=study, model=self._trained)
        sync_all(folder)
        return Step("answering", 1.0, prepare_s, seconds)

    def check(self) -> None:
        """Answers a tiny scan, where the last answer is not fresh; raises where the network does not answer."""
        asked = self._threads.submit(self._checked)
        wait([asked], timeout=_PATIENCE_S)
        if not asked.cancel():
            asked.result()
            return
        still = time.monotonic() - self._moved
        if still > _STUCK_S:
            raise ResourceError(f"{self.info.name}: a window has been under way for {still:.0f} s.")

    def _checked(self) -> None:
        now = time.monotonic()
        fresh = max(_CHECK_EVERY_S, _CHECK_SHARE * self._check_s)
        if self._last_check and now - max(self._moved, self._last_check) < fresh:
            return
        self._answered(tiny_scan(self._trained.recipe), lambda _: None)
        self._last_check = time.monotonic()
        self._check_s = self._last_check - now

    def _timed(self, scan: Prepared, watch: Callable[[float], None]) -> tuple[Prediction, float]:
        watch(0.0)
        begin = time.monotonic()
        return self._answered(scan, watch), time.monotonic() - begin

    def _answered(self, scan: Prepared, watch: Callable[[float], None]) -> Prediction:
        def moved(share: float) -> None:
            self._moved = time.monotonic()
            watch(share)

        self._moved = time.monotonic()
        with ExitStack() as stack:
            for network in self._together:
                stack.enter_context(network.used())
            return self._predictor.answer(scan, watch=moved)


def share_windows(predictor: Predictor, most: int) -> tuple[BatchingNetwork, ...]:
    """Lets the predictor's networks answer windows of several scans at once; they, to be told of each scan."""
    found = tuple(BatchingNetwork(network, most) for network in predictor.members)
    predictor.members = list(found)
    return found


def tiny_scan(recipe: Recipe) -> Prepared:
    """A few voxels of air and water, for health checks and to warm up."""
    grid = Grid((_TINY,) * 3, recipe.grid.spacing_mm, (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    voxels = np.full(grid.shape, -1000, np.int16)
    voxels[8:24, 8:24, 8:24] = 0
    return prepare_scan(Volume(voxels, grid), recipe.grid)


async def answer_steps(
    answering: WarmModel, scan: Prepared | None, job: str, study: str
) -> AsyncGenerator[Step, None]:
    """An answer's steps, the last with the seconds that it took; whoever stops listening stops the work.

    The first is told at once where the scan was waited for; a small one is not interrupted for it.
    """
    steps: asyncio.Queue[Step | None] = asyncio.Queue()
    loop, left = asyncio.get_running_loop(), threading.Event()

    told = time.monotonic() if scan is None else -_TELL_S

    def watch(share: float) -> None:
        nonlocal told
        if left.is_set():
            raise AbandonedError
        now = time.monotonic()
        if now - told < _TELL_S:
            return
        told = now
        loop.call_soon_threadsafe(steps.put_nowait, Step("answering", share))

    work = asyncio.ensure_future(asyncio.to_thread(answering.answer, scan, job, study, watch))
    work.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            yield step
        yield work.result()
    finally:
        left.set()
        work.add_done_callback(lambda one: one.cancelled() or one.exception())

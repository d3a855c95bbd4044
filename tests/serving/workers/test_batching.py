"""Windows of several scans in one batch: the same answers, in fewer calls."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from support.services import in_process, small_models, small_scan, upload
from support.small_networks import small_network
from voxray.core.outputs import DetectionOutput, SegmentationOutput
from voxray.serving.workers.batching import BatchingNetwork, parts_of


class Counted:
    """A network that notes how many windows came with each call."""

    def __init__(self, kind: str) -> None:
        self.module, self.calls = small_network(kind), list[int]()
        self.precision = "fp32"

    def __call__(self, images: Tensor) -> Any:
        """The network's output."""
        self.calls.append(len(images))
        with torch.inference_mode():
            return self.module(images)


def flat(output: Any) -> list[Tensor]:
    """The output's tensors."""
    return [output] if isinstance(output, Tensor) else [one for part in output for one in flat(part)]


@pytest.mark.parametrize("kind", ["unet", "retinanet"])
def test_each_gets_what_it_would_have_got_alone(kind: str) -> None:
    network = Counted(kind)
    together = BatchingNetwork(network, 4)
    rng = torch.Generator().manual_seed(0)
    scans = [[torch.rand((1, 1, 32, 32, 16), generator=rng) for _ in range(6)] for _ in range(4)]
    begin = threading.Barrier(4)

    def answer(windows: list[Tensor]) -> list[Any]:
        with together.used():
            begin.wait(10)
            return [together(window) for window in windows]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, scans))
    assert sum(network.calls) == 24
    assert max(network.calls) > 1
    assert max(network.calls) <= 4
    for windows, outputs in zip(scans, found, strict=True):
        for window, output in zip(windows, outputs, strict=True):
            for got, want in zip(flat(output), flat(network(window)), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_one_alone_does_not_wait_and_names_of_the_network_are_there() -> None:
    network = Counted("unet")
    together = BatchingNetwork(network, 8)
    with together.used():
        for _ in range(3):
            together(torch.zeros(2, 1, 16, 16, 16))
    assert network.calls == [2, 2, 2]
    assert together.precision == "fp32"
    network.head = "its own"  # type: ignore[attr-defined]
    assert together.head is None, "windows of several scans go through the whole network"


def test_an_error_reaches_all_that_asked() -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError(f"{len(images)} windows")

    together, begin = BatchingNetwork(broken, 4), threading.Barrier(2)

    def answer(_number: int) -> str:
        with together.used():
            begin.wait(10)
            try:
                together(torch.zeros(1, 1, 8, 8, 8))
            except RuntimeError as error:
                return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        assert all("windows" in text for text in pool.map(answer, range(2)))


def test_parts_keep_their_kinds() -> None:
    output = DetectionOutput((torch.arange(6.0).reshape(3, 2),), (torch.arange(3.0).reshape(3, 1),))
    first, second = parts_of(output, [1, 2])
    assert isinstance(first, DetectionOutput)
    assert [len(part) for part in flat(first)] == [1, 1]
    assert flat(second)[0].tolist() == [[2.0, 3.0], [4.0, 5.0]]
    masks = parts_of(SegmentationOutput(torch.arange(3.0)[:, None]), [2, 1])
    assert [len(part.logits) for part in masks] == [2, 1]


def test_served_answers_stay_the_same(tmp_path: Path) -> None:
    models = small_models(tmp_path / "runs")
    shared = {name: {**model, "window_batch": 4, "at_once": 4} for name, model in models.items()}
    scans = [small_scan(tmp_path / f"{seed}.nii.gz", seed=seed) for seed in range(3)]

    async def served(folder: Path, models: dict[str, Any]) -> list[Any]:
        async with in_process(folder, models=models) as client:
            studies = [(await upload(client, scan))["study_id"] for scan in scans]
            asked = [
                client.post("/v1/jobs?wait=60", json={"study_id": study, "model": "nodules"}) for study in studies
            ]
            return [reply.json()["result"]["findings"] for reply in await asyncio.gather(*asked)]

    alone = asyncio.run(served(tmp_path / "alone", models))
    joined = asyncio.run(served(tmp_path / "joined", shared))
    for one, other in zip(alone, joined, strict=True):
        assert len(one) == len(other) > 0
        for name in ("score", "box_mm"):
            np.testing.assert_allclose(
                [found[name] for found in one], [found[name] for found in other], rtol=1e-3, atol=0.1
            )

"""What ranks do in tests; processes that are spawned import it by this name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from voxray.core.batch import PatchBatch
from voxray.core.recipe import Recipe, parse_recipe
from voxray.models import MODELS
from voxray.tasks import build_task
from voxray.training.collective import Collective
from voxray.training.state import TrainingState, on_host
from voxray.training.step import Stepper

WORLD = 2


Job = tuple[Callable[[Collective, Any], Any], Any]
"""A function of the group and what is given to it."""


def _rank(rank: int, jobs: Sequence[Job], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save([work(Collective(rank, WORLD), given) for work, given in jobs], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(jobs: Sequence[Job], folder: Path) -> list[tuple[Any, ...]]:
    """What each job gives on rank 0 and on rank 1 of two processes."""
    spawn(_rank, args=(list(jobs), str(folder)), nprocs=WORLD)  # type: ignore[no-untyped-call]
    per_rank = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    return list(zip(*per_rank, strict=True))


def weights_after(collective: Collective, given: Any) -> dict[str, Any]:
    """The network's weights after each of a few steps on this rank's share of the patches."""
    data, batches = given
    recipe = parse_recipe(data, MODELS, where="test")
    training = TrainingState(model(recipe), recipe.optim)
    stepper = Stepper(training, task=build_task(recipe, ["ball"]), recipe=recipe, collective=collective, seed=0)
    losses, share = [], len(batches[0][0]) // collective.world_size
    for step, batch in enumerate(batches):
        mine = slice(collective.rank * share, (collective.rank + 1) * share)
        parts = stepper.step([PatchBatch(*(part[mine] for part in batch))], (0, step))
        losses.append(None if parts is None else float(torch.stack(list(parts.values())).sum()))
    return {
        "losses": losses,
        "skipped": training.num_skipped,
        "weights": {name: value.clone() for name, value in training.model.state_dict().items()},
    }


def trained_in_slots(collective: Collective, given: Any) -> dict[str, Any]:
    """The weights and losses of a few steps, each of whose global batch is so many slots, shared by the ranks.

    They may begin at a later step, from what an earlier call had come to.
    """
    data, steps, first, state = given
    recipe, collective = parse_recipe(data, MODELS, where="test"), replace(collective, num_slots=len(steps[0]))
    training = TrainingState(model(recipe), recipe.optim)
    if state is not None:
        training.restore(state["weights"], state["trainer"])
    stepper = Stepper(training, task=build_task(recipe, ["ball"]), recipe=recipe, collective=collective, seed=0)
    losses = []
    for step, slots in enumerate(steps, start=first):
        parts = stepper.step([PatchBatch(*slots[slot]) for slot in collective.slots], (0, step))
        losses.append(None if parts is None else {name: float(value) for name, value in parts.items()})
    return {"losses": losses, "weights": on_host(training.weights()), "trainer": on_host(training.trainer())}


def model(recipe: Recipe) -> nn.Module:
    """The recipe's network, always with the same weights."""
    torch.manual_seed(1)
    network: nn.Module = recipe.network.build(recipe, 1)
    return network


def sums(collective: Collective, given: Any) -> list[Any]:
    """One of everything that a `Collective` does."""
    value = torch.tensor(float(collective.rank + 1), requires_grad=True)
    total = collective.reduce(value * 2)
    total.square().backward()  # type: ignore[no-untyped-call]
    gathered = collective.gather({"rank": collective.rank})
    return [float(total), value.grad, collective.mean([collective.rank, 1.0]), gathered, collective.broadcast(given)]

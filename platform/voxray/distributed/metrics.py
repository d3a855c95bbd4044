"""Numbers for Prometheus through Ray: one table of what each is called, counts in, is tagged with and says.

Each node of a cluster serves what its processes record at its metrics port, where Ray puts ``ray_`` before the names.
Without Ray nothing is recorded. What must not know Ray passes its numbers to callbacks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from voxray.core.patience import tell_retries

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge, Histogram

Outcome = Literal["done", "set_aside"]

_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper edges of a histogram's buckets."""


@dataclass(frozen=True)
class ClusterMetric:
    """One number; its name ends in its unit, as Prometheus wants it."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    tags: tuple[str, ...]
    description: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it."""
        ends = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return tuple(f"ray_{self.name}{end}" for end in ends)


_TABLE = (
    ClusterMetric("gauge", "voxray_training_samples_per_s", ("run",), "Patches per second, over all workers."),
    ClusterMetric("gauge", "voxray_training_wait_share", ("run",), "Share of the steps' time spent waiting."),
    ClusterMetric("gauge", "voxray_training_step_seconds", ("run",), "Mean duration of an optimizer step."),
    ClusterMetric(
        "gauge", "voxray_training_gpu_memory_bytes", ("run", "rank"), "Most GPU memory that a worker has reserved."
    ),
    ClusterMetric("histogram", "voxray_checkpoint_seconds", ("run",), "How long writing a checkpoint took."),
    ClusterMetric("gauge", "voxray_checkpoint_bytes", ("run",), "Size of the last checkpoint."),
    ClusterMetric(
        "counter",
        "voxray_retries_total",
        ("what",),
        "What was tried again: task (its process was lost), worker (an actor or a training worker), storage.",
    ),
    ClusterMetric("counter", "voxray_cases_total", ("verb", "outcome"), "Cases that were done, or set aside."),
    ClusterMetric(
        "counter",
        "voxray_cluster_wait_seconds_total",
        ("verb",),
        "Time that a verb waited for nodes.",
    ),
    ClusterMetric(
        "counter",
        "voxray_shards_total",
        ("source",),
        "Shards of a store elsewhere that readers opened: from the node's cache, or fetched from the storage.",
    ),
    ClusterMetric(
        "gauge", "voxray_service_jobs", ("model", "state"), "Jobs of the service, the queued ones included."
    ),
)
METRICS = {one.name: one for one in _TABLE}

_verb = "python"
_made: dict[str, Counter | Gauge | Histogram] = {}


def set_verb(name: str) -> None:
    """The command that this process runs, for the tag ``verb``; ``python`` where it is none."""
    global _verb
    _verb = name


def record(name: str, value: float, **tags: str) -> None:
    """Adds to a counter, sets a gauge, or observes in a histogram; without Ray nothing happens."""
    metric = METRICS[name]
    assert set(tags) == set(metric.tags), f"{name} has the tags {metric.tags}, not {tuple(tags)}"
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    from ray.util.metrics import Counter, Gauge

    made = _made.get(name) or _made.setdefault(name, _make(metric))
    if isinstance(made, Counter):
        if value > 0:
            made.inc(value, tags)
    elif isinstance(made, Gauge):
        made.set(value, tags)
    else:
        made.observe(value, tags)


def count_case(*, done: bool) -> None:
    """A case of this process's verb is done, or was set aside."""
    record("voxray_cases_total", 1, verb=_verb, outcome="done" if done else "set_aside")


def count_retry(what: Literal["task", "worker", "storage"]) -> None:
    """Something is tried again."""
    record("voxray_retries_total", 1, what=what)


def count_restart() -> None:
    """The actor that this process is has been started again after it was lost, if so."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        if context.get_actor_id() is not None and context.was_current_actor_reconstructed:
            count_retry("worker")


def count_wait(seconds: float) -> None:
    """This process's verb has waited for the cluster."""
    record("voxray_cluster_wait_seconds_total", seconds, verb=_verb)


def _make(metric: ClusterMetric) -> Counter | Gauge | Histogram:
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.kind == "histogram":
        return Histogram(metric.name, metric.description, boundaries=list(_SECONDS), tag_keys=metric.tags)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.description, tag_keys=metric.tags)


# Storage is asked again below all that knows Ray; every process that works for a cluster imports this module.
tell_retries(lambda: count_retry("storage"))

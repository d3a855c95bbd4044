"""Metrics for Prometheus: counts are kept in the job store, so that every process gives the same sums."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from voxray.serving.jobs.store import JobStore

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
HELP = {
    "voxray_requests_total": "Requests by route and status.",
    "voxray_refused_total": "Requests that were refused before they reached a route.",
    "voxray_request_seconds": "How long requests took.",
    "voxray_stage_seconds": "How long the parts of a job took.",
    "voxray_jobs_total": "Jobs that ended, by how they ended.",
}


class Metrics:
    """Counts of one process, added to the job store from time to time."""

    def __init__(self, store: JobStore) -> None:
        self._store, self._lock = store, threading.Lock()
        self._held: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Counts something; labels are few and never of a patient."""
        with self._lock:
            self._held[name, _written(labels)] += amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Counts a duration in its bucket."""
        bucket = next((str(most) for most in BUCKETS_S if seconds <= most), "+Inf")
        with self._lock:
            self._held[name, _written({**labels, "le": bucket})] += 1
            self._held[name, _written({**labels, "le": "sum"})] += seconds

    def flush(self) -> None:
        """Adds what was counted to the job store."""
        with self._lock:
            held, self._held = self._held, defaultdict(float)
        if not held:
            return
        try:
            self._store.count(held)
        except BaseException:  # they are counted when the database is back
            with self._lock:
                for key, amount in held.items():
                    self._held[key] += amount
            raise

    def text(self, ready: Mapping[str, bool]) -> bytes:
        """All of it in Prometheus's text form."""
        self.flush()
        registry = CollectorRegistry()
        registry.register(_Collector(self._store, ready))
        return generate_latest(registry)


class _Collector:
    def __init__(self, store: JobStore, ready: Mapping[str, bool]) -> None:
        self._store, self._ready = store, ready

    def collect(self) -> Iterable[Metric]:
        """Gauges of now, counts since the job store was made."""
        jobs = GaugeMetricFamily("voxray_jobs", "Jobs in the ledger.", labels=["model", "state"])
        for model, state, number in self._store.states():
            jobs.add_metric([model, state], number)
        yield jobs
        ready = GaugeMetricFamily("voxray_model_ready", "Whether a model answers.", labels=["model"])
        for model, is_ready in self._ready.items():
            ready.add_metric([model], float(is_ready))
        yield ready
        rows: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for row in self._store.counts():
            rows[row.name].append((_read(row.labels), row.value))
        for name, entries in rows.items():
            yield _histogram(name, entries) if name.endswith("_seconds") else _counter(name, entries)


def _counter(name: str, entries: list[tuple[dict[str, str], float]]) -> Metric:
    keys = sorted({key for labels, _ in entries for key in labels})
    family = CounterMetricFamily(name.removesuffix("_total"), HELP.get(name, name), labels=keys)
    for labels, value in entries:
        family.add_metric([labels.get(key, "") for key in keys], value)
    return family


def _histogram(name: str, entries: list[tuple[dict[str, str], float]]) -> Metric:
    keys = sorted({key for labels, _ in entries for key in labels} - {"le"})
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for labels, value in entries:
        found[tuple(labels.get(key, "") for key in keys)][labels["le"]] = value
    family = HistogramMetricFamily(name, HELP.get(name, name), labels=keys)
    for values, buckets in found.items():
        total, cumulated = 0.0, []
        for most in (*map(str, BUCKETS_S), "+Inf"):
            total += buckets.get(most, 0.0)
            cumulated.append((most, total))
        family.add_metric(list(values), cumulated, buckets.get("sum", 0.0))
    return family


def _written(labels: Mapping[str, str]) -> str:
    return "\t".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _read(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split("\t") if part)

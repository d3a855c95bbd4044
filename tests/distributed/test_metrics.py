"""The numbers for Prometheus: one table, a dashboard that shows all of it, and what a node of Ray serves of them."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import yaml

from support.tiny_training import made_store, segmentation_recipe, train_silently
from voxray.core.errors import StorageAwayError
from voxray.core.patience import Clock, patiently, trust
from voxray.distributed.metrics import METRICS, count_case, count_wait, record, set_verb

GRAFANA = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
_MOST_S = 300.0


def expressions() -> list[str]:
    """Every expression of the dashboard's panels."""
    board = json.loads((GRAFANA / "voxray.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_names_are_prometheus_own_and_end_in_their_unit() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"voxray_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.description.endswith(".")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {name for text in expressions() for name in re.findall(r"ray_\w+", text)}
    known = {name for metric in METRICS.values() for name in metric.series}
    assert shown <= known
    assert shown == known


def test_the_dashboard_groups_by_tags_that_the_metrics_have() -> None:
    for text in expressions():
        name = re.findall(r"ray_(voxray_\w+?)(?:_bucket|_sum|_count)?\b", text)[0]
        tags = {tag for group in re.findall(r"by \(([^)]*)\)", text) for tag in group.split(", ")}
        assert tags - {"le"} <= set(METRICS[name].tags), text


def test_prometheus_reads_the_nodes_from_rays_own_file() -> None:
    config = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def test_a_tag_that_the_table_does_not_have_is_a_fault() -> None:
    with pytest.raises(AssertionError):
        record("voxray_retries_total", 1, verb="train")


@pytest.fixture
def _ray(one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    del one_ray
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield
    set_verb("python")


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_node_serves_what_a_training_and_its_driver_record(tmp_path: Path) -> None:
    wanted = {
        f'ray_voxray_{name}{{run="run"}}'
        for name in ("training_samples_per_s", "training_step_seconds", "training_wait_share")
    }
    wanted |= {f'ray_voxray_checkpoint_{name}{{run="run"}}' for name in ("seconds_sum", "seconds_count", "bytes")}
    wanted |= {
        'ray_voxray_cases_total{outcome="done",verb="ingest"}',
        'ray_voxray_cluster_wait_seconds_total{verb="ingest"}',
        'ray_voxray_retries_total{what="storage"}',
    }
    set_verb("ingest")
    count_case(done=True)
    count_wait(2.5)
    trust("s3://away")
    with pytest.raises(StorageAwayError):
        patiently(_away, "s3://away", clock=Clock(count(0, 400).__next__, lambda _: None))
    recipe = segmentation_recipe("optim.epochs=4")
    store = made_store(tmp_path / "store", recipe)
    with _scraped(wanted) as found:
        train_silently(store.uri, recipe, tmp_path / "run", workers=1)
    assert found.keys() >= wanted
    assert found['ray_voxray_cases_total{outcome="done",verb="ingest"}'] >= 1
    assert found['ray_voxray_cluster_wait_seconds_total{verb="ingest"}'] >= 2.5
    assert found['ray_voxray_checkpoint_bytes{run="run"}'] > 1000
    assert found['ray_voxray_training_samples_per_s{run="run"}'] > 0


@contextmanager
def _scraped(wanted: set[str]) -> Iterator[dict[str, float]]:
    """What the node has served of voxray by the end of the block, or until all that is wanted has come."""
    import ray

    (node,) = ray.nodes()
    url, found = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", dict[str, float]()

    def scrape() -> None:
        end = time.monotonic() + _MOST_S
        while not wanted <= found.keys() and time.monotonic() < end:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found.update(_read(answer.read().decode()))
            time.sleep(0.2)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        thread.join()


def _read(text: str) -> Mapping[str, float]:
    """Series of voxray with the table's own tags."""
    found = {}
    for name, labels, value in re.findall(r"^(ray_voxray_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
        own = [label for label in labels.split(",") if label.split("=")[0] in ("run", "verb", "what", "outcome")]
        found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found


def _away() -> None:
    raise StorageAwayError("it does not answer; see to it.")

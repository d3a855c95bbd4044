"""A dataset on S3 is checked and ingested as one in a folder is: the same report, the same bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.test_ingest import DATASET, RECIPE, write_scan
from support.bright_runs import register, write_run, write_spheres
from support.buckets import Buckets, buckets
from voxray.cli.app import app
from voxray.commands.check import check
from voxray.commands.evaluate import evaluate
from voxray.commands.ingest import ingest
from voxray.core.progress import SilentProgress
from voxray.core.storage import Place
from voxray.core.written import sha256_of
from voxray.dataset import read_dataset
from voxray.distributed.cluster import connect

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
QUIET = SilentProgress()


@pytest.fixture(scope="module")
def s3() -> Iterator[Buckets]:
    """A small S3 over HTTP, which the workers of a Ray that starts now find, too."""
    with pytest.MonkeyPatch.context() as patch, buckets() as server:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(num_cpus=2):
            yield server


def copies() -> set[str]:
    """The temporary folders of copies that there are."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("voxray_scan_*")}


def shards(store: Path) -> dict[str, str]:
    """The SHA-256 of every shard."""
    return {path.name: sha256_of(path) for path in (store / "cases").iterdir()}


@pytest.mark.ray
@pytest.mark.slow
def test_a_dataset_that_moves_to_s3_is_what_it_was(s3: Buckets, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, case_id in enumerate("abc"):
        write_scan(folder, case_id, seed=number)
    (folder / "c_labels.nii.gz").unlink()
    (folder / "made.toml").write_text(DATASET)
    place, before = Place.of(f"s3://{s3.make()}/moved"), copies()
    for path in folder.iterdir():
        place.put(path.name, path)
    here, there = read_dataset(folder / "made.toml"), read_dataset(f"{place.uri}/made.toml")

    found = check(there, progress=QUIET)
    told = [(one.code, one.message) for one in found.problems if one.case_id]
    assert told == [("labels.missing", f"{place.uri}/c_labels.nii.gz: no such file.")]
    assert [one.case_id for one in found.cases] == ["a", "b"]

    local = ingest(here, RECIPE, tmp_path / "local", progress=QUIET)
    remote = ingest(there, RECIPE, tmp_path / "remote", progress=QUIET)
    assert (remote.done, remote.failed.keys()) == (local.done, local.failed.keys())
    assert shards(tmp_path / "remote") == shards(tmp_path / "local")
    assert remote.manifest.cases["a"].image == f"{place.uri}/a_ct.nii.gz"
    again = ingest(there, RECIPE, tmp_path / "local", progress=QUIET)
    assert (again.done, again.kept) == ((), ("a", "b")), "the store of the folder is that of the bucket"

    place.remove("b_ct.nii.gz")
    write_scan(folder, "c", seed=2)
    place.put("c_labels.nii.gz", folder / "c_labels.nii.gz")
    changed = ingest(there, RECIPE, tmp_path / "remote", progress=QUIET)
    assert (changed.done, changed.kept, changed.removed) == (("c",), ("a",), ("b",))
    assert copies() <= before


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_a_run_is_scored_on_a_dataset_elsewhere_as_on_one_in_a_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)
    dataset, place = write_spheres(tmp_path / "data"), Place.of(f"memory://{tmp_path.name}-{kind}/data")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            place.put(path.relative_to(tmp_path / "data").as_posix(), path)
    write_run(tmp_path / "run", kind, val_cases=("s0", "s1", "s2"))
    there, before = f"{place.uri}/{dataset.name}", copies()
    local = evaluate(tmp_path / "run", dataset=dataset, output=tmp_path / "local", progress=QUIET)
    for _ in range(2):
        remote = evaluate(tmp_path / "run", dataset=there, output=tmp_path / "remote", progress=QUIET)
        assert str(remote.metrics) == str(local.metrics)
        assert remote.contents == local.contents
    answer = (tmp_path / "remote" / "s0.json").read_text()
    assert f"{place.uri}/" in answer
    assert "voxray_scan_" not in answer
    assert copies() <= before


@pytest.mark.parametrize("words", [["check", "DATASET"], ["ingest", "DATASET", "spleen", "-o", "store"]])
def test_a_dataset_that_is_not_there_is_a_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"memory://{tmp_path.name}/dataset.toml"
    result = CliRunner().invoke(app, [address if word == "DATASET" else word for word in words])
    assert result.exit_code == 2
    assert f"{address}: no such file; give the address of a .toml or .json file." in result.stderr
    Place.of(f"memory://{tmp_path.name}").write("dataset.toml", DATASET.encode())
    result = CliRunner().invoke(app, [address if word == "DATASET" else word for word in words])
    assert result.exit_code == 1
    assert "no image below" in result.stderr
    assert list(tmp_path.iterdir()) == []

"""Ingest: what is made, kept, made anew, removed and set aside."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import SimpleITK

from support.odd_scans import DISAGREE, contradict
from voxray.commands import ingest as ingest_module
from voxray.commands.ingest import ingest, signature
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.progress import SilentProgress
from voxray.core.storage import Place
from voxray.dataset import CaseSource, Dataset, read_dataset
from voxray.loading import list_cases, load_case
from voxray.preprocess import prepare_case
from voxray.recipes import read_recipe
from voxray.store import FailedCase, Store, StoredCase

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

RECIPE = read_recipe("spleen", ["patch.size_vox=[32,32,32]", "patch.margin_vox=[8,8,8]", "grid.spacing_mm=[2,2,2]"])
DATASET = """
name = "made"
licence = "CC0-1.0"
classes = ["block"]
[images]
glob = "*_ct.nii.gz"
case_id = '(.*)_ct'
[annotations]
kind = "labels"
file = "{case}_labels.nii.gz"
"""


def write_scan(folder: Path, case_id: str, *, seed: int = 0, shift: int = 0) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((24, 30, 40), np.uint8)
    labels[6 + shift : 14 + shift, 10:20, 12:22] = 1
    voxels = (rng.normal(-50, 40, labels.shape) + 100 * labels).astype(np.int16)
    for name, array in (("ct", voxels), ("labels", labels)):
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((1.5, 1.5, 3.0))  # type: ignore[no-untyped-call]
        SimpleITK.WriteImage(image, str(folder / f"{case_id}_{name}.nii.gz"))


@pytest.fixture
def made(tmp_path: Path) -> Dataset:
    """Three cases of which one has lost its label map."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, case_id in enumerate("abc"):
        write_scan(folder, case_id, seed=number)
    (folder / "c_labels.nii.gz").unlink()
    (folder / "made.toml").write_text(DATASET)
    return read_dataset(folder / "made.toml")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_dataset_becomes_a_store_and_follows_its_changes(made: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    contradict(Path(made.root) / "a_ct.nii.gz")
    first = ingest(made, RECIPE, out, progress=SilentProgress())
    assert (first.done, first.kept, first.removed) == (("a", "b"), (), ())
    assert list(first.failed) == ["c"]
    assert first.failed["c"].startswith("case c: [labels.missing] ")
    store = Store.open(out)
    assert store.case_ids == ("a", "b")
    assert store.manifest.failed["c"].code == "labels.missing"
    case = prepare_case(load_case(made, list_cases(made)[0]), RECIPE.grid)
    np.testing.assert_array_equal(store.read_case("a").image.voxels, case.image.voxels)
    np.testing.assert_array_equal(store.read_case("a").labels, case.labels)
    assert store.manifest.dataset["licence"] == "CC0-1.0"
    before = (out / "cases" / "a.parquet").stat().st_mtime_ns

    again = ingest(made, RECIPE, out, progress=SilentProgress())
    assert (again.done, again.kept, again.removed) == ((), ("a", "b"), ())
    assert again.warnings == first.warnings == {"a": (DISAGREE,)}
    assert store.manifest.cases["a"].warnings == store.read_case("a").warnings == (DISAGREE,)
    assert "1 cases with warnings" in str(again)

    folder = Path(made.root)
    write_scan(folder, "b", seed=7, shift=2)
    write_scan(folder, "c", seed=2)
    (out / "manifest.json").unlink()
    third = ingest(made, RECIPE, out, progress=SilentProgress())
    assert (third.done, third.kept, third.failed) == (("b", "c"), ("a",), {})
    assert (out / "cases" / "a.parquet").stat().st_mtime_ns == before
    assert not list(Store.open(out).verify())

    (folder / "a_ct.nii.gz").unlink()
    (out / "cases" / "b.parquet").write_bytes(b"cut short")
    fourth = ingest(made, RECIPE, out, progress=SilentProgress())
    assert (fourth.done, fourth.kept, fourth.removed) == (("b",), ("c",), ("a",))
    assert {path.name for path in (out / "cases").iterdir()} == {"b.parquet", "c.parquet"}
    assert {path.name for path in out.iterdir()} == {"cases", "manifest.json", "tiles.parquet", "objects.parquet"}
    text = str(fourth)
    assert "2 cases" in text
    assert "1 removed" in text


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_damage_that_only_a_checksum_sees_is_made_anew(made: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    ingest(made, RECIPE, out, progress=SilentProgress())
    path = out / "cases" / "a.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    assert ingest(made, RECIPE, out, progress=SilentProgress()).done == ()
    (problem,) = Store.open(out).verify()
    assert "Delete what is left of it and run `voxray ingest` again" in problem.remedy
    path.unlink()
    assert ingest(made, RECIPE, out, progress=SilentProgress()).done == ("a",)
    assert not list(Store.open(out).verify())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_case_whose_worker_dies_is_set_aside_and_stops_no_other(made: Dataset, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    place = Deadly(ingest_module._writable(tmp_path / "store").uri)
    job = ingest_module._Job(place, made, ingest_module._without_network(RECIPE))
    sources = list_cases(made)[:2]
    found = dict(ingest_module._on_ray(job, sources, SilentProgress()))
    assert isinstance(found.pop("a"), StoredCase)
    (died,) = found.values()
    assert isinstance(died, FailedCase)
    assert (died.code, died.message.count("the worker that had it died 3 times, on node ")) == (
        "ingest.worker_died",
        1,
    )


class Deadly(Place):
    """A place that ends the process which writes the shard of b."""

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        if name.endswith("b.parquet"):
            os._exit(1)
        with super().writing(name) as path:
            yield path


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_nothing_usable_is_an_error(made: Dataset, tmp_path: Path) -> None:
    for path in Path(made.root).glob("*_labels*"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of 3 cases can be used. case a: \[labels.missing\]"):
        ingest(made, RECIPE, tmp_path / "store", progress=SilentProgress())


def test_the_signature_changes_with_what_a_shard_is_made_from(made: Dataset) -> None:
    source = list_cases(made)[0]
    first = signature(made, source, RECIPE)
    assert signature(made, source, read_recipe("spleen", ["patch.size_vox=[32,32,32]"])) != first
    assert signature(made, source, ingest_module._without_network(RECIPE)) == first, "as a task has it"
    relabelled = made.model_copy(update={"classes": ("brick",)})
    assert signature(relabelled, source, RECIPE) != first
    assert signature(made, replace(source, patient_id="p"), RECIPE) != first
    assert signature(made.model_copy(update={"licence": "other"}), source, RECIPE) == first
    Path(source.image).touch()
    assert signature(made, source, RECIPE) == first, "a date is nothing that a shard is made from"
    for path in (Path(source.image), Path(made.root) / "a_labels.nii.gz"):
        before, times = path.read_bytes(), path.stat()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert path.stat().st_size == times.st_size
        assert signature(made, source, RECIPE) != first, f"{path.name} has another last byte"
        path.write_bytes(before)
    assert signature(made, source, RECIPE) == first


def test_a_moved_dataset_has_the_same_signatures(made: Dataset, tmp_path: Path) -> None:
    before = [signature(made, source, RECIPE) for source in list_cases(made)[:2]]
    assert len(set(before)) == 2
    Path(made.root).rename(tmp_path / "moved")
    moved = read_dataset(tmp_path / "moved" / "made.toml")
    assert [signature(moved, source, RECIPE) for source in list_cases(moved)[:2]] == before


def test_a_stopped_ingest_keeps_its_shards(made: Dataset, tmp_path: Path) -> None:
    sources = list_cases(made)[:2]
    place = ingest_module._writable(tmp_path / "store")
    job = ingest_module._Job(place, made, RECIPE)
    stored = ingest_module._ingest_case(sources[0], job)

    def kept() -> dict[str, StoredCase]:
        return dict(ingest_module._kept(place, made, sources, RECIPE, progress=SilentProgress()))

    assert kept() == {"a": stored}
    write_scan(Path(made.root), "a", seed=0, shift=1)
    assert kept() == {}, "its labels are others now"


def test_a_first_ingest_reads_no_file_of_the_dataset_before_its_tasks(made: Dataset, tmp_path: Path) -> None:
    place = ingest_module._writable(tmp_path / "store")
    for path in Path(made.root).glob("*.nii.gz"):
        path.unlink()
    sources = [CaseSource(case_id, case_id, f"{made.root}/{case_id}_ct.nii.gz") for case_id in "ab"]
    assert not dict(ingest_module._kept(place, made, sources, RECIPE, progress=SilentProgress()))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        ingest_module._writable(tmp_path / "file" / "store")


def test_a_full_disk_ends_the_run(made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingest_module, "write_case", full)
    source = list_cases(made)[0]
    place = ingest_module._writable(tmp_path)
    job = ingest_module._Job(place, made, RECIPE)
    found = ingest_module._ingest_case(source, job)
    assert isinstance(found, FailedCase)
    assert found.code == ingest_module._DISK_FULL
    assert "no space is left" in str(ingest_module._disk_full(place))


@pytest.mark.data
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(
    ("name", "recipe", "num_cases"),
    [("sts_ct", "lung_nodule", 4), ("ts_spleen", "spleen", 1), ("luna16_style", "lung_nodule", 2)],
)
def test_real_scans(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    recipe: str,
    num_cases: int,
) -> None:
    monkeypatch.setenv("VOXRAY_TEST_DATA", str(shared_data))
    dataset = read_dataset(Path(__file__).resolve().parents[1] / "datasets" / f"{name}.toml")
    chosen = read_recipe(recipe)
    report = ingest(dataset, chosen, tmp_path, progress=SilentProgress())
    assert (len(report.done), report.failed) == (num_cases, {})
    store = Store.open(tmp_path)
    for source in list_cases(dataset):
        expected = prepare_case(load_case(dataset, source), chosen.grid)
        found = store.read_case(source.case_id)
        np.testing.assert_array_equal(found.image.voxels, expected.image.voxels)
        assert found.image.grid.is_close(expected.image.grid)
        if chosen.task == "detection":
            np.testing.assert_allclose(found.boxes, expected.boxes)
            assert store.tiles.num_rows >= num_cases
        else:
            np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_store_takes_no_folder_that_is_read_or_somebody_elses(made: Dataset, tmp_path: Path) -> None:
    root = Path(made.root)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(root)
    before = sorted(path for path in tmp_path.rglob("*"))
    for out, said in (
        (root, "the dataset's folder"),
        (tmp_path / "link", "the dataset's folder"),
        (tmp_path / "other", "no store"),
    ):
        with pytest.raises(ConfigError, match=said):
            ingest(made, RECIPE, out, progress=SilentProgress())
    scans = made.model_copy(update={"images": made.images.model_copy(update={"glob": ("*",)})})
    with pytest.raises(ConfigError, match="would be taken for a scan"):
        ingest(scans, RECIPE, root / "store", progress=SilentProgress())
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_one_dataset_for_both_tasks_loses_a_case_with_a_speck_only_where_it_detects(
    made: Dataset, tmp_path: Path
) -> None:
    """A component of one voxel, of which none is left on either recipe's grid."""
    path = Path(made.root) / "a_labels.nii.gz"
    image = SimpleITK.ReadImage(str(path))
    image[3, 2, 1] = 1
    SimpleITK.WriteImage(image, str(path))
    detecting = read_recipe("lung_nodule", ["patch.size_vox=[32,32,32]", "grid.spacing_mm=[4,4,4]"])
    segmenting = read_recipe("spleen", ["patch.size_vox=[32,32,32]", "grid.spacing_mm=[4,4,4]"])
    source = list_cases(made)[0]
    place = Place.of(tmp_path / "store")
    refused = ingest_module._ingest_case(source, ingest_module._Job(place, made, detecting))
    assert isinstance(refused, FailedCase)
    assert refused.code == "resample.object_lost"
    kept = ingest_module._ingest_case(source, ingest_module._Job(place, made, segmenting))
    assert isinstance(kept, StoredCase)
    assert kept.summary.warnings == (
        "1 separate part of block (1 voxel, 6.75 mm3) has no voxel left at 4 x 4 x 4 mm, and is background there.",
    )


def test_the_recipes_prospects_are_a_warning_of_ingest(made: Dataset, tmp_path: Path) -> None:
    recipe = read_recipe("spleen", ["patch.size_vox=[32,32,32]", "loss.dice_weight=0", "loss.ce_weight=0"])
    job = ingest_module._Job(Place.of(tmp_path / "store"), made, recipe)
    stored = ingest_module._ingest_case(list_cases(made)[0], job)
    assert isinstance(stored, StoredCase)
    two = made.model_copy(update={"classes": ("block", "cyst")})
    texts = ingest_module._foreseen(two, recipe, {"a": stored})
    assert texts[0].startswith("warning: with this recipe nothing can be learnt: loss.dice_weight")
    assert texts[1].startswith("warning: 1 of 2 classes (cyst) has no labelled voxel in any of the 1 cases")

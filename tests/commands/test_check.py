"""`check` on a folder with many things wrong: all are told, and the good cases are summed up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from support.odd_scans import DISAGREE, contradict
from voxray.commands.check import CaseResult, CaseWarning, CheckReport, DatasetProblem, check, check_case, check_cases
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.core.recipe import GridConfig
from voxray.dataset import CaseSource, Dataset, read_dataset
from voxray.loading import list_cases

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

SHAPE = (12, 10, 8)
DESCRIPTORS = Path(__file__).resolve().parents[1] / "datasets"


def write(path: Path, voxels: NDArray[Any], *, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> None:
    image: Any = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def scan() -> NDArray[np.int16]:
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 900 - 400).astype(np.int16)


def mask(value: int = 1) -> NDArray[np.uint8]:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[2:4, 3:6, 1:3] = value
    return voxels


def describe(root: Path, **changes: Any) -> Dataset:
    data = {
        "name": "broken",
        "licence": "CC0",
        "classes": ["liver", "spleen"],
        "images": {"glob": "images/*.nii.gz"},
        "annotations": {"kind": "labels", "file": "labels/{case}.nii.gz"},
        "folds": {"kind": "kfold", "num_folds": 3},
        "root": str(root),
        **changes,
    }
    return Dataset.model_validate(data, context={"root": str(root)})


@pytest.fixture(scope="module")
def report(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> CheckReport:
    del one_ray
    root = tmp_path_factory.mktemp("broken")
    for name in ("good", "empty", "nolabel", "value", "shape", "cut", "constant"):
        write(root / f"images/{name}.nii.gz", scan() if name != "constant" else scan() * 0 - 7)
        write(root / f"labels/{name}.nii.gz", mask())
    write(root / "images/thick.nii.gz", scan(), spacing=(1.0, 1.0, 5.0))
    write(root / "labels/thick.nii.gz", mask(2), spacing=(1.0, 1.0, 5.0))
    write(root / "labels/empty.nii.gz", mask(0))
    write(root / "labels/value.nii.gz", mask(9))
    write(root / "labels/shape.nii.gz", mask(8)[..., :-1])
    (root / "labels/nolabel.nii.gz").unlink()
    cut = root / "images/cut.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-40])
    return check(describe(root), progress=SilentProgress())


@pytest.mark.ray
def test_a_broken_case_stops_no_other(report: CheckReport) -> None:
    assert report.num_cases == 8
    assert [case.case_id for case in report.cases] == ["constant", "empty", "good", "thick"]
    by_case: dict[str | None, list[str]] = {}
    for problem in report.problems:
        by_case.setdefault(problem.case_id, []).append(problem.code)
        assert problem.message
        assert problem.remedy
    assert sorted(by_case, key=str) == ["constant", "cut", "nolabel", "shape", "value"]
    assert by_case["nolabel"] == ["labels.missing"]
    assert by_case["value"] == ["labels.value"]
    assert by_case["shape"] == ["labels.shape", "labels.value"]
    assert by_case["constant"] == ["image.constant"]
    assert len(by_case["cut"]) == 1


@pytest.mark.ray
def test_good_cases_are_summed_up(report: CheckReport) -> None:
    (good,) = [case for case in report.cases if case.case_id == "good"]
    assert good.shape == SHAPE
    assert (good.low_hu, good.high_hu) == (-400, 499)
    assert good.objects == (1, 0)
    assert good.voxels == (12, 0)
    assert report.objects_of_class == {"liver": 2, "spleen": 1}
    assert report.cases_of_class == {"liver": 2, "spleen": 1}
    assert report.num_empty == 1
    assert report.spacing_mm is not None
    assert report.spacing_mm[2] == (2.0, 2.0, 5.0)


def test_a_case_alone(tmp_path: Path) -> None:
    write(tmp_path / "images/a.nii.gz", scan())
    write(tmp_path / "labels/a.nii.gz", mask(9))
    dataset = describe(tmp_path)
    checked, problems = check_case(dataset, list_cases(dataset)[0])
    assert checked is None
    assert [problem[:2] for problem in problems] == [("a", "labels.value")]


def test_warnings_of_a_case_are_told_whether_it_can_be_used_or_not(tmp_path: Path) -> None:
    write(tmp_path / "images/a.nii.gz", scan())
    write(tmp_path / "labels/a.nii.gz", mask())
    contradict(tmp_path / "images/a.nii.gz")
    contradict(tmp_path / "labels/a.nii.gz")
    dataset = describe(tmp_path)
    expected = [CaseWarning("a", DISAGREE), CaseWarning("a", f"a.nii.gz: {DISAGREE}")]
    checked, noted = check_case(dataset, list_cases(dataset)[0])
    assert checked is not None
    assert noted == expected
    write(tmp_path / "labels/a.nii.gz", mask(9))
    checked, noted = check_case(dataset, list_cases(dataset)[0])
    assert checked is None
    assert noted[1:] == expected[:1]


def test_values_that_are_no_hounsfield_units_are_a_problem_unless_they_are_accepted(tmp_path: Path) -> None:
    write(tmp_path / "images/a.nii.gz", np.asarray(scan() + 1000, np.int16))
    write(tmp_path / "labels/a.nii.gz", mask())
    dataset = describe(tmp_path)
    checked, (problem,) = check_case(dataset, list_cases(dataset)[0])
    assert checked is None
    assert problem[:2] == ("a", "scan.not_hounsfield")
    dataset = describe(tmp_path, images={"glob": "images/*.nii.gz", "accept_values": True})
    checked, (warning,) = check_case(dataset, list_cases(dataset)[0])
    assert checked is not None
    assert isinstance(warning, CaseWarning)
    assert warning.message.startswith("taken as it is, though it holds values that run from 600 to 1499")


def test_a_single_slice_is_a_problem_as_it_is_to_predict(tmp_path: Path) -> None:
    write(tmp_path / "images/a.nii.gz", scan()[:, :, :1])
    write(tmp_path / "labels/a.nii.gz", mask()[:, :, 1:2])
    dataset = describe(tmp_path)
    checked, (problem,) = check_case(dataset, list_cases(dataset)[0])
    assert checked is None
    assert problem[:2] == ("a", "scan.one_slice")


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_problems_of_the_dataset_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "images/a.nii.gz", scan())
    (tmp_path / "b.csv").write_text("case,class,x1,y1,z1,x2,y2,z2\na,liver,1,1,1,3,3,x\nz,liver,1,1,1,3,3,3\n")
    table = {"kind": "boxes_csv", "file": "b.csv", "frame": "voxel"}
    report = check(describe(tmp_path, annotations=table), progress=SilentProgress())
    assert [(problem.case_id, problem.code) for problem in report.problems] == [
        (None, "annotations.no_match"),
        (None, "annotations.number"),
        (None, "folds"),
    ]
    assert report.problems[2].message == "folds.num_folds: 3 folds need as many patients, there are 1."
    with pytest.raises(ConfigError, match="no such folder"):
        check(describe(tmp_path / "elsewhere"), progress=SilentProgress())
    empty = check(describe(tmp_path, images={"glob": "none/*"}, annotations=table), progress=SilentProgress())
    assert [problem.code for problem in empty.problems][-1] == "dataset.no_images"
    assert (empty.num_cases, empty.spacing_mm) == (0, None)


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_worker_that_dies_is_one_problem(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"images/{name}.nii.gz", scan())
        write(tmp_path / f"labels/{name}.nii.gz", mask())
    dataset = describe(tmp_path)

    def die(dataset: Dataset, source: CaseSource) -> CaseResult:
        if source.case_id == "a":
            os._exit(1)
        if source.case_id == "b":
            raise ZeroDivisionError("nobody foresaw this")
        return check_case(dataset, source)

    found = [result for _, result in check_cases(die, dataset, list_cases(dataset), progress=SilentProgress())]
    assert [checked.case_id for checked, _ in found if checked] == ["c"]
    problems = sorted(problem for _, wrong in found for problem in wrong)
    assert [problem[:2] for problem in problems] == [("a", "check.worker_died"), ("b", "check.unforeseen")]
    assert "ZeroDivisionError: nobody foresaw this" in problems[1].message


@pytest.mark.ray
@pytest.mark.data
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("name", ["luna16_style", "lidc_dicom", "sts_ct", "ts_spleen"])
def test_real_scans(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXRAY_TEST_DATA", str(shared_data))
    report = check(read_dataset(DESCRIPTORS / f"{name}.toml"), progress=SilentProgress())
    assert len(report.cases) == report.num_cases == {"luna16_style": 2, "sts_ct": 4}.get(name, 1)
    assert all(sum(case.objects) == 1 for case in report.cases)
    assert report.problems == ()


def test_a_problem_is_plain_data() -> None:
    assert tuple(DatasetProblem(None, "a.b", "c.", "d.")) == (None, "a.b", "c.", "d.")


def test_for_a_recipe_it_says_what_its_grid_loses_where_that_matters(tmp_path: Path) -> None:
    labels = mask()
    labels[9, 8, 5] = 2
    write(tmp_path / "images/a.nii.gz", scan())
    write(tmp_path / "labels/a.nii.gz", labels)
    dataset, grid = describe(tmp_path), GridConfig(spacing_mm=(2.0, 2.0, 4.0))
    (source,) = list_cases(dataset)
    assert check_case(dataset, source)[1] == []
    (warning,) = check_case(dataset, source, grid=grid, task="segmentation")[1]
    assert isinstance(warning, CaseWarning)
    assert warning.message.startswith("all of spleen (1 voxel, 2 mm3) has no voxel left at 2 x 2 x 4 mm")
    (problem,) = check_case(dataset, source, grid=grid, task="detection")[1]
    assert isinstance(problem, DatasetProblem)
    assert problem.code == "resample.object_lost"

"""Class names as coded concepts."""

from __future__ import annotations

import tomllib

import pytest
from pydicom.sr.codedict import codes

from conftest import REPOSITORY
from voxray.results.writers.coded_concepts import ABNORMALITY, ANATOMY, UNSORTED, concept_of, private_code, shown

GOLDEN = {
    "spleen": ("78961009", None),
    "liver": ("10200004", None),
    "kidney_left": ("64033007", "7771000"),
    "right kidney": ("64033007", "24028007"),
    "vertebrae_T12": ("23215003", None),
    "vertebrae_C1": ("14806007", None),
    "rib_right_4": ("113197003", "24028007"),
    "lung_middle_lobe_right": ("72481006", None),
    "heart_atrium_left": ("82471001", None),
    "spine": ("421060004", None),
}
"""SNOMED CT, from DICOM's context groups (PS3.16 CID 4, 4031, 7192)."""


@pytest.mark.parametrize(("name", "wanted"), GOLDEN.items())
def test_known_parts_of_the_body(name: str, wanted: tuple[str, str | None]) -> None:
    concept = concept_of(name)
    assert concept.category == ANATOMY
    assert concept.is_anatomy
    assert (concept.type.scheme_designator, concept.type.value) == ("SCT", wanted[0])
    assert (concept.side and concept.side.value) == wanted[1]


def test_a_nodule_is_in_the_lung_where_the_dataset_says_so() -> None:
    assert concept_of("lung_nodule").site == concept_of("nodule", dataset="LUNA16_monai").site == codes.SCT.Lung
    elsewhere = concept_of("nodule", dataset="thyroids")
    assert (elsewhere.type, elsewhere.site, elsewhere.category) == (codes.SCT.Nodule, None, ABNORMALITY)


@pytest.mark.parametrize("name", ["hip_left", "gluteus_maximus_right", "heart_myocardium", "vertebrae_S1"])
def test_anatomy_without_a_concept_keeps_its_name(name: str) -> None:
    concept = concept_of(name)
    assert (concept.category, concept.type.scheme_designator, concept.type.meaning) == (ANATOMY, "99VOXRAY", name)


@pytest.mark.parametrize("name", ["bright", "left", "", "spleen tumour", "kidney left right", "vertebrae_T13"])
def test_what_is_not_known_is_not_guessed(name: str) -> None:
    concept = concept_of(name)
    assert concept.category == UNSORTED
    assert concept.type.scheme_designator == "99VOXRAY"


@pytest.mark.parametrize("file", ["totalsegmentator", "totalsegmentator_v2"])
def test_classes_of_whole_bodies_differ(file: str) -> None:
    classes = tomllib.loads((REPOSITORY / "datasets" / f"{file}.toml").read_text())["classes"]
    concepts = {name: concept_of(name) for name in classes if not name.startswith("rib_")}
    assert len({(one.type, one.side, one.site) for one in concepts.values()}) == len(concepts)
    coded = [name for name, concept in concepts.items() if concept.type.scheme_designator == "SCT"]
    assert len(coded) > 0.75 * len(concepts)
    assert all(
        (concept.side is None) or name.split("_")[-1] in ("left", "right") for name, concept in concepts.items()
    )


def test_private_codes_fit_dicom_texts() -> None:
    codes_ = [private_code(name) for name in ("a", "x" * 90, "naïve", "a\\b", "x" * 91)]
    assert len({code.value for code in codes_}) == len(codes_)
    for code in codes_:
        assert 0 < len(code.value) <= 16
        assert code.value.isascii()
        assert "\\" not in code.value + code.meaning
        assert 0 < len(code.meaning) <= 64
    assert shown(" \\\n") == "unnamed"

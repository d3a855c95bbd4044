"""Splits: whole patients, every case on one side, the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.core.config import parse
from voxray.core.errors import ConfigError
from voxray.dataset import CaseSource, num_folds, split
from voxray.dataset.folds import (
    CsvSides,
    Folds,
    Holdout,
    KFold,
    Lists,
    Luna16Subsets,
    NoFolds,
    SortedTail,
    cross_splits,
    scored_side,
)


def case(case_id: str, patient_id: str | None = None, image: str = "") -> CaseSource:
    return CaseSource(case_id, patient_id or case_id, image)


def cohort(scans_of_patient: list[int]) -> list[CaseSource]:
    return [case(f"p{p}_{s}", f"p{p}") for p, count in enumerate(scans_of_patient) for s in range(count)]


COHORTS = st.lists(st.integers(1, 4), min_size=12, max_size=40).map(cohort)
RULES: st.SearchStrategy[Folds] = st.one_of(
    st.builds(KFold, num_folds=st.integers(2, 6), seed=st.integers(0, 99), test_share=st.sampled_from([0.0, 0.2])),
    st.builds(Holdout, val_share=st.sampled_from([0.1, 0.3]), test_share=st.sampled_from([0.0, 0.2])),
)


@settings(deadline=None)
@given(cases=COHORTS, folds=RULES, data=st.data())
def test_each_case_is_on_one_side_and_no_patient_on_two(
    cases: list[CaseSource], folds: Folds, data: st.DataObject
) -> None:
    fold = data.draw(st.integers(0, num_folds(folds) - 1))
    found = split(cases, folds, fold)
    ids = found.train_ids + found.val_ids + found.test_ids
    assert sorted(ids) == sorted(c.case_id for c in cases)
    patients = [{c.patient_id for c in side} for side in found]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]
    assert found.train
    assert found.val


@settings(deadline=None)
@given(cases=COHORTS, folds=RULES, seed=st.randoms(use_true_random=False))
def test_the_order_of_the_cases_does_not_matter(cases: list[CaseSource], folds: Folds, seed: object) -> None:
    shuffled = list(cases)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split(shuffled, folds, 0) == split(cases, folds, 0)


@settings(deadline=None)
@given(cases=COHORTS, count=st.integers(2, 8), seed=st.integers(0, 9), test_share=st.sampled_from([0.0, 0.25]))
def test_over_all_folds_each_case_validates_once(
    cases: list[CaseSource], count: int, seed: int, test_share: float
) -> None:
    folds = KFold(num_folds=count, seed=seed, test_share=test_share)
    found = [split(cases, folds, k) for k in range(count)]
    assert len({part.test_ids for part in found}) == 1
    validated = [case_id for part in found for case_id in part.val_ids]
    assert sorted(validated) == sorted({c.case_id for c in cases} - set(found[0].test_ids))
    sizes = [len({c.patient_id for c in part.val}) for part in found]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(cases=COHORTS, count=st.integers(3, 8), seed=st.integers(0, 9))
def test_a_rotating_test_set_tests_each_case_once_and_never_what_validated(
    cases: list[CaseSource], count: int, seed: int
) -> None:
    folds = KFold(num_folds=count, seed=seed, rotating_test=True)
    found = cross_splits(cases, folds, range(count))
    for fold, part in found.items():
        assert part.test_ids == found[(fold + 1) % count].val_ids
        assert sorted(part.train_ids + part.val_ids + part.test_ids) == sorted(case.case_id for case in cases)
    assert sorted(name for part in found.values() for name in part.test_ids) == sorted(c.case_id for c in cases)
    assert scored_side(folds) == "test"
    assert split(cases, folds, None).train == tuple(sorted(cases, key=lambda case: case.case_id))


def test_sixty_twenty_twenty_in_three_ways() -> None:
    cases = cohort([1] * 20)
    for folds in (
        Holdout(val_share=0.2, test_share=0.2),
        KFold(num_folds=4, test_share=0.2),
        KFold(num_folds=5, rotating_test=True),
    ):
        for part in cross_splits(cases, folds, range(num_folds(folds))).values():
            assert tuple(map(len, part)) == (12, 4, 4)
    assert scored_side(KFold(num_folds=4, test_share=0.2)) == scored_side(Holdout(test_share=0.2)) == "val"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"test_share": 0.2, "rotating_test": True}, "folds: test_share and rotating_test are two ways"),
        ({"num_folds": 2, "rotating_test": True}, "rotating_test needs num_folds of 3 or more, got 2"),
    ],
)
def test_a_test_set_is_described_once(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(KFold, fields, where="folds")


def test_another_seed_gives_another_split() -> None:
    cases = cohort([1] * 20)
    found = {split(cases, KFold(seed=seed), 0).val_ids for seed in range(5)}
    assert len(found) == 5


def test_no_fold_trains_on_all_but_the_test_set() -> None:
    cases = cohort([2] * 10)
    found = split(cases, KFold(test_share=0.2), None)
    assert len(found.train) == 16
    assert found.val == ()
    assert found.test_ids == split(cases, KFold(test_share=0.2), 3).test_ids


def test_a_dataset_without_folds_trains_on_all_or_not_at_all() -> None:
    cases = cohort([1])
    assert num_folds(NoFolds()) == 0
    assert split(cases, NoFolds(), None).train == tuple(cases)
    with pytest.raises(ConfigError, match=r"fold 0: folds\.kind 'none' has no folds"):
        split(cases, NoFolds(), 0)


@pytest.mark.parametrize(("folds", "allowed"), [(KFold(num_folds=3), "0 to 2"), (Holdout(), "the fold 0")])
@pytest.mark.parametrize("fold", [-1, 7])
def test_an_unknown_fold_names_the_allowed(folds: Folds, allowed: str, fold: int) -> None:
    with pytest.raises(ConfigError, match=allowed):
        split(cohort([1] * 9), folds, fold)


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 folds need as many patients, there are 4"):
        split(cohort([3] * 4), KFold(), 0)


def test_the_sorted_tail_is_the_published_split_of_task09() -> None:
    # The 41 numbers of Task09_Spleen's training list; MONAI's bundle validates the last nine of the sorted names.
    numbers = "2 3 6 8 9 10 12 13 14 16 17 18 19 20 21 22 24 25 26 27 28 29 31 32 33 38 40 41 44 45 46 47 49 52 53 "
    numbers += "56 59 60 61 62 63"
    cases = [case(f"spleen_{number}") for number in numbers.split()]
    found = split(cases, SortedTail(), 0)
    assert len(found.train) == 32
    assert found.val_ids == tuple(f"spleen_{n}" for n in (56, 59, 6, 60, 61, 62, 63, 8, 9))
    with pytest.raises(ConfigError, match="leave none to train"):
        split(cases[:9], SortedTail(), 0)


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_lists_in_the_form_of_nnu_net(tmp_path: Path) -> None:
    file = write(tmp_path / "s.json", [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}])
    folds, cases = Lists(file=file), [case(name) for name in "abc"]
    assert num_folds(folds) == 2
    assert split(cases, folds, 0).val_ids == ("c",)
    assert split(cases, folds, 1).val_ids == ("a", "b")


def test_lists_in_the_form_of_monai_with_a_file_each(tmp_path: Path) -> None:
    for k, (train, val) in enumerate((("1.2.3", "1.2.4"), ("1.2.4", "1.2.3"))):
        entry = {"training": [{"image": f"{train}/{train}.nii.gz"}], "validation": [{"image": f"{val}/{val}.nii.gz"}]}
        write(tmp_path / f"dataset_fold{k}.json", entry)
    folds = Lists(file=str(tmp_path / "dataset_fold{fold}.json"))
    assert num_folds(folds) == 2
    assert split([case("1.2.3"), case("1.2.4")], folds, 1).val_ids == ("1.2.3",)


def test_a_monai_data_list_with_a_fold_for_each_entry(tmp_path: Path) -> None:
    entries = [{"image": f"imagesTr/c{i}.nii.gz", "label": f"labelsTr/c{i}.nii.gz", "fold": i % 3} for i in range(6)]
    content = {"training": entries, "testing": ["imagesTs/t0.nii.gz", {"image": ["imagesTs/t1.nii.gz"]}]}
    folds, cases = Lists(file=write(tmp_path / "d.json", content)), [case(f"c{i}") for i in range(6)]
    cases += [case("t0"), case("t1")]
    assert (num_folds(folds), scored_side(folds)) == (3, "val")
    found = cross_splits(cases, folds, range(3))
    assert [part.val_ids for part in found.values()] == [("c0", "c3"), ("c1", "c4"), ("c2", "c5")]
    assert found[1].train_ids == ("c0", "c2", "c3", "c5")
    assert {part.test_ids for part in found.values()} == {("t0", "t1")}
    assert split(cases, folds, None).test_ids == ("t0", "t1")


def test_lists_whose_test_sets_rotate_are_scored_on_them(tmp_path: Path) -> None:
    content = [{"train": ["a"], "val": ["b"], "test": ["c"]}, {"train": ["b"], "val": ["c"], "test": ["a"]}]
    folds, cases = Lists(file=write(tmp_path / "s.json", content)), [case(name) for name in "abc"]
    assert scored_side(folds) == "test"
    assert split(cases, folds, None).train_ids == ("a", "b", "c")
    same = [{**entry, "test": ["z"]} for entry in content]
    assert scored_side(Lists(file=write(tmp_path / "t.json", same))) == "val"


def test_pickled_splits_are_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.pkl"
    file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ConfigError, match=r"splits_final\.pkl: pickles are not read.* write the splits as JSON"):
        num_folds(Lists(file=str(file)))


def test_a_patient_that_two_folds_hold_out_is_refused(tmp_path: Path) -> None:
    content = [{"train": ["a"], "val": ["b1"]}, {"train": ["a"], "val": ["b2"]}]
    folds = Lists(file=write(tmp_path / "s.json", content), partial=True)
    cases = [case("a"), case("b1", "b"), case("b2", "b")]
    with pytest.raises(ConfigError, match=r"patient b is held out in fold 0 \(case b1\) and in fold 1 \(case b2\)"):
        cross_splits(cases, folds, (0, 1))
    assert cross_splits(cases, folds, (1,))[1].val_ids == ("b2",)


def test_a_fold_without_validation_cases_is_refused(tmp_path: Path) -> None:
    content = [{"train": ["a"], "val": ["b"]}, {"train": ["a", "b"], "val": [], "test": ["c"]}]
    folds = Lists(file=write(tmp_path / "s.json", content), partial=True)
    with pytest.raises(ConfigError, match="fold 1: no case validates, so nothing would be scored"):
        cross_splits([case(name) for name in "abc"], folds, (0, 1))


def test_lists_that_do_not_fit_the_cases_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "s.json", {"train": ["a", "b"], "val": ["c"]})
    with pytest.raises(ConfigError, match="lists cases that are not there: c;"):
        split([case("a"), case("b")], Lists(file=file), 0)
    with pytest.raises(ConfigError, match="leaves out cases: d;"):
        split([case(name) for name in "abcd"], Lists(file=file), 0)
    found = split([case(name) for name in "acd"], Lists(file=file, partial=True), 0)
    assert (found.train_ids, found.val_ids) == (("a",), ("c",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"train": ["a"], "val": ["a"]}, "a in both train and val"),
        ({"training": "a"}, "training must be a list"),
        ({"cases": ["a"]}, "must be a table with the lists"),
        ({"train": [3]}, "each entry must be a case id"),
        ([], "the list is empty"),
        ({"training": [{"image": "a", "fold": 0}, {"image": "b"}]}, "each entry needs a fold from 0, got"),
        ({"training": [{"image": "a", "fold": 0}, {"image": "b", "fold": 2}]}, "no entry is in fold 1"),
        ({"training": [{"image": "a", "fold": 0}], "validation": ["b"]}, "keep one of the two"),
    ],
)
def test_broken_lists_are_refused(tmp_path: Path, content: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        split([case("a")], Lists(file=write(tmp_path / "s.json", content)), 0)


def test_a_list_file_that_is_absent_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folds\.file: .*cannot be read"):
        split([case("a")], Lists(file=str(tmp_path / "none.json")), 0)
    with pytest.raises(ConfigError, match="fold 0 must exist"):
        num_folds(Lists(file=str(tmp_path / "f{fold}.json")))


def test_lists_that_tear_a_patient_apart_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "s.json", {"train": ["a1"], "val": ["a2"]})
    with pytest.raises(ConfigError, match=r"patient a is in train \(case a1\) and in val \(case a2\)"):
        split([case("a1", "a"), case("a2", "a")], Lists(file=file), 0)


def test_sides_from_a_csv_column(tmp_path: Path) -> None:
    file = tmp_path / "meta.csv"
    file.write_text("image_id;age;split\ns1;50;train\ns2;60;val\ns3;70;test\ns4;9;train\n")
    folds = CsvSides(file=str(file), case_column="image_id", delimiter=";", partial=True)
    found = split([case(name) for name in ("s1", "s2", "s3")], folds, 0)
    assert found.train_ids + found.val_ids + found.test_ids == ("s1", "s2", "s3")
    with pytest.raises(ConfigError, match="no column 'case'; found image_id, age, split"):
        split([case("s1")], CsvSides(file=str(file), delimiter=";"), 0)
    file.write_text("case,split\ns1,training\ns2,later\n")
    with pytest.raises(ConfigError, match=r"meta\.csv line 3: must be train, val or test, got 'later'"):
        split([case("s1")], CsvSides(file=str(file)), 0)


def test_luna16_subsets_from_folders_and_from_the_table_agree(tmp_path: Path) -> None:
    table = {f"subset{k}": [f"{k}.{i}" for i in range(3)] for k in range(10)}
    file = write(tmp_path / "subsets.json", table)
    cases = [case(uid, image=f"luna/{name}/{uid}.mhd") for name, uids in table.items() for uid in uids]
    for fold in range(10):
        found = split(cases, Luna16Subsets(), fold)
        assert found == split(cases, Luna16Subsets(file=file), fold)
        assert found.val_ids == tuple(table[f"subset{fold}"])
        assert len(found.train) == 27
    apart = split(cases, Luna16Subsets(val_share=0.1), 4)
    assert apart.test_ids == tuple(table["subset4"])
    assert (len(apart.val), len(apart.train)) == (3, 24)
    with pytest.raises(ConfigError, match="0 to 9"):
        split(cases, Luna16Subsets(), 10)


def test_luna16_cases_in_no_subset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lies in no folder subset0 to subset9"):
        split([case("1.2", image="luna/1.2.mhd")], Luna16Subsets(), 0)
    with pytest.raises(ConfigError, match=r"case 1\.2 is in no subset"):
        split([case("1.2")], Luna16Subsets(file=write(tmp_path / "s.json", {"subset0": ["1.3"]})), 0)
    with pytest.raises(ConfigError, match="must be a table such as"):
        split([case("1.2")], Luna16Subsets(file=write(tmp_path / "s.json", {"fold0": ["1.3"]})), 0)


def test_a_fold_that_holds_out_nothing_is_refused() -> None:
    cases = [case(f"1.{k}", image=f"luna/subset{k}/1.{k}.mhd") for k in range(2)]
    assert split(cases, Luna16Subsets(), 1).val_ids == ("1.1",)
    with pytest.raises(ConfigError, match="fold 5: no case is held out"):
        split(cases, Luna16Subsets(), 5)
    with pytest.raises(ConfigError, match="fold 0: no case is left to train"):
        split(cases[:1], Luna16Subsets(), 0)


@pytest.mark.data
def test_the_official_subsets_of_luna16(shared_data: Path) -> None:
    file = shared_data / "froc_luna16" / "luna16_subsets.json"
    uids = (shared_data / "froc_luna16" / "seriesuids.csv").read_text().split()
    cases = [case(uid) for uid in uids]
    assert len(cases) == 888
    sizes = [len(split(cases, Luna16Subsets(file=str(file)), k).val) for k in range(10)]
    assert sizes == [89] * 8 + [88] * 2

"""Every refusal's code is in the readers' table, and the table names no other."""

from __future__ import annotations

import re
from pathlib import Path

import voxray.readers

FOLDER = Path(voxray.readers.__file__).parent
FAMILIES = "dicom|nifti|metaimage|nrrd|grid|voxels|labels|path|scan"


def used_codes() -> set[str]:
    text = "\n".join(file.read_text() for file in FOLDER.glob("*.py"))
    return set(re.findall(rf'"((?:{FAMILIES})\.[a-z0-9_]+)"', text))


def test_the_table_and_the_code_name_the_same_codes() -> None:
    listed = re.findall(r"^\| `([a-z0-9_.]+)` \|", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == used_codes()


def test_every_refusal_names_its_code_in_plain_text() -> None:
    for file in FOLDER.glob("*.py"):
        for call in re.findall(r"refusal\(\s*([^,]+),", file.read_text()):
            assert re.fullmatch(rf'"(?:{FAMILIES})\.[a-z0-9_]+"|source\.codes\.\w+|outside|missing|code: str', call)


def test_every_code_has_a_test() -> None:
    tests = "\n".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert not {code for code in used_codes() if f'"{code}"' not in tests}

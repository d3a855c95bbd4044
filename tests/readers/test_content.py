"""Content: every file of a volume counts, and nothing but what it holds."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from voxray.core.errors import DataError
from voxray.readers import content_of, volume_content, volume_files

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 60


def write(path: Path, *, packed: bool = False) -> Path:
    """The voxels in the format that the file's name says, by SimpleITK."""
    path.parent.mkdir(exist_ok=True)
    image: Any = SimpleITK.GetImageFromArray(VOXELS)
    SimpleITK.WriteImage(image, str(path), packed)
    return path


def change(path: Path) -> None:
    """Another last byte; size and times stay as they were."""
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)


def test_the_content_of_one_file_is_what_sha256sum_prints(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    assert volume_content(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert volume_files(path) == (path,)


@pytest.mark.parametrize(
    ("name", "beside", "packed"),
    [
        ("a.mhd", "a.raw", False),
        ("a.mhd", "a.zraw", True),
        ("a.nhdr", "a.raw", False),
        ("a.nhdr", "a.raw.gz", True),
    ],
)
def test_a_header_does_not_stand_for_its_voxels(tmp_path: Path, name: str, beside: str, packed: bool) -> None:
    header = write(tmp_path / "p1" / name, packed=packed)
    data = header.with_name(beside)
    assert volume_files(header) == (header, data)
    first = volume_content(header)
    assert first == volume_content(Path(shutil.copytree(tmp_path / "p1", tmp_path / "p2")) / name)
    change(data)
    assert volume_content(header) != first
    other = tmp_path / "p2" / name
    text = other.read_text()
    other.write_text(text.replace("\n", "\n# a remark\n", 1) if name == "a.nhdr" else f"Comment = a\n{text}")
    assert volume_content(other) != first, "the header counts, too"


@pytest.mark.parametrize("name", ["OTHER.RAW", "voxels of another stem.bin"])
def test_the_data_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    header = write(tmp_path / "a.mhd")
    (tmp_path / "a.raw").rename(tmp_path / name)
    header.write_text(header.read_text().replace("a.raw", name))
    (tmp_path / "a.txt").write_text("a note of the same stem is no part of it")
    assert volume_files(header) == (header, tmp_path / name)
    first = volume_content(header)
    (tmp_path / "a.txt").unlink()
    assert volume_content(header) == first
    change(tmp_path / name)
    assert volume_content(header) != first


def test_a_series_is_all_of_its_slices_in_any_order(write_series: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_series((np.arange(4 * 4 * 5).reshape(4, 4, 5)).astype(np.uint16))
    first = volume_content(folder)
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        shutil.copy(path, moved / f"{number}.dcm")
    (moved / "notes.txt").write_text("what is not read is no part of it")
    assert volume_content(moved) == first
    change(moved / "2.dcm")
    assert volume_content(moved) != first
    (moved / "4.dcm").unlink()
    assert len(volume_files(moved)) == 4


def test_of_several_series_it_is_the_one_that_is_named(write_series: Callable[..., Path]) -> None:
    voxels = np.zeros((4, 4, 3), np.uint16)
    folder = write_series(voxels, SeriesInstanceUID="1.2.3")
    other = write_series(voxels + 7, folder="other", SeriesInstanceUID="1.2.4")
    alone = volume_content(folder), volume_content(other)
    for path in other.iterdir():
        shutil.copy(path, folder / f"other_{path.name}")
    assert (volume_content(folder, series_uid="1.2.3"), volume_content(folder, series_uid="1.2.4")) == alone
    with pytest.raises(DataError, match="several_series"):
        volume_content(folder)


def test_many_large_files_are_read_in_pieces(tmp_path: Path) -> None:
    import tracemalloc

    files = []
    for number in range(6):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(bytes([number]) * (8 << 20))
    tracemalloc.start()
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    tracemalloc.reset_peak()
    assert content_of(files) == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_what_cannot_be_read_has_no_content(tmp_path: Path) -> None:
    header = write(tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    with pytest.raises(DataError, match=r"metaimage.missing_data"):
        volume_content(header)
    with pytest.raises(DataError, match=r"path.missing"):
        volume_content(tmp_path / "b.nii.gz")

"""What the cells of an image mean by PS3.5 8.1.1, in every transfer syntax, against a slow reference.

Bits above those that are stored may hold anything (overlays): every table below sets them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jpeg_ls
import numpy as np
import openjpeg.utils
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from voxray.core.errors import DataError
from voxray.readers import describe, read_volume
from voxray.readers.dicom_pixels import decode, decode_pixels

NATIVE = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]
JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{last}" for last in (70, 80, 90))
SYNTAXES = [*NATIVE, RLELossless, JPEG_LOSSLESS, JPEG_LS, JPEG_2000]
SHAPE = (40, 36)
"""Columns and rows; JPEG 2000 needs 32 of each for its six resolutions."""


def meant(cell: int, *, bits: int, high: int, signed: bool) -> int:
    """The value of one cell, bit by bit."""
    value = sum(((cell >> (high + 1 - bits + place)) & 1) << place for place in range(bits))
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value


def cells_of(rng: np.random.Generator, bits: int) -> NDArray[np.uint16]:
    """Values over the whole range of the stored bits, with an overlay in all bits above on half of the image."""
    cells = rng.integers(0, 1 << bits, SHAPE[::-1]).astype(np.uint16)
    cells[0, :4] = (0, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1)
    cells[10:, :] |= np.uint16(0xFFFF & ~((1 << bits) - 1))
    cells[:, 7] |= np.uint16(0x8000 if bits < 16 else 0)
    return cells


def encoded(cells: NDArray[Any], syntax: str, *, precision: int = 16, signed: bool = False) -> bytes:
    """One frame as a codestream of its own precision and signedness."""
    if syntax == JPEG_2000:
        typed = cells.astype(np.int16 if signed else np.uint16)
        return bytes(openjpeg.utils.encode_array(typed, bits_stored=precision, photometric_interpretation=2))
    if syntax == JPEG_LS:
        data, (rows, columns) = cells.astype(np.uint16).tobytes(), cells.shape
        return bytes(jpeg_ls.encode_buffer(data, rows, columns, 1, precision))
    return jpeg_lossless(cells, precision)


def jpeg_lossless(cells: NDArray[Any], precision: int) -> bytes:
    """Process 14 of ITU T.81, each pixel predicted by the one before: differences in 17 classes, 5 bits a code."""
    rows, columns = cells.shape
    wide = cells.astype(int)
    predicted = np.empty_like(wide)
    predicted[:, 1:] = wide[:, :-1]
    predicted[1:, 0] = wide[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits: list[str] = []
    for difference in ((wide - predicted + 32768) % 65536 - 32768).ravel():
        size = 16 if difference == -32768 else int(abs(difference)).bit_length()
        rest = int(difference if difference > 0 else difference + (1 << size) - 1)
        bits.append(format(size, "05b") + ("" if size in (0, 16) else format(rest, f"0{size}b")))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    frame = bytes([precision]) + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + bytes([1, 1, 0x11, 0])
    table = bytes([0, *[0] * 4, 17, *[0] * 11]) + bytes(range(17))
    scan = bytes([1, 1, 0, 1, 0, 0])
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, scan) + data + b"\xff\xd9"


def write(  # noqa: PLR0913
    path: Path,
    cells: NDArray[Any],
    syntax: str,
    *,
    bits: int,
    signed: bool,
    precision: int = 16,
    stream_signed: bool = False,
    high_bit: int | None = None,
) -> Path:
    """A file of one frame; precision and signs are what its codestream states of itself."""
    dataset: Any = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    dataset.Modality, dataset.SeriesInstanceUID = "CT", "1.2.3"
    dataset.Rows, dataset.Columns = cells.shape
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 2
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, high_bit or bits - 1
    dataset.PixelRepresentation = int(signed)
    big = syntax == "1.2.840.10008.1.2.2"
    dataset.PixelData = (cells & 0xFFFF).astype(">u2" if big else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if syntax == RLELossless:
            dataset.file_meta.TransferSyntaxUID = NATIVE[1]
            dataset.compress(RLELossless)
        elif syntax not in NATIVE:
            dataset.PixelData = encapsulate([encoded(cells, syntax, precision=precision, signed=stream_signed)])
            dataset["PixelData"].VR = "OB"
        dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_every_syntax_gives_what_is_meant(
    tmp_path: Path, rng: np.random.Generator, syntax: str, signed: bool, bits: int
) -> None:
    cells = cells_of(rng, bits)
    path = write(tmp_path / "a.dcm", cells, syntax, bits=bits, signed=signed)
    wanted = [[meant(int(cell), bits=bits, high=bits - 1, signed=signed) for cell in row] for row in cells]
    assert np.array_equal(decode(path, syntax)[0], wanted)
    if bits == 12:
        assert np.array_equal(read_volume(path, accept_values=True).voxels[:, :, 0].T, wanted)


@pytest.mark.parametrize("stream_signed", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [12, 13, 16])
def test_a_codestream_may_state_other_signs(
    tmp_path: Path, rng: np.random.Generator, signed: bool, stream_signed: bool, bits: int
) -> None:
    values = rng.integers(0, 1 << bits, SHAPE[::-1])
    as_signed = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    stream = as_signed if stream_signed else values
    file = write(
        tmp_path / "a.dcm", stream, JPEG_2000, bits=bits, signed=signed, precision=bits, stream_signed=stream_signed
    )
    assert (decode(file, JPEG_2000)[0] == (as_signed if signed else values)).all()


def test_a_narrow_codestream_in_wide_cells_keeps_its_values(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(-2048, 2048, SHAPE[::-1])
    for bits, signed, shift in ((16, True, 0), (16, False, 2048)):
        file = write(
            tmp_path / "a.dcm",
            values + shift,
            JPEG_2000,
            bits=bits,
            signed=signed,
            precision=12,
            stream_signed=signed,
        )
        assert (decode(file, JPEG_2000)[0] == values + shift).all()
    # A codestream without signs that is as wide as its numbers, in a file that says that they have signs.
    file = write(tmp_path / "a.dcm", values & 0xFFF, JPEG_2000, bits=16, signed=True, precision=12)
    assert (decode(file, JPEG_2000)[0] == values).all()


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS])
def test_narrow_samples_without_signs_are_extended(tmp_path: Path, rng: np.random.Generator, syntax: str) -> None:
    values = rng.integers(-2048, 2048, SHAPE[::-1])
    for bits in (12, 16):
        file = write(tmp_path / "a.dcm", values & 0xFFF, syntax, bits=bits, signed=True, precision=12)
        assert (decode(file, syntax)[0] == values).all()


@pytest.mark.parametrize("syntax", [*NATIVE, RLELossless])
def test_stored_bits_may_lie_at_the_top(tmp_path: Path, rng: np.random.Generator, syntax: str) -> None:
    values = rng.integers(-2048, 2048, SHAPE[::-1])
    file = write(tmp_path / "a.dcm", (values & 0xFFF) << 4, syntax, bits=12, signed=True, high_bit=15)
    assert (decode(file, syntax)[0] == values).all()
    file = write(tmp_path / "b.dcm", values & 0xFFF, syntax, bits=12, signed=True, high_bit=15)
    pixels = decode_pixels(file, syntax)
    assert np.array_equal(pixels.values[0], values)
    assert pixels.is_misplaced
    file = write(tmp_path / "c.dcm", (values & 0xFFF) | 0x5000, syntax, bits=12, signed=True, high_bit=15)
    with pytest.raises(DataError, match="High Bit is 15"):
        decode(file, syntax)


def test_what_is_cut_off_is_told_with_its_number(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(-1000, 1000, SHAPE[::-1])
    cells = values & 0xFFFF
    assert describe(write(tmp_path / "a.dcm", cells, NATIVE[1], bits=12, signed=True), pixels=True).warnings == (
        "a single slice; its thickness of 2 mm is taken as the spacing",
    )
    cells[3, :5] ^= 0x8000
    info = describe(write(tmp_path / "a.dcm", cells, NATIVE[1], bits=12, signed=True), pixels=True)
    assert info.warnings[1].startswith("5 pixels have bits above those that are stored (overlays)")
    assert info.range_hu == (values.min(), values.max())


@pytest.mark.data
def test_real_jpeg_lossless_may_have_overlays_too(shared_data: Path, tmp_path: Path) -> None:
    """A real slice of each codec that is written here, decoded by what wrote the table of hashes (see the corpus)."""
    for name, syntax in (("WG04_CT1_JPLL", JPEG_LOSSLESS), ("WG04_CT1_JLSL", JPEG_LS), ("WG04_CT1_J2KR", JPEG_2000)):
        pixels = decode(shared_data / "dicom_hard" / "single_ct" / f"{name}.dcm", syntax)[0]
        cells = pixels.view(np.uint16) & 0xFFF
        cells[100:200] |= 0x9000
        again = write(tmp_path / "a.dcm", cells, syntax, bits=12, signed=True)
        assert (decode(again, syntax)[0] == np.where(pixels >= 2048, pixels - 4096, pixels)).all()


def test_a_high_bit_that_values_contradict_is_told(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(-1000, 1000, SHAPE[::-1])
    file = write(tmp_path / "a.dcm", values & 0xFFF, NATIVE[1], bits=12, signed=True, high_bit=15)
    info = describe(file, pixels=True)
    assert info.range_hu == (values.min(), values.max())
    assert any(text.startswith("High Bit does not say where values lie in 1 files") for text in info.warnings)

"""The stored values of a DICOM file's pixels, in any transfer syntax that is read here, exactly as they were meant.

Which library decodes what is fixed, so that a file gives the same values wherever voxray is installed: pydicom native
and RLE pixels, OpenJPEG JPEG 2000, GDCM (within SimpleITK) JPEG and JPEG-LS. They give cells as encoded; what a cell
means is worked out here, alike for all (PS3.5 8.1.1): the bits from High Bit down count, Bits Stored of them, and
the highest of these is the sign where Pixel Representation is 1. What lies above (overlays) is cut off.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from jaxtyping import Bool, Integer
from openjpeg import utils as openjpeg
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array

from voxray.readers.dicom_file import parts_of, read_with_pixels, value_of
from voxray.readers.refusals import refusal

Cells = np.ndarray[Any, Any]
"""Integers (frames y x)."""

NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}
DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = {"1.2.840.10008.1.2.5"}
_GDCM = {f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 57, 70, 80, 81)}
_OPENJPEG = {f"1.2.840.10008.1.2.4.{last}" for last in (90, 91, 201, 202, 203)}
TRANSFER_SYNTAXES = NATIVE | _RLE | _GDCM | _OPENJPEG

_END_OF_IMAGE = b"\xff\xd9"
_FRAME_STARTS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
"""JPEG's and JPEG-LS's markers of a frame's header, which begins with its length and the precision of samples."""


@dataclass(frozen=True)
class Layout:
    """How a file says that its pixels are laid out."""

    rows: int
    columns: int
    num_frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    padding: tuple[int, int] | None
    """Pixel Padding Value and Pixel Padding Range Limit, which is the same where there is none, as written."""


@dataclass(frozen=True)
class Pixels:
    """All frames of a file as stored values; no rescale slope or intercept is applied."""

    values: Integer[np.ndarray, "frames y x"]
    is_padding: Bool[np.ndarray, "frames y x"] | None
    """Where the values are those that the file names as padding; None where it names none."""
    num_cut: int
    """How many cells had bits beyond those that are stored, such as overlays."""
    num_excess: int
    """How many bytes followed native pixels within their element."""
    is_misplaced: bool
    """Whether the stored bits do not lie where High Bit says, but at the bottom of their cells."""


def decode(path: Path, transfer_syntax: str) -> Integer[np.ndarray, "frames y x"]:
    """All frames of a file as stored values."""
    return decode_pixels(path, transfer_syntax).values


def decode_pixels(path: Path, transfer_syntax: str) -> Pixels:
    """All frames of a file, with what the file says of padding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(path, transfer_syntax)
    except Exception as error:
        # Decoders raise anything that a damaged stream happens to cause.
        raise refusal(
            "dicom.bad_pixels",
            path,
            f"has pixel data that cannot be decoded ({type(error).__name__}: {str(error)[:200]}).",
            remedy="Copy or export the file again.",
        ) from None


def stored_values(
    cells: Cells, *, bits_stored: int, high_bit: int, is_signed: bool, codestream: tuple[int, bool] | None = None
) -> Cells:
    """What cells mean, by PS3.5 8.1.1, as integers of the cells' width.

    `codestream` is the precision and signedness that a compressed frame states of itself. It tells where the sign is
    when samples are narrower than Bits Stored, which matters where frame and file do not agree about signs.
    """
    width, shift = cells.dtype.itemsize * 8, high_bit + 1 - bits_stored
    kept = bits_stored
    if codestream is not None and codestream[1] != is_signed:
        kept = min(kept, codestream[0])
    # Up to the top of the cell, so that all above goes, and down again, arithmetically where there is a sign.
    turned = cells.view(np.dtype(f"{'i' if is_signed else 'u'}{cells.dtype.itemsize}")) << (width - kept - shift)
    return np.asarray(turned >> (width - kept))


def _decode(path: Path, transfer_syntax: str) -> Pixels:
    dataset = read_with_pixels(path)
    layout = _layout(dataset)
    excess = 0
    codestream: tuple[int, bool] | None = None
    if transfer_syntax in NATIVE | _RLE:
        if transfer_syntax in NATIVE:
            excess = _cut_to_length(dataset, layout)
        cells = pixel_array(_bare(dataset, layout))
    else:
        frames = _whole_frames(dataset, layout)
        codestream = _told_by(frames[0], transfer_syntax)
        cells = _by_openjpeg(frames) if transfer_syntax in _OPENJPEG else _by_gdcm(_bare(dataset, layout))
    # A decoder takes the narrowest type that its samples fit into, and may leave the file's order of bytes.
    num_bytes = max(cells.dtype.itemsize, layout.bits_allocated // 8)
    cells = np.ascontiguousarray(cells, f"={cells.dtype.kind}{num_bytes}").reshape(-1, *cells.shape[-2:])
    high_bit = _place_of_bits(cells, layout)
    values = stored_values(
        cells,
        bits_stored=layout.bits_stored,
        high_bit=high_bit,
        is_signed=layout.is_signed,
        codestream=codestream,
    )
    bits = cells.view(f"u{cells.dtype.itemsize}")
    is_padding = _padding(values, bits, layout)
    return Pixels(values, is_padding, _num_cut(bits, layout, is_padding), excess, high_bit != layout.high_bit)


def _layout(dataset: pydicom.Dataset) -> Layout:
    allocated = _integer(dataset, "BitsAllocated") or 16
    stored = _integer(dataset, "BitsStored") or allocated
    high = _integer(dataset, "HighBit")
    padding, limit = (_padding_value(dataset, f"PixelPadding{name}") for name in ("Value", "RangeLimit"))
    layout = Layout(
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        num_frames=_integer(dataset, "NumberOfFrames") or 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high is None else high,
        is_signed=bool(_integer(dataset, "PixelRepresentation")),
        padding=None if padding is None else (padding, padding if limit is None else limit),
    )
    if not 1 <= layout.bits_stored <= layout.high_bit + 1 <= layout.bits_allocated:
        raise ValueError(
            f"Bits Stored {layout.bits_stored} and High Bit {layout.high_bit} do not fit {layout.bits_allocated} "
            "bits allocated"
        )
    return layout


def _integer(dataset: pydicom.Dataset, name: str) -> int | None:
    value = value_of(dataset, name)
    return None if value is None else int(float(parts_of(value)[0]))


def _padding_value(dataset: pydicom.Dataset, name: str) -> int | None:
    """As `_integer`; what is no number names no padding."""
    try:
        return _integer(dataset, name)
    except ValueError:
        return None


def _bare(dataset: pydicom.Dataset, layout: Layout) -> pydicom.Dataset:
    """The pixels alone, as whole unsigned cells, so that a library has nothing to apply, shift or extend."""
    bare: Any = pydicom.Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    bare.Rows, bare.Columns, bare.NumberOfFrames = layout.rows, layout.columns, layout.num_frames
    bare.BitsAllocated = bare.BitsStored = layout.bits_allocated
    bare.HighBit, bare.PixelRepresentation = layout.bits_allocated - 1, 0
    bare["PixelData"] = dataset["PixelData"]
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare.set_original_encoding(*dataset.original_encoding)
    made: pydicom.Dataset = bare
    return made


def _cut_to_length(dataset: pydicom.Dataset, layout: Layout) -> int:
    """Cuts off what follows the pixels, as writers pad; returns how many bytes, or refuses more than padding."""
    promised = layout.rows * layout.columns * layout.num_frames * layout.bits_allocated // 8
    excess = len(dataset.PixelData) - promised
    frame, row = promised // layout.num_frames, layout.columns * layout.bits_allocated // 8
    if excess < 0 or excess >= frame or (excess >= row and any(dataset.PixelData[promised:])):
        raise ValueError(f"{len(dataset.PixelData)} bytes where the header promises {promised}")
    if excess:
        dataset["PixelData"].value = dataset.PixelData[: promised + promised % 2]
    return excess - promised % 2 if excess else 0


def _whole_frames(dataset: pydicom.Dataset, layout: Layout) -> list[bytes]:
    """The compressed frames; refuses those without JPEG's end mark: decoders fill what is cut off, silently."""
    frames = list(generate_frames(dataset.PixelData, number_of_frames=layout.num_frames))
    for number, frame in enumerate(frames, start=1):
        if not frame.rstrip(b"\0\xff").endswith(_END_OF_IMAGE):
            raise ValueError(f"frame {number} is cut off")
    return frames


def _told_by(frame: bytes, transfer_syntax: str) -> tuple[int, bool]:
    """The precision and signedness of a compressed frame; JPEG and JPEG-LS know no signs."""
    if transfer_syntax in _OPENJPEG:
        told = openjpeg.get_parameters(frame)
        return int(told["precision"]), bool(told["is_signed"])
    for marker, segment in _segments(frame):
        if marker in _FRAME_STARTS:
            return segment[0], False
    raise ValueError("a frame without a header")


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """JPEG's markers with what belongs to each, up to the first scan."""
    place = 2
    while place + 4 <= len(frame) and frame[place] == 0xFF:
        if frame[place + 1] == 0xFF:
            place += 1
            continue
        length = int.from_bytes(frame[place + 2 : place + 4], "big")
        yield frame[place + 1], frame[place + 4 : place + 2 + length]
        place += 2 + length


def _by_openjpeg(frames: list[bytes]) -> Cells:
    return np.stack([openjpeg.decode(frame) for frame in frames])


def _by_gdcm(bare: pydicom.Dataset) -> Cells:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.dcm"
        bare.save_as(file, enforce_file_format=True)
        return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))))


def _place_of_bits(cells: Cells, layout: Layout) -> int:
    """The highest of the stored bits: High Bit, unless the values show that they lie at the bottom of their cells."""
    low = layout.high_bit + 1 - layout.bits_stored
    bits = cells.view(f"u{cells.dtype.itemsize}")
    if low == 0 or not (bits & ((1 << low) - 1)).any():
        return layout.high_bit
    top = bits >> layout.bits_stored
    if ((top == 0) | (top == (1 << np.iinfo(bits.dtype).bits - layout.bits_stored) - 1)).all():
        return layout.bits_stored - 1
    raise ValueError(
        f"High Bit is {layout.high_bit} for {layout.bits_stored} bits stored, but values are not so placed"
    )


def _padding(values: Cells, bits: Cells, layout: Layout) -> Bool[np.ndarray, "frames y x"] | None:
    """Where cells are padding: by their values, or by all their bits where the padding value needs more than stored.

    A padding value may be written signed or unsigned, whatever the pixels are: 63536 is -2000 in 16 bits.
    """
    if layout.padding is None:
        return None
    cells = np.array(layout.padding, np.int64).astype(bits.dtype)
    ends = stored_values(
        cells, bits_stored=layout.bits_stored, high_bit=layout.bits_stored - 1, is_signed=layout.is_signed
    )
    if ((ends.view(bits.dtype) != cells) & (cells >> layout.bits_stored != 0)).any():
        return np.asarray((bits >= cells.min()) & (bits <= cells.max()))
    return np.asarray((values >= ends.min()) & (values <= ends.max()))


def _num_cut(bits: Cells, layout: Layout, is_padding: Bool[np.ndarray, "frames y x"] | None) -> int:
    """How many cells hold something above High Bit that is no sign."""
    above = np.iinfo(bits.dtype).bits - layout.high_bit - 1
    if above == 0:
        return 0
    top = bits >> (layout.high_bit + 1)
    is_sign = (top == (1 << above) - 1) & (bits >> layout.high_bit & 1).astype(bool)
    cut = (top != 0) & ~(is_sign if layout.is_signed else np.zeros_like(is_sign))
    return int(np.count_nonzero(cut if is_padding is None else cut & ~is_padding))

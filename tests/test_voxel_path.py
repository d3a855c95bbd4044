"""A bright sphere travels the whole road: DICOM -> case -> tiles -> patch, and window -> box -> millimetres.

The series is oblique and anisotropic and the network simply answers "bright", so any mistake about an axis, a flip or
where a box begins shows as a box that is not where the sphere was put.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from torch import Tensor, nn

from voxray.boxes.anchors import anchor_levels
from voxray.boxes.coding import encode
from voxray.core.case import Case, row_to_tile, tile_to_row
from voxray.core.detections import boxes_to_world
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import (
    AnchorConfig,
    DetectionLoss,
    DetectionMerge,
    GridConfig,
    InferenceConfig,
    NetworkConfig,
    OptimConfig,
    PatchConfig,
    Recipe,
    WindowIntensity,
)
from voxray.core.run import Run
from voxray.dataset import read_dataset
from voxray.inference.predictor import Predictor
from voxray.loading import list_cases, load_case
from voxray.preprocess import prepare_case
from voxray.readers import read_volume
from voxray.sampling import cut_patch, cut_tiles

CENTRE_MM = np.array([12.3, -20.7, 41.9])
RADIUS_MM = 9.0
SHAPE = (56, 64, 40)
SPACING_MM = (1.3, 1.1, 2.0)


class BrightConfig(NetworkConfig):
    """A network without weights whose one anchor in the middle of what is bright answers its exact extent."""

    kind: Literal["bright"] = "bright"
    tasks: ClassVar[tuple[str, ...]] = ("detection",)

    def build(self, recipe: Recipe, num_classes: int) -> nn.Module:
        assert num_classes == 1
        return Bright(recipe)

    @property
    def stride_vox(self) -> tuple[int, int, int]:
        return (4, 4, 4)

    @property
    def level_strides_vox(self) -> tuple[tuple[int, int, int], ...]:
        return ((4, 4, 4),)


class Bright(nn.Module):
    """Bright is what lies above half of the window between the sphere and what surrounds it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self._recipe = recipe

    def forward(self, images: Tensor) -> DetectionOutput:
        shape = [side // 4 for side in images.shape[2:]]
        logits = torch.full((len(images), 1, *shape), -20.0)
        deltas = torch.zeros((len(images), 6, *shape))
        for index, image in enumerate(images[:, 0]):
            bright = torch.nonzero(image > 0.5)
            if len(bright):
                box = torch.cat([bright.amin(0), bright.amax(0) + 1]).float()
                place = [int(value) // 4 for value in (box[:3] + box[3:]) / 2]
                flat = int(np.ravel_multi_index(place, shape))
                assert self._recipe.anchors is not None
                (level,) = anchor_levels(self._recipe.anchors, [shape], ((4, 4, 4),))
                x, y, z = place
                deltas[index, :, x, y, z] = encode(
                    box[None], level.boxes_at(torch.tensor([flat]), torch.tensor([0]))
                )[0]
                logits[index, 0, x, y, z] = len(bright) / 1000  # what a window cuts is less sure
        return DetectionOutput((logits,), (deltas,))


RECIPE = Recipe(
    name="bright",
    grid=GridConfig(spacing_mm=(1.0, 1.0, 1.25)),
    intensity=WindowIntensity(low_hu=-800, high_hu=300),
    patch=PatchConfig(size_vox=(32, 32, 32), margin_vox=(8, 8, 8), max_object_vox=(24, 24, 24), foreground=1.0),
    network=BrightConfig(),
    anchors=AnchorConfig(base_shapes_vox=((16.0, 16.0, 16.0),), level_scales=(1.0,)),
    loss=DetectionLoss(),
    optim=OptimConfig(rate=0.1, epochs=1, batch_size=1),
    inference=InferenceConfig(window_vox=(48, 48, 48), overlap=0.5),
    merge=DetectionMerge(),
)


@pytest.fixture(scope="module", params=["oblique", "feet_first", "sagittal"])
def series(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT series of the sphere in air, with slices along some direction of the patient."""
    turn = np.linalg.qr(np.array([[0.93, 0.24, -0.2], [-0.3, 0.95, 0.1], [0.2, -0.1, 0.97]]))[0]
    axes = {
        "oblique": turn * np.sign(np.diag(turn)),
        "feet_first": np.diag([-1.0, 1.0, -1.0]),
        "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    }[request.param]
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    origin = CENTRE_MM + np.array([3.1, -2.2, 1.7]) - axes @ (np.array(SHAPE) / 2 * SPACING_MM)
    folder = tmp_path_factory.mktemp(request.param) / "scan"
    folder.mkdir()
    write_series(folder, paint_sphere(axes, origin), axes=axes, origin=origin)
    return folder


def paint_sphere(axes: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.int16]:
    """Each voxel's mean over 3x3x3 points, as a scanner would average."""
    fine = 3
    index = [(np.arange(side * fine) + 0.5) / fine - 0.5 for side in SHAPE]
    steps = [axis[:, None] * i * s for axis, i, s in zip(axes.T, index, SPACING_MM, strict=True)]
    offset = (origin - CENTRE_MM)[:, None, None, None]
    points = offset + steps[0][:, :, None, None] + steps[1][:, None, :, None] + steps[2][:, None, None, :]
    inside = (points**2).sum(0) <= RADIUS_MM**2
    share = inside.reshape(SHAPE[0], fine, SHAPE[1], fine, SHAPE[2], fine).mean((1, 3, 5))
    return np.asarray(np.rint(-800 + 1100 * share), np.int16)


def write_series(
    folder: Path, voxels: NDArray[np.int16], *, axes: NDArray[np.float64], origin: NDArray[np.float64]
) -> None:
    """One file a slice, in an order that says nothing."""
    uid, frame = generate_uid(), generate_uid()
    for z in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.FrameOfReferenceUID = uid, frame, frame
        slice_.Modality, slice_.PatientID, slice_.PatientName = "CT", "sphere", "sphere"
        slice_.Rows, slice_.Columns = voxels.shape[1], voxels.shape[0]
        slice_.ImageOrientationPatient = [float(f"{value:.10f}") for value in [*axes[:, 0], *axes[:, 1]]]
        slice_.ImagePositionPatient = [float(f"{v:.8f}") for v in origin + axes[:, 2] * z * SPACING_MM[2]]
        slice_.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
        slice_.SliceThickness = 5.0
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelData = (voxels[:, :, z].T + np.int16(1024)).tobytes()
        pydicom.dcmwrite(folder / f"{(z * 7) % voxels.shape[2]:03d}.dcm", slice_, enforce_file_format=True)


@pytest.fixture
def case(series: Path) -> Case:
    """The series as an annotated case, by way of a dataset file and LUNA16's CSV."""
    folder = series.parent
    x, y, z = CENTRE_MM
    (folder / "annotations.csv").write_text(
        f"seriesuid,coordX,coordY,coordZ,diameter_mm\nscan,{x},{y},{z},{2 * RADIUS_MM}\n"
    )
    (folder / "dataset.toml").write_text(
        'name = "sphere"\nlicence = "CC0-1.0"\nclasses = ["sphere"]\n'
        '[images]\nglob = "scan"\n[annotations]\nkind = "spheres_csv"\nfile = "annotations.csv"\n'
    )
    dataset = read_dataset(folder / "dataset.toml")
    (source,) = list_cases(dataset)
    return load_case(dataset, source)


def true_box_mm() -> NDArray[np.float64]:
    return np.concatenate([CENTRE_MM - RADIUS_MM, CENTRE_MM + RADIUS_MM])


def half_a_voxel_mm(case: Case) -> NDArray[np.float64]:
    """Half of the scan's voxel, as it lies along the patient's axes."""
    half = np.abs(case.image.grid.rotation) @ np.asarray(case.image.grid.spacing_mm) / 2 + 1e-3
    return np.concatenate([half, half])


def test_the_annotation_lies_where_the_sphere_is(case: Case) -> None:
    inside = boxes_to_world(case.boxes, case.image.grid)
    np.testing.assert_allclose(inside[0], true_box_mm(), atol=1e-3)
    x1, y1, z1, x2, y2, z2 = np.rint(case.boxes[0]).astype(int)
    bright = np.argwhere(case.image.voxels > -250)
    np.testing.assert_allclose([*bright.min(0), *(bright.max(0) + 1)], [x1, y1, z1, x2, y2, z2], atol=1.0)


def test_the_box_still_fits_after_resampling(case: Case) -> None:
    prepared = prepare_case(case, RECIPE.grid)
    assert prepared.image.grid.orientation == "RAS"
    bright = np.argwhere(prepared.image.voxels > -250)
    seen = np.concatenate([bright.min(0), bright.max(0) + 1])
    assert np.abs(seen - prepared.boxes[0]).max() <= 1.0
    assert np.abs(seen - prepared.boxes[0]).mean() <= 0.5
    np.testing.assert_allclose(boxes_to_world(prepared.boxes, prepared.image.grid)[0], true_box_mm(), atol=1e-3)


def test_a_training_patch_has_the_box_where_it_is_bright(case: Case, rng: np.random.Generator) -> None:
    tiles = list(cut_tiles(prepare_case(case, RECIPE.grid), RECIPE))
    whole = [row_to_tile(tile_to_row(tile)) for tile in tiles if len(tile.boxes)]
    assert whole
    for tile in whole:
        patch = cut_patch(tile, RECIPE, rng, foreground=True)
        bright = np.argwhere(patch.voxels > -250)
        assert np.abs([*bright.min(0), *(bright.max(0) + 1)] - patch.boxes[0]).max() <= 1.0


def test_the_prediction_comes_back_in_millimetres(case: Case, series: Path) -> None:
    run = Run(name="bright", dataset="sphere", licence="CC0-1.0", classes=("sphere",), recipe={}, voxray_version="0")
    predictor = Predictor(run, RECIPE, BrightConfig().build(RECIPE, 1).eval())
    found = predictor.predict(read_volume(series)).world
    assert found.frame == "LPS"
    assert np.all(np.abs(found.boxes[0] - true_box_mm()) <= half_a_voxel_mm(case)), found.boxes[0] - true_box_mm()

"""The Open Inference Protocol as NVIDIA's client speaks it, against a service whose networks answer "bright"."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from support.bright_runs import TURNS, register, write_run
from support.bright_scans import sphere_scan
from support.listening import Listening, listening
from support.odd_scans import DISAGREE, contradict
from voxray.core.volume import Volume
from voxray.readers import read_label_map, write_nifti

ANGLES = (5.0, 0.0, -8.0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """A detector and a segmentation of what is bright."""
    folder = tmp_path_factory.mktemp("kserve")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        models = {}
        for name, task in (("balls", "detection"), ("bright", "segmentation")):
            write_run(folder / name, task)
            models[name] = {"path": str(folder / name), "runtime": "torch"}
        with listening(folder, models, quota={"uploads_per_minute": 10_000}) as service:
            yield service


@pytest.fixture(scope="module")
def client(served: Listening) -> Iterator[triton.InferenceServerClient]:
    """Triton's client of the service."""
    with triton.InferenceServerClient(served.host) as one:
        yield one


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, Any]:
    """A bright sphere in an oblique scan, and its centre in LPS mm."""
    return sphere_scan(TURNS[1], angles_deg=ANGLES)


@pytest.fixture(scope="module")
def file(scan: tuple[Volume, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same as .nii.gz."""
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_nifti(scan[0], path)
    return path.read_bytes()


def volume(*files: bytes) -> list[triton.InferInput]:
    """The input that holds these files."""
    tensor = triton.InferInput("volume", [len(files)], "BYTES")
    return [tensor.set_data_from_numpy(np.array(files, dtype=np.object_))]


def studies_left(served: Listening) -> list[Path]:
    """What lies in the service's folder."""
    return [*served.service.places.studies.iterdir(), *served.service.places.jobs.iterdir()]


def test_it_says_what_it_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("balls")
    assert client.is_model_ready("balls", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    told = client.get_model_metadata("balls", "1")
    assert told["inputs"] == [{"name": "volume", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in told["outputs"]] == ["boxes", "scores", "labels"]
    assert told["parameters"]["classes"] == ["bright"]
    told = client.get_model_metadata("bright")
    assert [output["datatype"] for output in told["outputs"]] == ["BYTES", "UINT8"]


@pytest.mark.parametrize("binary", [True, False])
def test_boxes_lie_where_the_ball_is(
    client: triton.InferenceServerClient, served: Listening, scan: tuple[Volume, Any], file: bytes, binary: bool
) -> None:
    names = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "boxes", "scores")]
    result = client.infer("balls", volume(file), request_id="mine", outputs=names)
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["model_version"] == "1"
    boxes = result.as_numpy("boxes")
    assert boxes.shape == (1, 6)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose((boxes[0, :3] + boxes[0, 3:]) / 2, scan[1], atol=0.5)
    assert result.as_numpy("labels").tolist() == [0]
    assert result.as_numpy("scores")[0] > 0.5
    assert studies_left(served) == []


def test_a_mask_comes_as_a_file_and_as_voxels(
    client: triton.InferenceServerClient, scan: tuple[Volume, Any], file: bytes, tmp_path: Path
) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in ("mask", "mask_voxels")]
    result = client.infer("bright", volume(file), outputs=outputs)
    (tmp_path / "mask.nii.gz").write_bytes(result.as_numpy("mask")[0])
    mask = read_label_map(tmp_path / "mask.nii.gz")
    assert mask.grid.is_close(scan[0].grid)
    np.testing.assert_array_equal(mask.voxels, result.as_numpy("mask_voxels"))
    bright = scan[0].voxels > 0
    assert (2 * (bright & (mask.voxels > 0)).sum()) / (bright.sum() + (mask.voxels > 0).sum()) > 0.9
    by_itself = client.infer("bright", volume(file)).get_response()["outputs"]
    assert [output["name"] for output in by_itself] == ["mask"]


def test_bare_voxels_are_the_scan_that_their_geometry_says(
    client: triton.InferenceServerClient, served: Listening, scan: tuple[Volume, Any], file: bytes
) -> None:
    grid = scan[0].grid
    geometry = {
        "spacing_mm": list(grid.spacing_mm),
        "origin_mm": list(grid.origin_mm),
        "direction": ",".join(map(str, grid.direction)),
    }
    tensor = triton.InferInput("volume", list(grid.shape), "INT16").set_data_from_numpy(scan[0].voxels)
    bare = client.infer("balls", [tensor], parameters=geometry).as_numpy("boxes")
    np.testing.assert_allclose(bare, client.infer("balls", volume(file)).as_numpy("boxes"), atol=1e-3)
    with pytest.raises(InferenceServerException, match=r"need the parameter origin_mm"):
        client.infer("balls", [tensor], parameters={"spacing_mm": geometry["spacing_mm"]})
    with pytest.raises(InferenceServerException, match="nine cosines"):
        client.infer("balls", [tensor], parameters={**geometry, "direction": [1.0] * 9})
    with pytest.raises(InferenceServerException, match="spacing_mm must lie between"):
        client.infer("balls", [tensor], parameters={**geometry, "spacing_mm": [0, 1, 1]})
    assert studies_left(served) == []


def test_bodies_and_answers_may_be_packed(client: triton.InferenceServerClient, file: bytes) -> None:
    plain = client.infer("balls", volume(file)).as_numpy("boxes")
    for packing in ("gzip", "deflate"):
        packed = client.infer("balls", volume(file), request_compression_algorithm=packing)
        np.testing.assert_array_equal(packed.as_numpy("boxes"), plain)


def test_a_zip_is_a_scan_too(client: triton.InferenceServerClient, file: bytes) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("someone/scan.nii.gz", file)
    assert len(client.infer("balls", volume(held.getvalue())).as_numpy("boxes")) == 1


def test_what_is_worth_knowing_of_the_scan_is_a_parameter(
    client: triton.InferenceServerClient, file: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(file)
    assert "parameters" not in client.infer("balls", volume(file)).get_response()
    contradict(path)
    told = client.infer("balls", volume(path.read_bytes())).get_response()
    assert told["parameters"] == {"warnings": DISAGREE}


def post(served: Listening, model: str, body: bytes, **headers: str) -> httpx.Response:
    """A request as it is."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{served.url}/v2/models/{model}/infer", content=body, headers=named, timeout=60)


def test_a_raw_file_needs_no_json(served: Listening, file: bytes) -> None:
    reply = post(served, "balls", file, Inference_Header_Content_Length="0")
    assert reply.status_code == 200, reply.text
    assert [output["name"] for output in reply.json()["outputs"]] == ["boxes", "scores", "labels"]
    assert "id" not in reply.json()


def bare(**geometry: Sequence[float]) -> bytes:
    """A request with one voxel in a geometry."""
    told = {"spacing_mm": [1, 1, 1], "origin_mm": [0, 0, 0], "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1], **geometry}
    return json.dumps({"inputs": [BARE | {"parameters": told}]}).encode()


BARE = {"name": "volume", "datatype": "INT16", "shape": [1, 1, 1], "data": [1]}
HEAD = {"name": "volume", "datatype": "BYTES", "shape": [1]}
REFUSED: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "is no JSON": (400, b"nothing", {}),
    "must be 'volume' alone": (400, json.dumps({"inputs": [HEAD | {"name": "x", "data": ["a"]}]}).encode(), {}),
    "INT16 [x, y, z] in HU; got BYTES [0]": (
        400,
        json.dumps({"inputs": [HEAD | {"shape": [0], "data": []}]}).encode(),
        {},
    ),
    "in HU; got FP32 [1, 1, 1]": (
        400,
        json.dumps({"inputs": [{**HEAD, "datatype": "FP32", "shape": [1, 1, 1], "data": [1]}]}).encode(),
        {},
    ),
    "spacing_mm must lie between": (400, bare(spacing_mm=[1e-300, 1, 1]), {}),
    "origin_mm must lie within": (400, bare(origin_mm=[1e38, 0, 0]), {}),
    "is none of the model's": (
        400,
        json.dumps({"inputs": [HEAD | {"data": ["a"]}], "outputs": [{"name": "masks"}]}).encode(),
        {},
    ),
    "must be a number of bytes": (400, b"{}", {"Inference_Header_Content_Length": "-1"}),
    "says 99 bytes of JSON": (400, b"{}", {"Inference_Header_Content_Length": "99"}),
    "holds no file of a known form": (415, b"nothing", {"Inference_Header_Content_Length": "0"}),
    "Content-Encoding is not known": (415, b"{}", {"Content_Encoding": "br"}),
    "is no whole gzip": (400, gzip.compress(b"{}" * 99)[:-9], {"Content_Encoding": "gzip"}),
    "the body is empty": (400, b"", {}),
}


@pytest.mark.parametrize("sentence", sorted(REFUSED))
def test_what_cannot_be_is_refused_in_the_protocols_form(served: Listening, sentence: str) -> None:
    status, body, headers = REFUSED[sentence]
    reply = post(served, "balls", body, **headers)
    assert reply.status_code == status, reply.text
    assert sentence in reply.json()["error"]
    assert studies_left(served) == []


def test_a_bomb_in_a_packed_body_is_refused(served: Listening, tmp_path: Path) -> None:
    limits = {"upload_bytes": 1 << 20}
    models = {name: model.model_dump() for name, model in served.service.config.models.items()}
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        with listening(tmp_path, models, limits=limits) as small:
            reply = post(small, "balls", gzip.compress(bytes(64 << 20)), Content_Encoding="gzip")
    assert (reply.status_code, reply.json()["code"]) == (413, "upload.too_large")


def test_a_broken_scan_is_refused_with_its_code(served: Listening, file: bytes) -> None:
    with pytest.raises(InferenceServerException) as refused, triton.InferenceServerClient(served.host) as client:
        client.infer("balls", volume(file[: len(file) // 2]))
    assert refused.value.status() == "422"
    assert studies_left(served) == []


def test_what_is_not_there_is_said(client: triton.InferenceServerClient, served: Listening, file: bytes) -> None:
    with pytest.raises(InferenceServerException, match="no such model") as refused:
        client.infer("nobody", volume(file))
    assert refused.value.status() == "404"
    with pytest.raises(InferenceServerException, match="no such version"):
        client.get_model_metadata("balls", "2")
    with pytest.raises(InferenceServerException, match="not offered"):
        client.get_inference_statistics("balls")
    with pytest.raises(InferenceServerException, match="not offered"):
        client.load_model("balls")
    assert httpx.get(f"{served.url}/v2", timeout=60).json()["name"] == "voxray"


@pytest.mark.data
def test_dicom_files_come_as_elements(
    client: triton.InferenceServerClient, served: Listening, shared_data: Path
) -> None:
    folder = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    result = client.infer("balls", volume(*(path.read_bytes() for path in sorted(folder.glob("*.dcm")))))
    assert result.as_numpy("boxes").shape[1] == 6
    assert studies_left(served) == []

"""A network in whole numbers of 8 bits: OpenVINO's fast form on CPUs that have no half precision.

Vector units multiply four times as many bytes as floats. The range of every convolution's input is measured on
patches of real scans and the errors that rounding makes in each channel's mean are taken out again: post-training
quantisation, as NNCF does it (Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2019, arXiv:1906.04721, sec. 4.2).
Norms, sums, a head (`head`) and what comes out of the network stay in floating point.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from voxray.core.errors import DataError, ResourceError
from voxray.runtimes.openvino.graph import widened
from voxray.runtimes.openvino.head import head_of


def save_int8(onnx: bytes, patches: Sequence[Float[Tensor, "b 1 x y z"]], path: Path) -> None:
    """Writes the network with int8 convolutions in OpenVINO's form: the .xml, and the .bin beside it.

    `patches` are normalised, and as various as what the network will see: what lies beyond their ranges is clipped.
    """
    if find_spec("nncf") is None:
        raise ResourceError("precision int8: needs NNCF; `pip install 'voxray[int8]'` adds it.")
    import openvino

    model = widened(openvino.Core().read_model(onnx))
    head = head_of(model)
    arrays = [patch.float().contiguous().numpy() for patch in patches]
    with _silent_nncf() as nncf:
        try:
            made = nncf.quantize(
                model,
                nncf.Dataset(arrays),
                subset_size=len(arrays),
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=nncf.IgnoredScope([head[0].get_friendly_name()] if head else []),
            )
        except (RuntimeError, ValueError, nncf.ValidationError) as error:
            raise DataError(
                "export.int8",
                f"NNCF cannot quantise the network: {str(error).splitlines()[0][:300]}; nothing was written.",
                remedy="Export at fp32 or bf16.",
            ) from None
    openvino.save_model(made, path, compress_to_fp16=False)


@contextmanager
def _silent_nncf() -> Iterator[Any]:
    """NNCF without its reports to its makers over the network, its lines and bars, and its class for all loggers."""
    reports, loggers = sys.modules.get("openvino_telemetry"), logging.getLoggerClass()
    if "nncf" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import nncf
    finally:
        logging.setLoggerClass(loggers)
        sys.modules.pop("openvino_telemetry", None)
        if reports is not None:
            sys.modules["openvino_telemetry"] = reports
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        yield nncf

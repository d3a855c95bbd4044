"""What OpenVINO's graphs can hold of `winograd`: operations on feature maps with the channels last.

OpenVINO calls them from its own threads, and clones them when it compiles a model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import openvino
from openvino import DiscreteTypeInfo, PartialShape

from voxray.kernels.winograd import Convolution, norm_affine


class GroupNorm(NamedTuple):
    """What a group norm does, but for the maps."""

    groups: int
    epsilon: float
    weight: Any
    bias: Any


class NormAffine(openvino.Op):  # type: ignore[misc]
    """``batch x y z c -> batch 2 c``: `norm_affine`."""

    def __init__(self, inputs: Any, norm: GroupNorm) -> None:
        super().__init__(self)
        self._norm = norm
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        """OpenVINO asks for what comes out."""
        shape = self.get_input_partial_shape(0)
        self.set_output_type(0, self.get_input_element_type(0), PartialShape([shape[0], 2, shape[4]]))

    def clone_with_new_inputs(self, inputs: Any) -> NormAffine:
        """OpenVINO takes another."""
        return NormAffine(inputs, self._norm)

    def get_type_info(self) -> Any:
        """OpenVINO asks what it is."""
        return DiscreteTypeInfo("NormAffine", "voxray")

    def visit_attributes(self, visitor: Any) -> bool:
        """OpenVINO asks whether two that read the same are the same."""
        visitor.on_attributes({"norm": repr(id(self._norm))})
        return True

    def has_evaluate(self) -> bool:
        """It can be called."""
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """OpenVINO calls it."""
        for image, affine in zip(inputs[0].data, outputs[0].data, strict=True):
            affine[:] = norm_affine(image, *self._norm)
        return True


class WinogradConvolution(openvino.Op):  # type: ignore[misc]
    """``batch x y z i -> batch x y z o``: `Convolution` of an image, with an affine and a residual or without."""

    def __init__(self, inputs: Any, convolution: Convolution, *, has_affine: bool, has_residual: bool) -> None:
        super().__init__(self)
        self._convolution, self._has_affine, self._has_residual = convolution, has_affine, has_residual
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        """OpenVINO asks for what comes out."""
        batch, *sides, _ = self.get_input_partial_shape(0)
        shape = PartialShape([batch, *sides, self._convolution.outputs])
        self.set_output_type(0, self.get_input_element_type(0), shape)

    def clone_with_new_inputs(self, inputs: Any) -> WinogradConvolution:
        """OpenVINO takes another."""
        has = {"has_affine": self._has_affine, "has_residual": self._has_residual}
        return WinogradConvolution(inputs, self._convolution, **has)

    def get_type_info(self) -> Any:
        """OpenVINO asks what it is."""
        return DiscreteTypeInfo("WinogradConvolution", "voxray")

    def visit_attributes(self, visitor: Any) -> bool:
        """OpenVINO asks whether two that read the same are the same."""
        visitor.on_attributes({"convolution": repr(id(self._convolution))})
        return True

    def has_evaluate(self) -> bool:
        """It can be called."""
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """OpenVINO calls it."""
        images, *others = [tensor.data for tensor in inputs]
        affines = others.pop(0) if self._has_affine else [None] * len(images)
        residuals = others.pop(0) if self._has_residual else [None] * len(images)
        for image, answer, affine, residual in zip(images, outputs[0].data, affines, residuals, strict=True):
            self._convolution(image, answer, affine=affine, residual=residual)
        return True

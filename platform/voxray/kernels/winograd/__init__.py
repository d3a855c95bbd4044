"""Convolutions of 3 x 3 x 3 with a quarter of the multiplications, for CPUs and float32."""

from voxray.kernels.winograd.convolution import STEP, Convolution, is_worth_it, norm_affine
from voxray.kernels.winograd.machine import can_compile

__all__ = ["STEP", "Convolution", "can_compile", "is_worth_it", "norm_affine"]

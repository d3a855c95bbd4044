"""Convolutions of many channels with a quarter of the multiplications, for torch on CPUs.

A 3 x 3 x 3 convolution of hundreds of channels, as in a RetinaNet's heads, is all multiplication. Winograd's F(4, 3)
gives four neighbouring outputs with 6 products where the plain sum takes 12; on x and y together that is 36 for 144
(Lavin and Gray 2016, arXiv:1509.09308, section 4). On z the three taps are summed as they are: there it would cost
more in memory traffic and in digits than it saves. The answer differs by the rounding of float32.

Work goes in slabs of a few times four planes of x, so that what lies between is small. Slabs have the channels last:
what a slab's positions multiply is then one plain matrix product for each of the 36 points and each tap.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor, nn

LEAST_CHANNELS = 128
"""With fewer, moving the transformed planes costs what the products save."""
ENOUGH = 0.7
"""The share of a network's multiplications from which on the rest may as well be torch's."""

_TILE, _POINTS, _TAPS = 4, 6, 3
_ROWS = 600
"""A matrix product of fewer rows does not keep the processor busy."""
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G of F(4, 3): three taps at the points 0, 1, -1, 2, -2 and infinity."""


class WinogradConv3d(nn.Module):
    """What a `nn.Conv3d` that `is_wide` answers, without gradients."""

    kernel: Tensor
    bias: Tensor

    def __init__(self, plain: nn.Conv3d) -> None:
        super().__init__()
        bias = plain.weight.new_zeros(plain.out_channels) if plain.bias is None else plain.bias
        self.register_buffer("kernel", winograd_kernel(plain.weight.detach()))
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, images: Float[Tensor, "b i x y z"]) -> Float[Tensor, "b o x y z"]:
        """The convolution, channels last in memory."""
        return winograd_conv3d(images, self.kernel, self.bias)


def quickened(module: nn.Module) -> nn.Module:
    """A copy of the network whose wide convolutions are Winograd's, all of it with the channels last in memory."""
    made = copy.deepcopy(module)
    for name, layer in list(made.named_modules()):
        if isinstance(layer, nn.Conv3d) and is_wide(layer):
            made.set_submodule(name, WinogradConv3d(layer))
    return made.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def is_wide(layer: nn.Conv3d) -> bool:
    """Whether `WinogradConv3d` can stand for the layer and is faster."""
    plain = layer.kernel_size == (3, 3, 3) and layer.padding_mode == "zeros"
    same = layer.stride == layer.dilation == layer.padding == (1, 1, 1)
    return plain and same and layer.groups == 1 and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS


def wide_share(module: nn.Module, stride_vox: Sequence[int]) -> float:
    """The share of the network's multiplications, over all convolutions, that are in wide ones.

    Found by sending a patch of four strides without data through a copy (torch's meta device). A network whose shapes
    depend on its values cannot be asked so; of it, what came before that counts.
    """
    counted = {True: 0, False: 0}

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv3d)
        counted[is_wide(layer)] += output.numel() * layer.weight[0].numel()

    made = copy.deepcopy(module).to("meta").eval()
    for layer in made.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(count)
    with torch.inference_mode(), suppress(RuntimeError):
        made(torch.empty(1, 1, *(4 * step for step in stride_vox), device="meta"))
    return counted[True] / max(1, sum(counted.values()))


def winograd_kernel(weight: Float[Tensor, "o i 3 3 3"]) -> Float[Tensor, "6 6 3 i o"]:
    """A convolution's weights at the points of x and y, for each tap of z."""
    points = torch.tensor(_FILTER, dtype=torch.float64, device=weight.device)
    return torch.einsum("ax,by,oixyz->abzio", points, points, weight.double()).to(weight.dtype).contiguous()


def winograd_conv3d(
    images: Float[Tensor, "b i x y z"], kernel: Float[Tensor, "6 6 3 i o"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "b o x y z"]:
    """The convolution with stride 1 and a border of zeros, whose weights `winograd_kernel` has turned."""
    size = (len(images), kernel.shape[-1], *images.shape[2:])
    made = torch.empty(size, dtype=images.dtype, device=images.device, memory_format=torch.channels_last_3d)
    for image, answer in zip(images.movedim(1, -1), made.movedim(1, -1), strict=True):
        _convolve(image, kernel, bias, answer)
    return made


def _convolve(
    image: Float[Tensor, "x y z i"],
    kernel: Float[Tensor, "6 6 3 i o"],
    bias: Float[Tensor, " o"],
    answer: Float[Tensor, "x y z o"],
) -> None:
    (length, width, depth, channels), num_outputs = image.shape, len(bias)
    tiles, padded = -(-width // _TILE), depth + _TAPS - 1
    at_once = min(-(-length // _TILE), -(-_ROWS // (tiles * padded)))
    room = image.new_empty
    planes = image.new_zeros(_POINTS, tiles * _TILE + _TAPS - 1, padded, channels)
    on_x, on_both = torch.empty_like(planes), room(_POINTS, _POINTS, at_once, tiles, padded, channels)
    products = room(_POINTS, _POINTS, at_once, tiles, padded, num_outputs)
    back_on_y = room(_POINTS, tiles * _TILE, padded, num_outputs)
    back = room(_TILE, tiles * _TILE, padded, num_outputs)
    for slab in range(0, length, at_once * _TILE):
        firsts = range(slab, min(length, slab + at_once * _TILE), _TILE)
        for number, first in enumerate(firsts):
            begin, end = max(0, first - 1), min(length, first + _TILE + 1)
            if first == 0 or end == length:
                planes.zero_()
            planes[begin - first + 1 : end - first + 1, 1 : width + 1, 1 : depth + 1] = image[begin:end]
            _to_points(list(planes), list(on_x))
            rows = [on_x[:, row : row + tiles * _TILE - 3 : _TILE] for row in range(_POINTS)]
            _to_points(rows, list(on_both[:, :, number]))
        _multiply(on_both[:, :, : len(firsts)], kernel, products[:, :, : len(firsts)])
        for number, first in enumerate(firsts):
            _from_points(list(products[:, :, number]), [back_on_y[:, row::_TILE] for row in range(_TILE)])
            _from_points(list(back_on_y), list(back))
            count = min(_TILE, length - first)
            torch.add(back[:count, :width, :depth], bias, out=answer[first : first + count])


def _multiply(
    inputs: Float[Tensor, "6 6 s t z i"], kernel: Float[Tensor, "6 6 3 i o"], products: Float[Tensor, "6 6 s t z o"]
) -> None:
    """At each point, the rows of all tiles with each tap's matrix; the last two rows of a tile are no answer.

    The points of y come before those of x. Tiles follow on each other, so a tap is the same rows moved by one.
    """
    for on_y in range(_POINTS):
        for on_x in range(_POINTS):
            rows, taps = inputs[on_y, on_x].flatten(0, 2), kernel[on_x, on_y]
            end = len(rows) - _TAPS + 1
            sums = products[on_y, on_x].flatten(0, 2)[:end]
            torch.mm(rows[:end], taps[0], out=sums)
            for tap in range(1, _TAPS):
                sums.addmm_(rows[tap : tap + end], taps[tap])


def _to_points(rows: Sequence[Tensor], made: Sequence[Tensor]) -> None:
    """B^T d of F(4, 3): six neighbours at the six points."""
    torch.add(rows[4], rows[0], alpha=4, out=made[0]).sub_(rows[2], alpha=5)
    torch.add(rows[5], rows[1], alpha=4, out=made[5]).sub_(rows[3], alpha=5)
    even, odd = torch.sub(rows[4], rows[2], alpha=4), torch.sub(rows[3], rows[1], alpha=4)
    torch.add(even, odd, out=made[1])
    torch.sub(even, odd, out=made[2])
    torch.sub(rows[4], rows[2], out=even)
    torch.sub(rows[3], rows[1], out=odd)
    torch.add(even, odd, alpha=2, out=made[3])
    torch.sub(even, odd, alpha=2, out=made[4])


def _from_points(points: Sequence[Tensor], made: Sequence[Tensor]) -> None:
    """A^T m of F(4, 3): four neighbouring answers from the six points."""
    near, far = points[1] + points[2], points[3] + points[4]
    torch.add(near, far, out=made[0]).add_(points[0])
    torch.add(near, far, alpha=4, out=made[2])
    torch.sub(points[1], points[2], out=near)
    torch.sub(points[3], points[4], out=far)
    torch.add(near, far, alpha=2, out=made[1])
    torch.add(near, far, alpha=8, out=made[3]).add_(points[5])

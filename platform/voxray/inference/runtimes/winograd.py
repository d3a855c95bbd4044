"""Convolutions of many channels with a quarter of the multiplications, for torch on CPUs.

A 3 x 3 x 3 convolution of hundreds of channels, as in a RetinaNet's heads, is all multiplication. Winograd's F(4, 3)
gives four neighbouring outputs with 6 products where the plain sum takes 12; on x and y together that is 36 for 144
(Lavin and Gray 2016, arXiv:1509.09308, section 4). On z the three taps are summed as they are: there it would cost
more in memory traffic and in digits than it saves. The answer differs by the rounding of float32.

Work goes in slabs of a few times four planes of x, so that what lies between is small. A slab's 6 x 6 neighbours go
to the 36 points, and sums at the points back to 4 x 4 answers, by one small matrix each: to add row upon row would
read and write them a dozen times. Slabs have the channels last: what their positions multiply is one plain matrix
product for each point and each tap.
"""

from __future__ import annotations

import copy
import math
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
_DATA = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
"""B^T: six neighbours at the points."""
_ANSWER = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
"""A^T: four neighbouring answers from the points."""


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
    in_all = -(-length // _TILE)
    at_once = -(-in_all // max(1, in_all * tiles * padded // _ROWS))
    to_points, from_points = _both(_DATA, image), _both(_ANSWER, image)
    planes = image.new_zeros(at_once * _TILE + _TAPS - 1, tiles * _TILE + _TAPS - 1, padded, channels)
    x, y, z, c = planes.stride()
    tiled = (at_once, tiles, padded)
    neighbours = planes.as_strided((_POINTS, _POINTS, *tiled, channels), (x, y, _TILE * x, _TILE * y, z, c))
    size = _POINTS * _POINTS * math.prod(tiled) * max(channels, num_outputs)
    here, there = image.new_empty(size), image.new_empty(size)  # what is in one is made of what is in the other
    gathered, points = (_shaped(room, _POINTS, _POINTS, *tiled, channels) for room in (here, there))
    products, answers = (
        _shaped(room, side, side, *tiled, num_outputs) for room, side in ((here, _POINTS), (there, _TILE))
    )
    in_place = answers.permute(2, 0, 3, 1, 4, 5)[:, :, :, :, :depth]
    for first in range(0, length, at_once * _TILE):
        begin, end = max(0, first - 1), min(length, first + at_once * _TILE + 1)
        if first == 0 or end == length:
            planes.zero_()
        planes[begin - first + 1 : end - first + 1, 1 : width + 1, 1 : depth + 1] = image[begin:end]
        gathered.copy_(neighbours)
        torch.mm(to_points, gathered.flatten(0, 1).flatten(1), out=points.flatten(0, 1).flatten(1))
        _multiply(points, kernel, products)
        torch.mm(from_points, products.flatten(0, 1).flatten(1), out=answers.flatten(0, 1).flatten(1))
        made = answer[first : first + at_once * _TILE]
        if made.shape[:2] == (at_once * _TILE, tiles * _TILE):
            torch.add(in_place, bias, out=made.view(at_once, _TILE, tiles, _TILE, depth, num_outputs))
        else:
            made.copy_((in_place + bias).flatten(2, 3).flatten(0, 1)[: len(made), :width])


def _shaped(room: Float[Tensor, " n"], *shape: int) -> Tensor:
    return room[: math.prod(shape)].view(shape)


def _both(matrix: Sequence[Sequence[int]], like: Tensor) -> Float[Tensor, "pp qq"]:
    """A matrix of one axis for x and y together."""
    one = torch.tensor(matrix, dtype=like.dtype, device=like.device)
    return torch.kron(one, one)


def _multiply(
    points: Float[Tensor, "6 6 s t z i"], kernel: Float[Tensor, "6 6 3 i o"], products: Float[Tensor, "6 6 s t z o"]
) -> None:
    """At each point, the rows of all tiles with each tap's matrix; the last two rows of a tile are no answer.

    Tiles follow on each other, so a tap is the same rows moved by one.
    """
    for inputs, taps, outputs in zip(points.flatten(0, 1), kernel.flatten(0, 1), products.flatten(0, 1), strict=True):
        rows = inputs.flatten(0, 2)
        end = len(rows) - _TAPS + 1
        sums = outputs.flatten(0, 2)[:end]
        torch.mm(rows[:end], taps[0], out=sums)
        for tap in range(1, _TAPS):
            sums.addmm_(rows[tap : tap + end], taps[tap])

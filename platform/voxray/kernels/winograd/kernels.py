"""The functions, in LLVM's intermediate representation: a 3 x 3 x 3 convolution, and the sums that a norm needs.

All feature maps have the channels last. A group of tiles is taken through all three steps before the next, so that
what lies between them stays in the processor's second cache: its neighbours to the points, one matrix product at each
point, and the products to answers. On z the taps are no transform but part of the matrix product: a row of it begins
one voxel after the row before, and is three voxels long.
"""

from __future__ import annotations

from voxray.kernels.winograd.machine import Blocking
from voxray.kernels.winograd.points import ANSWER, DATA, POINTS, SIDE, TAPS, TILE
from voxray.kernels.winograd.writer import IrValue, PointerTable, Writer

POINTERS = (
    "image", "weights", "bias", "slope", "affine", "floor", "residual", "answer",
    "points", "products", "outside", "waste",
)  # fmt: skip
NUMBERS = (
    "inputs", "outputs", "length", "width", "depth",
    "tiles_at_once", "point_size", "product_size", "has_residual", "begin", "end",
)  # fmt: skip


def convolution(blocking: Blocking) -> str:
    """``convolution(*POINTERS, *NUMBERS)``: the answers of groups of tiles from `begin` before `end`.

    `image`: ``x y z inputs``, of which ``max(affine[0] * image + affine[1], floor)`` is convolved, `affine` being
    ``2 inputs``; `outside`: a row ``z inputs`` for what is beyond its border, of zeros, or of NaN where the floor is
    0. `answer`: ``x y z outputs``, of sums and bias; what is below 0 times `slope`; and the residual, where
    `has_residual` is 1, added (a row of zeros where it is 0). `waste`: a row for answers beyond the border. At one of
    the points are `point_size` values (``tile z+2 inputs``), and `product_size` (the same of outputs).
    """
    return _Convolution(blocking).written()


def moments(lanes: int) -> str:
    """``moments(image, sums, channels, depth, begin, end)``: sums and sums of squares over rows along z.

    `image`: ``row z channels``, from each of which the channel's first value of all is taken away; `sums`: float64,
    ``2 channels``, to which rows are added.
    """
    name, numbers = "moments", ("channels", "depth", "begin", "end")
    at = Writer(name, pointers=("image", "sums"), numbers=numbers, lanes=lanes)
    image, sums, channels, depth, begin, end = at.given.values()
    zero = at.constant(0)
    with at.loop(end, begin=begin) as row, at.loop(channels, step=lanes) as channel:
        origin = at.load(at.at(image, channel.number))
        first = at.at(image, at.product(row.number, depth, channels), channel.number)
        with at.loop(depth, values=[zero, zero]) as voxel:
            value = at.do.fsub(at.load(at.at(first, at.product(voxel.number, channels))), origin)
            total, squares = voxel.values
            voxel.values = [at.do.fadd(total, value), at.fma(value, value, squares)]
        at.add_in_float64(voxel.values[0], sums, channel.number)
        at.add_in_float64(voxel.values[1], sums, at.plus(channel.number, channels))
    return at.text()


class _Convolution:
    def __init__(self, blocking: Blocking) -> None:
        self.blocking = blocking
        at = self.at = Writer("convolution", pointers=POINTERS, numbers=NUMBERS, lanes=blocking.lanes)
        self.inputs, self.outputs, self.length, self.width, self.depth = (at.given[name] for name in NUMBERS[:5])
        self.at_once = at.given["tiles_at_once"]
        self.deeper = at.plus(self.depth, TAPS - 1)
        self.tiles_across = at.do.sdiv(at.plus(self.width, TILE - 1), at.number(TILE))
        tiles_along = at.do.sdiv(at.plus(self.length, TILE - 1), at.number(TILE))
        self.last_tile = at.plus(at.product(tiles_along, self.tiles_across), -1)
        self.num_rows = at.plus(at.product(self.at_once, self.deeper), 1 - TAPS)
        self.rows_in, self.rows_out, self.residuals = (at.pointers(n * n) for n in (SIDE, TILE, TILE))

    def written(self) -> str:
        at = self.at
        with at.loop(at.given["end"], begin=at.given["begin"]) as group:
            first = at.product(group.number, self.at_once)
            with at.loop(self.at_once) as tile:
                self._gather(at.plus(first, tile.number), tile.number)
            with at.loop(POINTS) as point:
                self._multiply(point.number)
            with at.loop(self.at_once) as tile:
                self._answer(at.plus(first, tile.number), tile.number)
        return at.text()

    def _locate(
        self, table: PointerTable, name: str, tile: IrValue, *, border: int, beyond: str, times: IrValue
    ) -> None:
        """Pointers to the rows of a tile and its border; for what is beyond the image, another row.

        After the last tile it comes again: the same is written where it was. `times`: values of a voxel; 0 where all
        rows are one.
        """
        at, side = self.at, TILE + 2 * border
        tile = at.smaller(tile, self.last_tile)
        x = at.plus(at.product(at.do.sdiv(tile, self.tiles_across), TILE), -border)
        y = at.plus(at.product(at.do.srem(tile, self.tiles_across), TILE), -border)
        for place in range(side * side):
            here = at.plus(x, place // side), at.plus(y, place % side)
            is_within = at.do.and_(at.within(here[0], self.length), at.within(here[1], self.width))
            row = at.plus(at.product(here[0], self.width), here[1])
            pointer = at.at(at.given[name], at.product(row, self.depth, times))
            table.put(place, at.do.select(is_within, pointer, at.given[beyond]))

    def _gather(self, tile: IrValue, number: IrValue) -> None:
        """A tile's neighbours, at the points; with a voxel of zeros before and after each row."""
        at = self.at
        self._locate(self.rows_in, "image", tile, border=1, beyond="outside", times=self.inputs)
        first = at.at(at.given["points"], at.product(number, self.deeper, self.inputs))
        affine, floor, zero = at.given["affine"], at.load_one(at.given["floor"]), at.constant(0)
        with at.loop(self.depth) as voxel, at.loop(self.inputs, step=at.lanes) as channel:
            place = at.plus(at.product(voxel.number, self.inputs), channel.number)
            scale = at.load(at.at(affine, channel.number))
            shift = at.load(at.at(affine, channel.number, self.inputs))

            def neighbour(number: int) -> IrValue:
                found = at.load(at.at(self.rows_in.get(number), place))
                return at.larger(at.fma(found, scale, shift), floor)

            grid = [[neighbour(SIDE * x + y) for y in range(SIDE)] for x in range(SIDE)]
            self._spread(at.on_both_axes(DATA, grid), at.at(first, self.inputs, place))
        with at.loop(self.inputs, step=at.lanes) as channel:
            for row in (0, at.plus(self.depth, 1)):
                ends = at.at(first, at.product(row, self.inputs), channel.number)
                self._spread([[zero] * SIDE] * SIDE, ends)

    def _spread(self, grid: list[list[IrValue]], pointer: IrValue) -> None:
        for value in (value for row in grid for value in row):
            self.at.store(value, pointer)
            pointer = self.at.at(pointer, self.at.given["point_size"])

    def _multiply(self, point: IrValue) -> None:
        """At a point, every row with its matrix: two vectors of outputs at a time, and one where it is left."""
        at, pair = self.at, 2 * self.blocking.lanes
        pairs = at.do.sdiv(self.outputs, at.number(pair))
        whole = at.product(pairs, pair)
        with at.do.if_then(at.do.icmp_signed(">", pairs, at.number(0))), at.loop(whole, step=pair) as output:
            self._columns(point, output.number, 2)
        with at.do.if_then(at.do.icmp_signed("<", whole, self.outputs)):
            self._columns(point, whole, 1)

    def _columns(self, point: IrValue, output: IrValue, vectors: int) -> None:
        """Rows by blocks; the last block goes back to be whole."""
        at, (lanes, rows) = self.at, self.blocking
        taps = at.product(self.inputs, TAPS)
        weights = at.at(at.given["weights"], at.product(taps, at.plus(at.product(point, self.outputs), output)))
        inputs = at.at(at.given["points"], at.product(point, at.given["point_size"]))
        products = at.at(at.given["products"], at.product(point, at.given["product_size"]), output)
        with at.loop(self.num_rows, step=rows) as block:
            first = at.smaller(block.number, at.plus(self.num_rows, -rows))
            row = [at.at(inputs, at.product(first, self.inputs))]
            while len(row) < rows:
                row.append(at.at(row[-1], self.inputs))
            with at.loop(taps, values=[at.constant(0)] * (rows * vectors)) as tap:
                column = at.at(weights, at.product(tap.number, vectors * lanes))
                weight = [at.load(at.at(column, lanes * number)) for number in range(vectors)]
                for number, pointer in enumerate(row):
                    value = at.load_one(at.at(pointer, tap.number))
                    for other in range(vectors):
                        place = number * vectors + other
                        tap.values[place] = at.fma(value, weight[other], tap.values[place])
            pointer = at.at(products, at.product(first, self.outputs))
            for number in range(rows):
                for other in range(vectors):
                    at.store(tap.values[number * vectors + other], at.at(pointer, lanes * other))
                pointer = at.at(pointer, self.outputs)

    def _answer(self, tile: IrValue, number: IrValue) -> None:
        """A tile's answers, from the products at the points."""
        at, zero = self.at, self.at.constant(0)
        self._locate(self.rows_out, "answer", tile, border=0, beyond="waste", times=self.outputs)
        by = at.product(self.outputs, at.given["has_residual"])
        self._locate(self.residuals, "residual", tile, border=0, beyond="waste", times=by)
        first = at.at(at.given["products"], at.product(number, self.deeper, self.outputs))
        with at.loop(self.depth) as voxel, at.loop(self.outputs, step=at.lanes) as output:
            bias = at.load(at.at(at.given["bias"], output.number))
            slope = at.load(at.at(at.given["slope"], output.number))
            place = at.plus(at.product(voxel.number, self.outputs), output.number)
            answers = at.on_both_axes(ANSWER, self._products(at.at(first, place)))
            for number_out in range(TILE * TILE):
                value = at.do.fadd(answers[number_out // TILE][number_out % TILE], bias)
                low = at.do.fmul(value, slope)
                value = at.do.select(at.do.fcmp_ordered("<", value, zero), low, value)
                more = at.load(at.at(self.residuals.get(number_out), place))
                at.store(at.do.fadd(value, more), at.at(self.rows_out.get(number_out), place))

    def _products(self, pointer: IrValue) -> list[list[IrValue]]:
        at, found = self.at, []
        for _ in range(POINTS):
            found.append(at.load(pointer))
            pointer = at.at(pointer, at.given["product_size"])
        return [found[SIDE * x : SIDE * (x + 1)] for x in range(SIDE)]

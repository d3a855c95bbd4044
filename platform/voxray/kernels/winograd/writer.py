"""Words for writing a function in LLVM's intermediate representation: loops, rows of vectors, small matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir

_FLOAT, _INT, _POINTER = ir.FloatType(), ir.IntType(64), ir.PointerType()
_INT32, _DOUBLE = ir.IntType(32), ir.DoubleType()

IrValue = Any
"""A value of LLVM's; its classes have no types of their own."""


@dataclass
class Turn:
    """A turn of a loop: its number, and what it takes over from the turn before and hands on to the next."""

    number: IrValue
    values: list[IrValue]


class Writer:
    """A function of pointers and 64-bit numbers that returns nothing, as it is being written.

    No two pointers may reach the same memory. Vectors have `lanes` float32 values.
    """

    def __init__(self, name: str, *, pointers: Sequence[str], numbers: Sequence[str], lanes: int) -> None:
        self.lanes, self.vector = lanes, ir.VectorType(_FLOAT, lanes)
        self._doubles = ir.VectorType(_DOUBLE, lanes)
        self._module = ir.Module(name)
        self._module.triple = binding.get_process_triple()
        self._fma = ir.Function(
            self._module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fma.v{lanes}f32"
        )
        kinds = [_POINTER] * len(pointers) + [_INT] * len(numbers)
        function = ir.Function(self._module, ir.FunctionType(ir.VoidType(), kinds), name)
        for argument in function.args[: len(pointers)]:
            argument.add_attribute("noalias")
        self.given = dict(zip((*pointers, *numbers), function.args, strict=True))
        self.do = ir.IRBuilder(function.append_basic_block())

    def text(self) -> str:
        """The function, ended."""
        self.do.ret_void()
        return str(self._module)

    # Control

    @contextmanager
    def loop(
        self, end: IrValue, *, begin: IrValue = 0, step: int = 1, values: Sequence[IrValue] = ()
    ) -> Iterator[Turn]:
        """Turns at `begin`, `begin + step` and on before `end`, of which there must be one."""
        do, before = self.do, self.do.block
        head = do.append_basic_block()
        do.branch(head)
        do.position_at_end(head)
        number = do.phi(_INT)
        number.add_incoming(self.number(begin), before)
        carried = [do.phi(value.type) for value in values]
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, before)
        turn = Turn(number, list(carried))
        yield turn
        following, last = do.add(number, _INT(step)), do.block
        number.add_incoming(following, last)
        for phi, value in zip(carried, turn.values, strict=True):
            phi.add_incoming(value, last)
        after = do.append_basic_block()
        do.cbranch(do.icmp_signed("<", following, self.number(end)), head, after)
        do.position_at_end(after)

    # Numbers and places

    def number(self, value: IrValue) -> IrValue:
        """A number of the function's, or a constant."""
        return _INT(value) if isinstance(value, int) else value

    def product(self, *values: IrValue) -> IrValue:
        """Of numbers."""
        found = self.number(values[0])
        for value in values[1:]:
            found = self.do.mul(found, self.number(value))
        return found

    def plus(self, *values: IrValue) -> IrValue:
        """The sum of numbers."""
        found = self.number(values[0])
        for value in values[1:]:
            found = self.do.add(found, self.number(value))
        return found

    def smaller(self, one: IrValue, other: IrValue) -> IrValue:
        """Of two numbers."""
        one, other = self.number(one), self.number(other)
        return self.do.select(self.do.icmp_signed("<", one, other), one, other)

    def within(self, value: IrValue, end: IrValue) -> IrValue:
        """Whether a number is 0 or above, and below `end`."""
        return self.do.icmp_unsigned("<", value, end)

    def at(self, pointer: IrValue, *values: IrValue) -> IrValue:
        """The float32 so many places further."""
        return self.do.gep(pointer, [self.plus(*values)], source_etype=_FLOAT)

    def pointers(self, count: int) -> PointerTable:
        """Room for pointers, on the stack."""
        return PointerTable(self.do, self.do.alloca(_POINTER, count))

    # Vectors

    def constant(self, value: float) -> IrValue:
        """A vector of one value."""
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def load(self, pointer: IrValue) -> IrValue:
        """The vector that begins there."""
        found = self.do.load(pointer, typ=self.vector)
        found.align = 4
        return found

    def store(self, value: IrValue, pointer: IrValue) -> None:
        """Puts a vector there."""
        self.do.store(value, pointer).align = 4

    def load_one(self, pointer: IrValue) -> IrValue:
        """A vector that has the one value there in all places."""
        one = self.do.insert_element(
            ir.Constant(self.vector, ir.Undefined), self.do.load(pointer, typ=_FLOAT), _INT32(0)
        )
        nowhere = ir.Constant(ir.VectorType(_INT32, self.lanes), [0] * self.lanes)
        return self.do.shuffle_vector(one, ir.Constant(self.vector, ir.Undefined), nowhere)

    def fma(self, one: IrValue, other: IrValue, added: IrValue) -> IrValue:
        """``one * other + added``, rounded once."""
        return self.do.call(self._fma, [one, other, added])

    def larger(self, value: IrValue, least: IrValue) -> IrValue:
        """The larger in each place; `least` where the value is not a number."""
        return self.do.select(self.do.fcmp_ordered(">", value, least), value, least)

    def add_in_float64(self, value: IrValue, room: IrValue, place: IrValue) -> None:
        """Adds a vector to float64 sums."""
        pointer = self.do.gep(room, [place], source_etype=_DOUBLE)
        before = self.do.load(pointer, typ=self._doubles)
        before.align = 8
        self.do.store(self.do.fadd(before, self.do.fpext(value, self._doubles)), pointer).align = 8

    def on_both_axes(self, matrix: Sequence[Sequence[int]], grid: Sequence[Sequence[IrValue]]) -> list[list[IrValue]]:
        """``matrix @ grid @ matrix.T`` of vectors."""
        columns = [self._times(matrix, column) for column in zip(*grid, strict=True)]
        return [self._times(matrix, row) for row in zip(*columns, strict=True)]

    def _times(self, matrix: Sequence[Sequence[int]], vectors: Sequence[IrValue]) -> list[IrValue]:
        return [self._weighed(row, vectors) for row in matrix]

    def _weighed(self, weights: Sequence[int], vectors: Sequence[IrValue]) -> IrValue:
        """A sum of vectors, without what has no weight; a weight of 1 is put first, and costs nothing."""
        terms = [(weight, vector) for weight, vector in zip(weights, vectors, strict=True) if weight]
        terms.sort(key=lambda term: term[0] != 1)
        (first, found), *others = terms
        if first != 1:
            found = self.do.fmul(found, self.constant(first))
        for weight, vector in others:
            if weight == 1:
                found = self.do.fadd(found, vector)
            elif weight == -1:
                found = self.do.fsub(found, vector)
            else:
                found = self.fma(vector, self.constant(weight), found)
        return found


@dataclass(frozen=True)
class PointerTable:
    """Pointers that a function keeps for itself."""

    do: ir.IRBuilder
    room: IrValue

    def put(self, place: int, pointer: IrValue) -> None:
        """Keeps one."""
        self.do.store(pointer, self._at(place))

    def get(self, place: int) -> IrValue:
        """One that was kept."""
        return self.do.load(self._at(place), typ=_POINTER)

    def _at(self, place: int) -> IrValue:
        return self.do.gep(self.room, [_INT(place)], source_etype=_POINTER)

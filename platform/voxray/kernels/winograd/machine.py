"""Functions of this processor, made of LLVM's intermediate representation when they are first used."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

Function = Callable[..., None]

_ENGINES: list[Any] = []
"""They hold the code: while they live, it does."""


def can_compile() -> bool:
    """Whether LLVM is installed, and this processor has vectors that are worth it."""
    return find_spec("llvmlite") is not None and _lanes() > 0


class Blocking(NamedTuple):
    """How much of a matrix product is held in registers."""

    lanes: int
    """Float32 values of a vector."""
    rows: int
    """By two vectors, as long as there are two."""


LONG, SHORT = Blocking(16, 12), Blocking(8, 6)
"""24 sums of AVX-512's 32 registers, and 12 of AVX2's 16: the others are for what they are made of."""


@cache
def blocking() -> Blocking:
    """This processor's."""
    return LONG if _lanes() == LONG.lanes else SHORT


def compiled(text: str, *, pointers: int, numbers: int) -> Function:
    """The one function of a module, which takes pointers, then numbers. Python's lock is free while it runs."""
    from llvmlite import binding

    machine = _machine()
    module = binding.parse_assembly(text)
    module.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = False
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _ENGINES.append(engine)
    (name,) = (function.name for function in module.functions if not function.is_declaration)
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * numbers)
    return kind(engine.get_function_address(name))


@cache
def _lanes() -> int:
    """Float32 values in this processor's vectors; 0 where they are too short."""
    features = _features()
    if features.get("avx512f"):
        return LONG.lanes
    return SHORT.lanes if features.get("avx2") and features.get("fma") else 0


def _features() -> Any:
    from llvmlite import binding

    return binding.get_host_cpu_features()


def _machine() -> Any:
    """This processor; where it has long vectors, they are used."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = [_features().flatten()]
    if _lanes() == LONG.lanes:
        features.append("-prefer-256-bit")
    target = binding.Target.from_default_triple()
    return target.create_target_machine(cpu=binding.get_host_cpu_name(), features=",".join(features), opt=3)

"""Functions of this processor, made of LLVM's intermediate representation when they are first used."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

Function = Callable[..., None]

_ENGINES: list[Any] = []
"""They hold the code: while they live, it does."""


def can_compile() -> bool:
    """Whether LLVM is installed, and this processor has vectors that are worth it."""
    return find_spec("llvmlite") is not None and _lanes() > 0


@cache
def blocking() -> tuple[int, int]:
    """Lanes of a vector and rows of a block: 24 or 12 sums, which leave registers for what they are made of."""
    return (16, 12) if _lanes() == 16 else (8, 6)


def compiled(text: str, *, pointers: int, numbers: int) -> Function:
    """The one function of a module that takes pointers, then numbers, and returns nothing. It lets go of Python's lock."""
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
        return 16
    has_fma = features.get("avx2") and features.get("fma")
    return 8 if has_fma or features.get("neon") else 0


def _features() -> Any:
    from llvmlite import binding

    return binding.get_host_cpu_features()


def _machine() -> Any:
    """This processor; where it has long vectors, they are used."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = [_features().flatten()]
    if _lanes() == 16:
        features.append("-prefer-256-bit")
    target = binding.Target.from_default_triple()
    return target.create_target_machine(cpu=binding.get_host_cpu_name(), features=",".join(features), opt=3)

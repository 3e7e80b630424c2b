"""snncc compiles trained PyTorch networks to spiking networks for neuromorphic hardware.

    compiled = snncc.compile(model, target="speck2b", example_input=x, calibration=batches)
    compiled.simulate(x).output
    compiled.save("build")

Names are imported when they are first used: importing torch takes seconds, and most of snncc needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snncc import targets
    from snncc.api import check, compile
    from snncc.compiled import CompiledModel, Validation, load
    from snncc.ir import CompileError, Diagnostic, InputError, SnnccError

_HOME = {
    "check": "snncc.api",
    "compile": "snncc.api",
    "CompiledModel": "snncc.compiled",
    "Validation": "snncc.compiled",
    "load": "snncc.compiled",
    "CompileError": "snncc.ir",
    "Diagnostic": "snncc.ir",
    "InputError": "snncc.ir",
    "SnnccError": "snncc.ir",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "targets":
        return import_module("snncc.targets")
    if name == "__version__":
        from importlib.metadata import version

        return version("snncc")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'snncc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


__all__ = [
    "CompileError",
    "CompiledModel",
    "Diagnostic",
    "InputError",
    "SnnccError",
    "Validation",
    "check",
    "compile",
    "load",
    "targets",
]

"""The compiles that the tests of the page show, each made once."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from zoo import SEQUENTIAL_ZOO, ZOO, build, example_input

import snncc
from snncc.compilation import Compilation
from snncc.frontend import constructed

EXAMPLE = Path(__file__).parents[2] / "examples/lenet.py"


@lru_cache
def example() -> ModuleType:
    """examples/lenet.py as a module."""
    spec = importlib.util.spec_from_file_location("lenet", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lenet"] = module
    spec.loader.exec_module(module)
    return module


@lru_cache
def trained() -> tuple[object, np.ndarray]:
    """The example's network after one epoch, and 64 images."""
    x, y = example().data()
    return example().train(x[:2000], y[:2000], epochs=1), x[:64]


@lru_cache
def lenet(target: str = "speck2f", bias: str = "keep") -> Compilation:
    net, x = trained()
    try:
        return snncc.compile(net, target, calibration=x, bias=bias)  # type: ignore[arg-type]
    except snncc.CompileError as error:
        return error.compilation  # type: ignore[no-any-return]


@lru_cache
def of_zoo(name: str, target: str = "reference") -> Compilation:
    x = example_input({**ZOO, **SEQUENTIAL_ZOO}[name].input_shape, 8, seed=1).numpy()
    with constructed():
        model = build(name)
    try:
        return snncc.compile(model, target, calibration=x, timesteps=8, bias="keep")
    except snncc.CompileError as error:
        return error.compilation  # type: ignore[no-any-return]

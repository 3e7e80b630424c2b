"""Some of the networks of tests/fuzz in the vendors' own software."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.generate import generate
from fuzz.network import Case
from lava_sdk import Tally, hold, run_together
from samna_sdk import Samna

import snncc
from snncc.compiled import CompiledModel
from snncc.ir import SnnccError

pytestmark = pytest.mark.vendor
T = 6
PLAIN = ("bias", "reset", "threshold", "per", "weight_bits", "monitor")  # options that may be any


def compiled(target: str, count: int, **options: Any) -> Iterator[tuple[Case, CompiledModel]]:
    """The first so many that a target takes."""
    for seed in range(10 * count):
        case = generate(seed, target)
        kept = {name: value for name, value in case.options if name in PLAIN}
        case = replace(case, options=tuple({**kept, "timesteps": T, **options}.items()))
        sample = tuple(case.batch(case.samples, seed))
        try:
            model = snncc.compile(case.model(), target, calibration=[sample], selfcheck=False, **dict(case.options))
        except SnnccError:
            continue
        yield case, model
        if not (count := count - 1):
            return
    pytest.fail("too few of the generated networks are taken")


def inputs(case: Case, model: CompiledModel, n: int) -> tuple[np.ndarray, ...]:
    """Of the calibration data, which every encoding can express."""
    return tuple(np.concatenate([x] * n)[:n] for x in case.batch(case.samples, case.seed))


@pytest.mark.parametrize("chip", ["speck2b", "dynapcnn"])
def test_samna_takes_them(samna: Samna, chip: str) -> None:
    models = [model for _, model in compiled(chip, 30)]
    texts = [str(model.target.files(model.graph, model.options)["config.json"]) for model in models]
    assert [(a["valid"], a["message"]) for a in samna.judge(texts)] == [(True, "")] * len(models)


def test_lava_gives_the_simulations_spikes(sdk_python: Callable[[str], Path], tmp_path: Path) -> None:
    python = sdk_python("lava")
    pairs = list(compiled("lava", 24, form="process", encoding="constant"))
    xs = [inputs(case, model, 2) for case, model in pairs]
    coded = [x for (_, model), each in zip(pairs, xs, strict=True) for x in model._encoded(each, T)]
    tally = Tally()
    for (_, model), x, got in zip(
        pairs, xs, run_together(python, tmp_path, [m for _, m in pairs], coded, T), strict=True
    ):
        tally.add(model, x, got)
    hold(tally)


def test_onnxruntime_gives_the_simulations_spikes(sdk_python: Callable[[str], Path]) -> None:
    python = sdk_python("onnxruntime")
    for case, model in compiled("lynxi", 16):
        x = inputs(case, model, 3)
        done, wanted = model.run(x, python=python), model.simulate(x)
        for mine, theirs in zip(done.outputs, wanted.outputs, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6, err_msg=case.program())  # of float32

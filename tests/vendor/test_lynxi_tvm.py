"""TVM compiles the ONNX step of networks compiled for Lynxi, whose own compiler descends from TVM, and gives the same
integers in every step."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from lynxi_executors import by_simulate, encoded, monitored, step_program
from lynxinets import spiking_network
from zoo import ZOO, build, example_input, random_model

import snncc
from snncc.ir.types import Array
from snncc.targets.lynxi import onnx_step

pytestmark = pytest.mark.vendor

# Reads N.onnx and N.npz (inputs by name, (T or 1, N, *shape)) of every N, writes N.out.npz (outputs, (T, N, *shape)).
RUN = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import numpy as np, onnx, tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
for path in map(Path, sys.argv[1:]):
    model, inputs = onnx.load(path), dict(np.load(path.with_suffix(".npz")))
    steps = int(inputs.pop("timesteps"))
    n = next(iter(inputs.values())).shape[1]
    names = [given.name for given in model.graph.input]
    shapes = {g.name: [n] + [d.dim_value for d in g.type.tensor_type.shape.dim][1:] for g in model.graph.input}
    module = relax.transform.DecomposeOpsForInference()(from_onnx(model, shape_dict=shapes))
    built = tvm.compile(relax.transform.LegalizeOps()(module), target="llvm")
    machine = relax.VirtualMachine(built, tvm.cpu())
    states = {k: np.zeros(shapes[k], np.float32) for k in names if k.endswith(".state")}
    results = [given.name for given in model.graph.output]
    rows = {}
    for t in range(steps):
        now = {k: x[t if len(x) > 1 else 0] for k, x in inputs.items()} | states
        answer = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(now[k])) for k in names))
        answer = [answer] if len(results) == 1 else list(answer)
        for name, y in zip(results, answer):
            if name.endswith(".next"):
                states[name[: -len(".next")] + ".state"] = y.numpy()
            else:
                rows.setdefault(name, []).append(y.numpy())
    np.savez(path.with_suffix(".out.npz"), **{k: np.stack(v) for k, v in rows.items()})
print("done")
"""


@pytest.fixture
def tvm(sdk_python: Callable[[str], Path], tmp_path: Path) -> Callable[..., list[list[Array]]]:
    """Runs networks, all in one process: of each, its outputs in integers (T, N, *shape)."""
    python = sdk_python("tvm")

    def run(models: Sequence[snncc.CompiledModel], xs: Sequence[Array], timesteps: int) -> list[list[Array]]:
        paths, programs = [tmp_path / f"{i}.onnx" for i in range(len(models))], [step_program(m) for m in models]
        for path, program, compiled, x in zip(paths, programs, models, xs, strict=True):
            path.write_bytes(onnx_step.write(program))
            names = [entry["name"] for entry in program.network["inputs"]]
            feeds = dict(zip(names, encoded(compiled, [x], timesteps), strict=True))
            np.savez(path.with_suffix(".npz"), timesteps=timesteps, **feeds)  # type: ignore[arg-type]
        done = subprocess.run([python, "-c", RUN, *paths], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "done", done.stderr[-3000:]
        found = []
        for path, program in zip(paths, programs, strict=True):
            with np.load(path.with_suffix(".out.npz")) as file:
                entries = program.network["outputs"]
                found.append([file[f"{e['value']}.output"] / program.value(e, "scale") for e in entries])
        return found

    return run


def check(tvm: Callable[..., list[list[Array]]], models: list[snncc.CompiledModel], xs: list[Array]) -> None:
    for compiled, x, found in zip(models, xs, tvm(models, xs, 5), strict=True):
        for a, b in zip(found, by_simulate(compiled, [x], 5), strict=True):
            np.testing.assert_array_equal(a, b)


def test_tvm_agrees_on_the_zoo(tvm: Callable[..., list[list[Array]]]) -> None:
    xs = [example_input(spec.input_shape, 2, seed=1).numpy() for spec in ZOO.values()]
    models = [monitored(build(name), x, timesteps=5) for name, x in zip(ZOO, xs, strict=True)]
    check(tvm, models, xs)


def test_tvm_agrees_on_generated_networks(tvm: Callable[..., list[list[Array]]]) -> None:
    """100 of them, converted ones and such that were made of spiking neurons."""
    models, xs = [], []
    for seed in range(100):
        network, shape = (random_model if seed % 2 else spiking_network)(np.random.default_rng(seed))
        xs.append(np.abs(example_input(shape, 2, seed).numpy()))
        options = {"reset": ("subtract", "zero")[seed // 2 % 2]} if seed % 2 else {}
        models.append(monitored(network, xs[-1], timesteps=5, **options))
    check(tvm, models, xs)

"""Real Lava on many networks at once: starting it takes seconds, and a process graph of several networks that have
nothing to do with each other is a process graph, too."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from snncc.compiled import CompiledModel
from snncc.ir.types import Array


class Tally:
    """How many values were compared, and how many of them differ."""

    def __init__(self) -> None:
        self.networks = self.compared = self.different = self.spikes = 0

    def add(self, model: CompiledModel, x: Any, got: dict[str, Array], timesteps: int | None = None) -> None:
        wanted = model.simulate(x, timesteps, record="all")
        assert got, "nothing was recorded"
        for name, value in got.items():
            mine = wanted.spikes[name] if name in wanted.spikes else wanted.values[name]
            assert value.shape == mine.shape
            self.compared += value.size
            self.different += int((value != mine).sum())
            self.spikes += int(np.count_nonzero(value))
        self.networks += 1

    def __str__(self) -> str:
        return (
            f"{self.networks} networks, {self.compared:,} values compared ({self.spikes:,} of them not 0), "
            f"{self.different} different"
        )


def hold(tally: Tally) -> None:
    print(f"\n{tally}")
    assert tally.different == 0 and tally.spikes > tally.compared / 100, str(tally)


def run_together(
    python: Path, folder: Path, models: list[CompiledModel], xs: list[Array], timesteps: int
) -> list[dict[str, Array]]:
    """What every layer of each network sent, all run in one process graph by the emitted runner.

    Args:
        xs: what goes into the inputs of all networks, one after the other, in integers.
    """
    joined: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for i, model in enumerate(models):
        files = model.target.files(model.graph, model.options)
        network = json.loads(files["network.json"])
        assert network["form"] == "process"

        def rename(value: Any, i: int = i) -> Any:
            return f"n{i}.{value}"

        for entry in network["inputs"] + network["populations"]:
            entry["name"] = rename(entry["name"])
        for entry in network["connections"]:
            for key in ("source", "destination", "weight", "rows", "columns", "values"):
                if key in entry and (key, entry[key]) != ("source", "pulses"):
                    entry[key] = rename(entry[key])
        for entry in network["populations"]:
            entry["arrays"] = {what: rename(key) for what, key in entry["arrays"].items()}
        assert "pulses" not in network, "sigma-delta networks run alone"
        network["outputs"] = [rename(name) for name in network["outputs"]]
        npz = files["network.npz"]
        assert isinstance(npz, bytes)
        with np.load(io.BytesIO(npz)) as file:
            arrays.update({rename(name): file[name] for name in file.files})
        if not joined:
            joined = network
        else:
            for key in ("inputs", "populations", "connections", "outputs"):
                joined[key] += network[key]
            joined["latency"] = max(joined["latency"], network["latency"])
    for name, content in models[0].target.files(models[0].graph, models[0].options).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "network.json").write_text(json.dumps(joined))
    np.savez(folder / "network.npz", **arrays)  # type: ignore[arg-type]
    np.savez(folder / "input.npz", **{f"x{i}": x for i, x in enumerate(xs)})  # type: ignore[arg-type]
    line = [
        python,
        "run.py",
        "--input",
        "input.npz",
        "--output",
        "output.npz",
        "--record",
        "all",
        "--timesteps",
        str(timesteps),
    ]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(folder / "output.npz") as file:
        spikes = {key.partition("/")[2]: file[key] for key in file.files if key.startswith("spikes/")}
    return [
        {name.removeprefix(f"n{i}."): v for name, v in spikes.items() if name.startswith(f"n{i}.")}
        for i in range(len(models))
    ]


def coded(model: CompiledModel, x: Array) -> Array:
    """The integers that go into a network with a constant input."""
    encode = next(n for n in model.graph.nodes if n.op.mnemonic == "encode")
    return np.rint(x.astype(np.float64) / encode.op.unit).astype(np.int32)  # type: ignore[attr-defined]

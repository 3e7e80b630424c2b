"""Lava's network files (`.net`) for tests: written from plain dictionaries, and random ones."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from snncc.ir import Graph
from snncc.ir.loihi import synapse_weights
from snncc.ir.types import Array

Layer = dict[str, Any]


def write(path: Path, layers: list[Layer]) -> Path:
    """A `.net` file as SLAYER writes it: everything is a dataset, a layer's type is S10 of shape (1,)."""
    with h5py.File(path, "w") as file:
        for i, layer in enumerate(layers):
            group = file.create_group(f"layer/{i}")
            for name, value in layer.items():
                if name == "type":
                    group.create_dataset(name, (1,), "S10", [value.encode()])
                elif isinstance(value, dict):
                    for key, inner in value.items():
                        group[f"{name}/{key}"] = inner.encode() if isinstance(inner, str) else inner
                else:
                    group[name] = value
    return path


def cuba(threshold: int = 3, i_decay: int = 4096, v_decay: int = 0, **more: Any) -> Layer:
    return {"type": "CUBA", "vThMant": threshold, "iDecay": i_decay, "vDecay": v_decay, **more}


def sdnn(threshold: int = 0, **more: Any) -> Layer:
    return {"type": "SDNN", "vThMant": threshold, **more}


def dense(weight: Any, neuron: Layer | None = None, **more: Any) -> Layer:
    weight = np.asarray(weight)
    given = {} if neuron is None else {"neuron": neuron}
    return {"type": "dense", "shape": [len(weight)], "weight": weight, **given, **more}


def conv(shape: tuple[int, ...], weight: Any, neuron: Layer, **more: Any) -> Layer:
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **more}
    return {"type": "conv", "shape": list(shape), "weight": weight, "neuron": neuron, **options}


def random_net(seed: int) -> list[Layer]:
    """A small network: of CUBA, SDNN or both, with all kinds of input, geometry, delay and bias. It may start with any
    type of layer but flatten; every third value of ``seed`` gives one family."""
    rng = np.random.default_rng(seed)
    family = ("cuba", "sdnn", "both")[seed % 3]

    def neuron() -> Layer:
        if family == "sdnn" or (family == "both" and rng.random() < 0.5):
            return sdnn(int(rng.integers(0, 4)))
        decay_u, decay_v = (int(rng.choice([0, 4096, rng.integers(1, 4096)])) for _ in range(2))
        return cuba(int(rng.integers(0, 30)), decay_u, decay_v)

    shape: tuple[int, ...] = tuple(rng.integers(2, 8, 3 if rng.random() < 0.7 else 1).tolist())
    layers: list[Layer] = [{"type": "input", "shape": list(shape)}]
    neurons = rng.random() < (0.7 if family == "sdnn" else 0.4)
    if neurons:
        layers[0]["neuron"] = neuron()
    if neurons and rng.random() < 0.7:
        layers[0] |= {"weight": rng.integers(1, 90, 1), "bias": rng.integers(-20, 20, 1).astype(np.float32)}
    for _ in range(int(rng.integers(0, 3)) if len(shape) == 3 else 0):
        layers.append(_random_conv(rng, shape, neuron()))
        shape = tuple(layers[-1]["shape"])
    if len(shape) == 3 and (neurons or len(layers) > 1):
        layers.append({"type": "flatten"})
    size = prod(shape)
    for _ in range(int(rng.integers(1, 4))):
        layers.append(_random_dense(rng, size, neuron(), wide=family == "cuba"))
        size = layers[-1]["shape"][0]
    if family == "sdnn" and rng.random() < 0.5:
        layers[-1].pop("bias", None)
        layers[-1]["neuron"]["sigma_output"] = True
    elif rng.random() < 0.1:
        del layers[-1]["neuron"]
    return layers if neurons or layers[1]["type"] == "conv" or rng.random() < 0.5 else layers[1:]


def _random_conv(rng: np.random.Generator, shape: tuple[int, ...], neuron: Layer) -> Layer:
    groups = int(rng.choice([g for g in range(1, shape[0] + 1) if shape[0] % g == 0]))
    outputs, sizes = groups * int(rng.integers(1, 3)), np.zeros(2, np.int64)
    while sizes.min() < 1:
        kernel, stride, dilation, padding = (
            rng.integers(low, high, 2) for low, high in ((1, 4), (1, 3), (1, 3), (0, 3))
        )
        sizes = (np.array(shape[1:]) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    weight = rng.integers(-9, 10, (outputs, shape[0] // groups, *kernel)).astype(np.float32)
    result = conv(
        (outputs, *sizes.tolist()), weight if rng.random() < 0.5 else weight[..., None], neuron, groups=groups
    )
    for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        result[name] = value[0] if value[0] == value[1] else value
    if rng.random() < 0.6:
        spread = (outputs,) if rng.random() < 0.7 else (*sizes.tolist()[::-1], outputs)
        result["bias"] = rng.integers(-30, 60, spread)
    return result


def _random_dense(rng: np.random.Generator, inputs: int, neuron: Layer, wide: bool) -> Layer:
    outputs = int(rng.integers(1, 9))
    ranges = [(-9, 10), (-256, 255), (0, 256), (0, 10), (-77, 0)]
    while True:
        weight = rng.integers(*ranges[rng.integers(5) if wide else 0], (outputs, inputs))
        try:
            synapse_weights(weight)
            break
        except ValueError:
            continue
    result = dense(weight.reshape(-1) if rng.random() < 0.1 else weight, neuron)
    result["shape"] = [outputs, 1, 1] if rng.random() < 0.3 else [outputs]
    delays = [(), (outputs,), (inputs,), (outputs, inputs)]
    if rng.random() < 0.6:
        result["delay"] = rng.integers(0, 7, delays[rng.integers(4)]).astype(np.float32)
    if rng.random() < 0.6:
        result["bias"] = rng.integers(-30, 60, outputs if rng.random() < 0.8 else 1)
    return result


def drive(graph: Graph, layers: list[Layer], steps: int, seed: int) -> tuple[Array, Array]:
    """(what to feed to the graph, the same for Lava: without batch, in its order of axes): random spikes; of an input
    layer with neurons, the image of which these get random whole numbers."""
    rng, shape = np.random.default_rng(seed), graph.inputs[0].type.shape
    first = layers[0]
    if "neuron" not in first or first["type"] != "input":
        spikes = (rng.random((steps, *shape)) < 0.3).astype(np.int64)
        kinds = [layer["type"] for layer in layers if layer["type"] in ("conv", "dense")]
        return spikes[:, None], whc(spikes, 1) if kinds[0] == "conv" else spikes.reshape(steps, -1)
    given = rng.integers(-9, 10, shape) if first["neuron"]["type"] == "SDNN" else rng.integers(-9, 200, shape)
    weight, bias = (float(np.asarray(first.get(name, value)).item()) for name, value in (("weight", 64), ("bias", 0)))
    return (given - bias)[None] / weight, whc(given)


def whc(x: Array, batch: int = 0) -> Array:
    """(..., C, H, W) as Lava has it, (..., W, H, C), and back. ``batch``: the axes that stay where they are."""
    return x.transpose(*range(batch), *range(batch, x.ndim)[::-1])

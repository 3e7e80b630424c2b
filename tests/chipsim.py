"""What the cores of a DYNAP-CNN chip do, from the configuration alone: plain numpy, a time step at a time."""

from __future__ import annotations

import itertools
from graphlib import TopologicalSorter
from math import prod
from typing import Any

import numpy as np

from snncc.targets.dynapcnn.config import Config, CoreConfig, InputRoute

Array = np.ndarray[Any, Any]


def run_chip(config: Config, *inputs: Array) -> dict[str, Array]:
    """The spikes (T, N, channels, height, width) of each core, by its name, for inputs (T, N, ...) of counts."""
    cores = {core.index: core for core in config.cores}
    steps = inputs[0].shape[:2]
    arriving = {core.index: np.zeros((*steps, *core.input_shape), np.int64) for core in config.cores}
    for route in config.inputs:
        send(host_map(route, inputs[route.index]), arriving[route.core], route.pooling, route.feature_shift)
    for bias in config.host_biases:
        for y, x in itertools.product(bias.rows, bias.columns):
            arriving[bias.core][:, :, bias.first : bias.first + bias.count, y, x] += 1
    sources: dict[int, set[int]] = {index: set() for index in cores}
    for core in config.cores:
        for destination in core.destinations:
            if destination.layer in cores:  # else the readout
                sources[destination.layer].add(core.index)
    sent = dict[str, Array]()
    for index in TopologicalSorter(sources).static_order():
        core = cores[index]
        sent[core.name] = run_core(core, arriving[index])
        for destination in core.destinations:
            if destination.layer in cores:
                into = arriving[destination.layer]
                send(sent[core.name], into, destination.pooling, destination.feature_shift)
    return sent


def read_outputs(config: Config, sent: dict[str, Array]) -> list[Array]:
    """What the readouts count: (T, N, channels, height, width) for each output."""
    steps = next(iter(sent.values())).shape[:2]
    outputs = [np.zeros((*steps, *shape), np.int64) for shape in config.output_shapes]
    names = {core.index: core.name for core in config.cores}
    for readout in config.readouts:
        for channel, spikes in enumerate(np.moveaxis(sent[names[readout.core]], 2, 0)):
            outputs[readout.output][:, :, readout.first + channel // readout.step] += spikes
    return outputs


def host_map(route: InputRoute, values: Array) -> Array:
    """The input in the map that the host lays it into."""
    flat = np.zeros((*values.shape[:2], prod(route.shape)), np.int64)
    flat[:, :, : prod(values.shape[2:])] = values.reshape(*values.shape[:2], -1)
    return flat.reshape(*values.shape[:2], *route.shape)


def send(spikes: Array, into: Array, pooling: int, shift: int) -> None:
    """Each spike as an event at its pooled place and shifted channel; what lies outside is lost."""
    channels, height, width = spikes.shape[2:]
    for y, x in itertools.product(range(height), range(width)):
        if y // pooling < into.shape[3] and x // pooling < into.shape[4]:
            into[:, :, shift : shift + channels, y // pooling, x // pooling] += spikes[..., y, x]


def run_core(core: CoreConfig, arriving: Array) -> Array:
    t, n = arriving.shape[:2]
    (sy, sx), (py, px), (f, h, w), k = core.stride, core.padding, core.output_shape, core.kernel
    padded = np.pad(arriving, ((0, 0), (0, 0), (0, 0), (py, py + sy), (px, px + sx)))
    current = np.zeros((t, n, f, h, w), np.int64)
    for y, x in itertools.product(range(k), repeat=2):
        window = padded[:, :, :, y : y + sy * h : sy, x : x + sx * w : sx]
        current += np.einsum("fc,tnchw->tnfhw", core.weights[:, :, y, x].astype(np.int64), window)
    v = np.zeros((n, f, h, w), np.int64) + (0 if core.initial is None else core.initial)
    bias = np.zeros(f, np.int64) if core.biases is None else core.biases.astype(np.int64)
    out = np.zeros_like(current)
    for step in range(t):
        v = v + current[step] + bias[:, None, None]
        out[step] = v >= core.threshold_high
        v = np.where(out[step] == 1, 0 if core.return_to_zero else v - core.threshold_high, v)
        v = np.maximum(v, core.threshold_low)
    return out

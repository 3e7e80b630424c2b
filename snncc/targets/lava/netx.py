"""Writes a program as a netx `.net` file (HDF5), if netx can hold it, and says why not.

Source of the format and of what netx does with it: lava-dl 0.6.0, lava/lib/dl/netx (hdf5.py, utils.py, blocks/). A file
is whole in itself: `netx.hdf5.Network(file, reset_interval=T, reset_offset=1, input_message_bits=...)` computes what we
simulate, with no help of ours.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from snncc.ir.diagnostics import input_error
from snncc.ir.loihi import SHIFT, synapse_weights
from snncc.ir.types import Array
from snncc.targets.lava.program import Connection, Population, Program

BIAS = range(-(2**12), 2**12)  # 13 bits of mantissa; netx sets the exponent to 6, a whole unit of the synaptic sum
THRESHOLD = range(2**17)
GEOMETRY = 127  # kernel, stride, padding, dilation and groups are int8 in lava-nc 0.10.0's Conv (conv/models.py)


def misfits(program: Program) -> Iterator[str]:
    """Why netx cannot hold the program; nothing if it can."""
    before = program.inputs[0][0]
    if len(program.inputs) > 1 or len(program.outputs) > 1:
        yield "it has one input and one output"
    if program.pulses:
        yield "its sigma-delta neurons have their biases before the input arrives, so that scores would not be exact"
    for population, connections in program.layers():
        name = f"`{population.name}`"
        if population.kind == "cuba_lif" and population.parameters["threshold"] not in THRESHOLD:
            yield f"its thresholds have 17 bits, that of {name} has more"
        if population.kind != "cuba_lif":
            yield f"it has no {population.kind} neurons that compute what {name} does"
        if population.arrays.get("v0") is not None:
            yield f"its neurons start at 0, {name} does not"
        if len(connections) != 1 or connections[0].source != before:
            yield f"it is a sequence, each layer reads the one before; {name} does not, or not through one layer"
        else:
            yield from _unfit(population, connections[0])
        bias = population.arrays.get("bias", np.zeros(1, np.int32))
        if (bias % 2**SHIFT).any() or int(bias.max() >> SHIFT) not in BIAS or int(bias.min() >> SHIFT) not in BIAS:
            yield f"its biases are whole numbers of 13 bits, those of {name} are not"
        before = population.name
    if program.outputs != (before,):
        yield f"its output is its last layer, not {', '.join(program.outputs)}"


def _unfit(population: Population, connection: Connection) -> Iterator[str]:
    if connection.kind not in ("conv", "dense"):
        yield f"what flows into `{population.name}` is neither a convolution nor a matrix"
    elif connection.kind == "conv":
        assert connection.weight is not None
        sizes = {name: connection.geometry[name] for name in ("stride", "padding", "dilation", "groups")}
        for name, value in {**sizes, "kernel": connection.weight.shape[2:]}.items():
            if np.max(value) > GEOMETRY:
                yield f"the {name} of `{population.name}`, {np.max(value)}, does not fit into 8 bits, as Lava holds it"
    elif connection.kind == "dense":
        assert connection.weight is not None
        weight = connection.weight.astype(np.int64)
        try:
            same = np.array_equal(synapse_weights(weight), weight)
        except (ValueError, OverflowError):
            same = False
        if not same:
            yield f"it would change the weights of `{population.name}` as it loads them, all 0 or all -1, say"


def write(program: Program) -> bytes:
    """The file's bytes. The program must have no :func:`misfits`.

    Raises:
        InputError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise input_error(
            "SNN101", "netx files are HDF5, and h5py is not installed", "pip install 'snncc[lava]'"
        ) from None
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        layers = file.create_group("layer")
        number = 0

        def layer(kind: str, **fields: Array | list[int] | int) -> h5py.Group:
            nonlocal number
            group = layers.create_group(str(number))
            group.create_dataset("type", (1,), "S10", [kind.encode()])
            for name, value in fields.items():
                group.create_dataset(name, data=np.asarray(value))
            number += 1
            return group

        shape = program.inputs[0][1]
        layer("input", shape=list(shape))
        for population, (connection,) in program.layers():
            if connection.kind == "dense" and len(shape) == 3:
                layer("flatten")
            group = layer(connection.kind, **_fields(population, connection))
            neuron = group.create_group("neuron")
            neuron.create_dataset("type", data=b"CUBA")
            neuron.create_dataset("vThMant", data=population.parameters["threshold"])
            neuron.create_dataset("iDecay", data=population.parameters["decay_u"])
            neuron.create_dataset("vDecay", data=population.parameters["decay_v"])
            shape = population.shape
    return buffer.getvalue()


def _fields(population: Population, connection: Connection) -> dict[str, Array | list[int] | int]:
    assert connection.weight is not None
    fields: dict[str, Array | list[int] | int] = {
        "shape": list(population.shape),
        "weight": connection.weight.astype(np.int32),
    }
    if connection.kind == "conv":
        fields |= {name: connection.geometry[name] for name in ("stride", "padding", "dilation", "groups")}
    if "bias" in population.arrays:
        bias = (population.arrays["bias"] >> SHIFT).astype(np.int32)
        if connection.kind == "conv":
            per_neuron = bias.reshape(population.shape)
            rows = per_neuron.reshape(len(per_neuron), -1)
            # netx takes one value per channel, or one per neuron in its own order, (W, H, C).
            same = bool((rows == rows[:, :1]).all())
            bias = rows[:, 0].copy() if same else per_neuron.transpose(2, 1, 0).copy()
        fields["bias"] = bias
    return fields

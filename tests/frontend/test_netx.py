"""Lava's `.net` files: structure, networks by hand, diagnostics. tests/vendor/test_netx_import.py has Lava itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from netxfiles import Layer, conv, cuba, dense, drive, random_net, sdnn, write

from snncc.engine import TorchEngine
from snncc.frontend import read_netx
from snncc.ir import Diagnostic, Graph, InputError, Severity, Stage, interp, parse, print_graph, verify
from snncc.ir.loihi import Delay, synapse_weights
from snncc.ir.ops import Add, Flatten, Linear
from snncc.ir.types import Array, Param

SPIKES: Layer = {"type": "input", "shape": [2]}
IMAGE: Layer = {"type": "input", "shape": [2, 4, 5]}
W = np.array([[2, -1], [1, 3], [0, 1]])
K = np.arange(24).reshape(3, 2, 2, 2) - 11


def read(folder: Path, layers: list[Layer], **options: Any) -> tuple[Graph, list[Diagnostic]]:
    graph, found = read_netx(write(folder / "a.net", layers), **options)
    verify(graph)
    assert all(d.severity is Severity.WARNING for d in found)
    return graph, found


def clean(folder: Path, layers: list[Layer], **options: Any) -> Graph:
    graph, found = read(folder, layers, **options)
    assert not found
    return graph


def run(graph: Graph, x: Any, steps: int) -> dict[str, list[Any]]:
    """The values of one sample, per step, as the reference interpreter has them and the engine too."""
    x = np.asarray(x)
    trace = interp.simulate(graph, x, timesteps=steps)
    fast = TorchEngine().simulate(graph, x, timesteps=steps, record="all")
    for name, values in {**fast.spikes, **fast.values}.items():
        np.testing.assert_array_equal(values, trace.values[name], name)
    return {name: value[:, 0].tolist() for name, value in trace.values.items()}


def spikes(*rows: list[int]) -> Array:
    return np.array(rows)[:, None]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_synapse_takes_a_step_and_a_bias_none(tmp_path: Path) -> None:
    graph = clean(tmp_path, [SPIKES, dense(W, cuba(2), bias=np.array([0, 0, 3]))])
    values = run(graph, spikes([1, 1], [0, 1], [0, 0], [0, 0]), 4)
    # v of neuron 0: 0, 1, 0, 0; of neuron 1: 0, 4 (a spike), 3 (a spike), 0; the bias alone is above 2.
    assert values["layer_1"] == [[0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert graph.stage is Stage.INT and graph.outputs == ("layer_1",)


def test_an_input_layer_with_neurons_takes_an_image(tmp_path: Path) -> None:
    first = {"type": "input", "shape": [2], "neuron": cuba(9, 0, 0), "weight": np.array([10]), "bias": np.array([1])}
    graph = clean(tmp_path, [first, dense(W, cuba(0))])
    values = run(graph, [[0.5, 0.2]], 6)
    # 6 and 3 in every step, a spike above 9; what iDecay says does not matter to a bias.
    assert values["layer_0"] == [[0, 0], [1, 0], [0, 0], [1, 1], [0, 0], [1, 0]]
    # 2 - 1 = 1 and 1 + 3 = 4 and 1 of both spikes in step 3; above 0 in step 4.
    assert values["layer_1"] == [[0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_sigma_delta(tmp_path: Path) -> None:
    first = {"type": "input", "shape": [2], "neuron": sdnn()}
    middle, last = dense(W, sdnn(1), bias=np.array([0, -2, 1])), dense([[1, 1, 1]], sdnn(9, sigma_output=True))
    graph = clean(tmp_path, [first, middle, last], spike_exp=2)
    values = run(graph, np.array([[3, 1]]) / 64, 4)  # 64: netx's weight of an input layer that has none
    assert values["layer_0"] == [[12, 4], [0, 0], [0, 0], [0, 0]]
    # Sums of 20, 24 and 4. The biases, in units of 2**8: 0, -512 and 256. All below 256 stay; the rest is cut by 2**6.
    assert values["layer_1"] == [[0, 0, 4], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert values["layer_2"] == [[0], [4], [4], [4]]


def test_an_input_of_sdnn_with_a_bias(tmp_path: Path) -> None:
    first = {"type": "input", "shape": [2], "neuron": sdnn(), "weight": np.array([2]), "bias": np.array([-3])}
    graph = clean(tmp_path, [first])
    assert run(graph, [[1.0, 4.0]], 2)["layer_0"] == [[-64, 5 * 64], [0, 0]]


def test_a_convolution_is_torchs(tmp_path: Path) -> None:
    more = {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]}
    graph = clean(tmp_path, [IMAGE, conv((3, 3, 3), K[..., None], cuba(0), bias=np.array([0, 1, 0]), **more)])
    node = graph["layer_1.conv2d"]
    assert (node.op.stride, node.op.padding, node.op.dilation) == ((2, 1), (1, 1, 0, 0), (1, 2))
    assert graph.store[node.op.weight].tolist() == K.tolist()
    assert graph.store[graph["layer_1"].op.bias].tolist() == [0, 64, 0]


def test_biases_per_neuron_are_in_lavas_order(tmp_path: Path) -> None:
    bias = np.arange(36).reshape(4, 3, 3)  # (W, H, C)
    graph = clean(tmp_path, [IMAGE, conv((3, 3, 4), K, cuba(0), bias=bias)])
    assert graph.store[graph["layer_1"].op.bias].tolist() == (64 * bias.transpose(2, 1, 0)).tolist()


def test_flatten_waits_for_a_dense_layer(tmp_path: Path) -> None:
    layers = [IMAGE, {"type": "flatten"}, conv((3, 3, 4), K, cuba(0)), dense(np.ones((1, 36)), cuba(0))]
    graph = clean(tmp_path, layers)
    assert [node.name for node in graph.nodes if isinstance(node.op, Flatten)] == ["layer_3.flatten"]


def test_without_an_input_layer(tmp_path: Path) -> None:
    assert clean(tmp_path, [dense(W, cuba())]).inputs[0].type.shape == (2,)
    layers = [conv((3, 3, 4), K, cuba())]
    assert clean(tmp_path, layers, input_shape=(2, 4, 5)).inputs[0].type.shape == (2, 4, 5)
    assert refused(tmp_path, layers) == [
        ("SNN005", "layer 0: the file does not say the shape of its input: pass input_shape=(C, H, W)")
    ]


def test_num_layers_counts_as_netx_does(tmp_path: Path) -> None:
    layers = [SPIKES, dense(W, cuba()), dense(W.T, cuba()), {"type": "average"}]
    assert clean(tmp_path, layers, num_layers=3).outputs == ("layer_2",)
    assert clean(tmp_path, layers, num_layers=2).outputs == ("layer_1",)
    ((code, message),) = refused(tmp_path, layers)
    assert (code, message) == ("SNN001", "layer 3 is of the type `average`, which is not read")
    assert refused(tmp_path, layers, num_layers=1) == [("SNN005", "layer 0: no layer with neurons was read")]


def test_the_neuron_that_netx_takes_by_default(tmp_path: Path) -> None:
    graph, (found,) = read(tmp_path, [SPIKES, dense(W, bias=np.array([5, 0, 0]))])
    assert "layer 1 has no neuron" in found.message
    x = np.ones((4, 1, 2), np.int64)
    assert not np.any(run(graph, x, 4)["layer_1"])
    final = TorchEngine().simulate(graph, x, timesteps=4, final=True).final["layer_1"]
    u = 3 * 64 * W.sum(1)  # what came in by the last step, added up
    assert final[0].tolist() == [u.tolist(), (u + np.array([5 * 64, 0, 0])).tolist()]


# --- delays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "steps"),
    [
        (2.0, 3),
        ([2, 2, 2], 3),
        ([1, 0, 2], [2, 1, 3]),  # per output
        ([4, 0], [5, 1]),  # per input
        ([[1, 1], [0, 0], [2, 2]], [2, 1, 3]),
        ([[4, 0], [4, 0], [4, 0]], [5, 1]),
    ],
)  # fmt: skip
def test_delays_that_need_one_product(tmp_path: Path, delay: Any, steps: Any) -> None:
    graph = clean(tmp_path, [SPIKES, dense(W, cuba(), delay=np.array(delay))])
    ((op, reads),) = [(node.op, node.args) for node in graph.nodes if isinstance(node.op, Delay)]
    assert (graph.store[op.steps].tolist() if isinstance(op.steps, Param) else op.steps) == steps
    per_input = isinstance(steps, list) and len(steps) == 2
    assert reads == ("encode" if per_input else "layer_1.linear",)


def test_as_many_outputs_as_inputs_delay_the_outputs(tmp_path: Path) -> None:
    graph = clean(tmp_path, [SPIKES, dense(W[:2], cuba(), delay=np.array([3, 0]))])
    assert [node.op.mnemonic for node in graph.nodes] == ["input", "encode", "linear", "delay", "cuba_lif"]


def test_a_matrix_of_delays(tmp_path: Path) -> None:
    delay = np.array([[0, 2], [1, 0], [0, 0]])
    graph = clean(tmp_path, [SPIKES, dense(W, cuba(0, 4096, 4096), delay=delay)])
    products = [graph.store[node.op.weight].tolist() for node in graph.nodes if isinstance(node.op, Linear)]
    assert products == [[[2, 0], [0, 3], [0, 1]], [[0, 0], [1, 0], [0, 0]], [[0, -1], [0, 0], [0, 0]]]
    assert [node.op.steps for node in graph.nodes if isinstance(node.op, Delay)] == [1, 2, 3]
    assert sum(isinstance(node.op, Add) for node in graph.nodes) == 2
    values = run(graph, spikes([1, 0], [0, 1], [0, 0], [0, 0], [0, 0]), 5)
    # Weights arrive at: 2 and 1 of input 0 at 1 and 2; -1, 3, 1 of input 1 at 4, 2, 2. No v is kept.
    assert values["layer_1"] == [[0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]]


# --- warnings --------------------------------------------------------------------------------------------------------


def warnings(folder: Path, layers: list[Layer]) -> list[tuple[str, str]]:
    found = read(folder, layers)[1]
    assert all(d.loc.sources[0].module.startswith("layer/") for d in found)
    return [(d.code, d.message) for d in found]


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [("wgtExp", 2, " = 2"), ("refDelay", 3, " = 3"), ("gradedSpike", True, " = True"), ("who", np.zeros(3), "")],
)
def test_fields_that_netx_ignores(tmp_path: Path, field: str, value: Any, shown: str) -> None:
    message = f"netx ignores `{field}`{shown} of the neuron of layer 1, and so does the graph"
    assert warnings(tmp_path, [SPIKES, dense(W, cuba(**{field: value}))]) == [("SNN007", message)]


def test_fields_that_change_nothing_are_no_news(tmp_path: Path) -> None:
    neuron = cuba(wgtExp=0, refDelay=1, gradedSpike=False, scaleRho=0.1, tauRho=0.5, theta=1600)
    clean(tmp_path, [SPIKES, dense(W, neuron, inFeatures=2, outFeatures=3)])
    clean(tmp_path, [SPIKES, dense(W, sdnn(activation="relu"))])


def test_more_that_is_ignored(tmp_path: Path) -> None:
    layers = [{**IMAGE, "weight": 3}, conv((3, 3, 4), K, sdnn(activation="tanh"), delay=np.array([4]))]
    assert [message for _, message in warnings(tmp_path, layers)] == [
        "netx ignores `weight` = 3 of layer 0, and so does the graph",
        "netx ignores `activation` = b'tanh' of the neuron of layer 1, and so does the graph",
        "netx ignores `delay` = 4 of layer 1, and so does the graph",
    ]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (dense([[300, -2]], cuba()), "netx changes 1 of the 2 weights of layer 1"),
        (dense([[130, -2]], cuba()), None),
        (dense([[129, -1]], cuba()), "the weights of layer 1, from -1 to 129, take more than 8 bits"),
        (dense(W, cuba(), bias=np.array([40000, 0, 0])), "layer 1 has a bias of 40000, which Lava wraps to -25536"),
        (dense(W, cuba(), delay=np.array(63)), "layer 1 has a delay of 63 steps, which netx clamps to 62"),
        (dense(W + 0.5, cuba()), "netx cuts the fractions of `weight` of layer 1"),
    ],
)
def test_what_netx_changes(tmp_path: Path, layer: Layer, message: str | None) -> None:
    assert warnings(tmp_path, [SPIKES, layer]) == ([("SNN066", message)] if message else [])


def test_wide_weights_of_a_convolution_stay(tmp_path: Path) -> None:
    layers = [IMAGE, conv((3, 3, 4), 50 * K, cuba())]
    assert warnings(tmp_path, layers) == [("SNN066", "the weights of layer 1, from -550 to 600, take more than 8 bits")]
    graph, _ = read(tmp_path, layers)
    assert graph.store[graph["layer_1.conv2d"].op.weight].tolist() == (50 * K).tolist()


# --- errors ----------------------------------------------------------------------------------------------------------


def refused(folder: Path, layers: list[Layer], **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        read_netx(write(folder / "a.net", layers), **options)
    return [(d.code, d.message) for d in caught.value.diagnostics]


@pytest.mark.parametrize("kind", ["pool", "average", "concat", "convT", "unpool", "dense_rec", "dense_comp", "other"])
def test_layers_that_are_not_read(tmp_path: Path, kind: str) -> None:
    message = f"layer 2 is of the type `{kind}`, which is not read"
    assert refused(tmp_path, [SPIKES, dense(W, cuba()), {"type": kind}]) == [("SNN001", message)]


@pytest.mark.parametrize("kind", ["RF", "RF_PHASE", "ALIF"])
def test_neurons_that_are_not_read(tmp_path: Path, kind: str) -> None:
    message = f"the neuron of layer 1 is of the type `{kind}`, which is not read"
    assert refused(tmp_path, [SPIKES, dense(W, {"type": kind})]) == [("SNN001", message)]


C = conv((3, 3, 4), K, cuba())
ERRORS: dict[str, tuple[list[Layer], str, str]] = {
    "complex weights": ([{**dense(W, cuba()), "weight": {"real": W, "imag": W}}], "SNN001", "complex weights"),
    "two inputs": ([SPIKES, SPIKES], "SNN001", "layer 1 is an input layer, but not the first"),
    "message bits": ([dense(W, cuba(messageBits=8))], "SNN001", "`messageBits`, on which netx fails"),
    "sigma and bias": ([dense(W, sdnn(sigma_output=True), bias=W[:, 0])], "SNN001", "a sigma output with a bias"),
    "zero weights": ([dense(0 * W, cuba())], "SNN066", "all weights are zero: netx fails to scale them"),
    "half weights": ([dense(-(W > 0).astype(int), cuba())], "SNN066", "the lowest weight becomes half a number"),
    "no weights": ([{"type": "dense", "shape": [3]}], "SNN071", "layer 0 has no array `weight`"),
    "no type": ([{"shape": [3]}], "SNN071", "layer 0 has no array `type`"),
    "a type of numbers": ([{"shape": [3], "neuron": {"type": 3}, **SPIKES}], "SNN071", "of layer 0 is no text"),
    "text for numbers": ([{**dense(W, cuba()), "weight": b"no"}], "SNN071", "`weight` of layer 0 holds no numbers"),
    "a neuron that is no group": ([dense(W) | {"neuron": 3}], "SNN071", "`neuron` of layer 0 is no group"),
    "no neuron": ([IMAGE, {k: v for k, v in C.items() if k != "neuron"}], "SNN071", "layer 1 has no neuron"),
    "NaN": ([dense(W * np.nan, cuba())], "SNN003", "`weight` of layer 0 holds values that are not finite"),
    "beyond 32 bits": ([dense(W * 2.0**31, cuba())], "SNN066", "`weight` of layer 0 goes beyond 32 bits"),
    "half a threshold": ([dense(W, sdnn() | {"vThMant": 0.5})], "SNN071", "the neuron of layer 0 is not whole: 0.5"),
    "two thresholds": ([dense(W, cuba() | {"vThMant": [1, 2]})], "SNN071", "holds 2 numbers, not one"),
    "a threshold below zero": ([dense(W, cuba(-1))], "SNN066", "is -1, not within 0"),
    "a decay above all": ([dense(W, cuba(1, 4097))], "SNN066", "layer 0 is 4097, not within 0 to 4096"),
    "a large bias": ([dense(W, sdnn(), bias=W[:, 0] * 2**20)], "SNN066", "a bias of 2097152, beyond what Lava holds"),
    "groups": ([IMAGE, C | {"groups": 128}], "SNN066", "groups of 128, which Lava wraps"),
    "no groups": ([IMAGE, C | {"groups": 0}], "SNN066", "`groups` of layer 1 is 0"),
    "a stride": ([IMAGE, C | {"stride": [1]}], "SNN071", "`stride` of layer 1 is [1], not one or two sizes"),
    "a padding below zero": ([IMAGE, C | {"padding": -1}], "SNN071", "`padding` of layer 1 is -1"),
    "a shape of nothing": ([dense(W, cuba()) | {"shape": [3, 0]}], "SNN071", "`shape` of layer 0 is [3, 0]"),
    "a flat convolution": ([IMAGE, C | {"shape": [36]}], "SNN005", "layer 1 has shape (36,) and a weight (3, 2, 2, 2)"),
    "a deep matrix": ([dense(W[..., None], cuba())], "SNN005", "has shape (3, 2, 1), not (3, inputs)"),
    "a delay too few": ([dense(W, cuba(), delay=[1])], "SNN005", "have shape (1,), its weights (3, 2)"),
    "a delay below zero": ([dense(W, cuba(), delay=-1)], "SNN066", "layer 0 has a delay of -1 steps"),
    "a bias too many": ([dense(W, cuba(), bias=np.ones(4))], "SNN005", "the bias of layer 0 has shape (4,)"),
    "a bias (C, H, W)": ([IMAGE, C | {"bias": np.ones((3, 3, 4))}], "SNN005", "its neurons are (W, H, C) (4, 3, 3)"),
    "an image with two axes": ([{"type": "input", "shape": [4, 5], "neuron": cuba()}], "SNN005", "one axis or three"),
    "an input weight of 0": ([{**SPIKES, "neuron": cuba(), "weight": 0}], "SNN066", "`weight` of layer 0 is 0"),
    "another shape": ([IMAGE, C | {"shape": [3, 4, 4]}], "SNN005", "is (3, 4, 4), the shape computed (3, 3, 4)"),
    "more inputs": ([SPIKES, dense(W.T, cuba())], "SNN005", "layer 1: linear takes 3 features"),
    "not flattened": ([IMAGE, C, dense(np.ones((1, 36)), cuba())], "SNN005", "netx fails to connect neurons (3, 3, 4)"),
    "flat already": ([SPIKES, dense(W, cuba()), {"type": "flatten"}, dense(W.T, cuba())], "SNN005", "fails to flatten"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(tmp_path: Path, name: str) -> None:
    layers, code, text = ERRORS[name]
    ((found, message),) = refused(tmp_path, layers)
    assert found == code and text in message


def test_all_errors_are_listed(tmp_path: Path) -> None:
    layers = [SPIKES, dense(0 * W, cuba(wgtExp=1)), {"type": "pool"}, dense(W, {"type": "RF"})]
    assert [code for code, _ in refused(tmp_path, layers)] == ["SNN066", "SNN001", "SNN001"]


@pytest.mark.parametrize("option", [{"num_layers": 0}, {"spike_exp": -1}, {"spike_exp": 17}])
def test_options(tmp_path: Path, option: dict[str, int]) -> None:
    ((code, message),) = refused(tmp_path, [dense(W, cuba())], **option)
    assert code == "SNN070" and next(iter(option)) in message


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.net").write_text("no")
    with h5py.File(tmp_path / "empty.net", "w") as file:
        file["layer"] = 3
    with h5py.File(tmp_path / "gap.net", "w") as file:
        file.create_group("layer/1")
    texts = {"missing.net": "is no HDF5 file", "text.net": "is no HDF5 file", "empty.net": "is no .net file"}
    for name, text in {**texts, "gap.net": "layer 0 is missing; the file has 1"}.items():
        with pytest.raises(InputError, match=text) as caught:
            read_netx(tmp_path / name)
        assert [d.code for d in caught.value.diagnostics] == ["SNN071"]


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    write(path, [dense(W, cuba())])
    with h5py.File(path, "a") as file:
        del file["layer/0/weight"]
        file.create_dataset("layer/0/weight", data=np.ones((3, 20)), chunks=(3, 20), compression="gzip")
        chunk = file["layer/0/weight"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(data)
    with pytest.raises(InputError, match="`weight` of layer 0 cannot be read"):
        read_netx(path)


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.net", [dense(W, cuba())])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="takes h5py") as caught:
        read_netx(path)
    assert "snncc[lava]" in caught.value.diagnostics[0].hint


# --- weights and generated networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "effective"),
    [
        ([127, -128, 3], [127, -128, 3]),
        ([254, -256, 1], [254, -256, 1]),
        ([300, -301, 1], [254, -256, 1]),
        ([255, 0, 7], [255, 0, 7]),
        ([256, 0, 7], [0, 0, 0]),
        ([-1, -1, -1], [0, 0, 0]),
        ([-8, -3, -1], [-7, -3, -1]),
        ([-8, -8, -8], [0, 0, 0]),
        ([-8, 0, -8], [-4, 0, -4]),
        ([-9, 0, -8], [-9, 0, -8]),
        ([-257, -2, -3], [0, 0, 0]),
        ([-131, 0, -3], [0, 0, 0]),
    ],
)  # fmt: skip
def test_synapse_weights(stored: list[int], effective: list[int]) -> None:
    assert synapse_weights(np.array([stored], np.float32)).tolist() == [effective]


@pytest.mark.parametrize("stored", [[0, 0], [-1, 0], [-1, -2, 0]])
def test_synapses_without_weights(stored: list[int]) -> None:
    with pytest.raises(ValueError, match="zero" if not any(stored) else "half"):
        synapse_weights(np.array([stored]))


@pytest.mark.parametrize("seed", range(60, 90))
def test_generated_networks(tmp_path: Path, seed: int) -> None:
    """Text and back, and two samples at a time, by the engine and by the interpreter."""
    layers = random_net(seed)
    graph, _ = read(tmp_path, layers)
    assert parse(print_graph(graph)) == graph
    (one, _), (two, _) = (drive(graph, layers, 12, s) for s in (seed, seed + 1))
    batch = one.ndim - 1 - len(graph.inputs[0].type.shape)
    run(graph, np.concatenate([one, two], axis=batch), 12)

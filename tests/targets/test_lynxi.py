"""The Lynxi target, through what executes its programs outside of our own engine."""

from __future__ import annotations

import json
import linecache
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lynxi_executors import (
    by_onnxruntime,
    by_script,
    by_simulate,
    by_torch,
    encoded,
    monitored,
    neurons,
    program,
    script,
)  # fmt: skip
from lynxinets import TwoInputs, reset, spiking_network
from torch import nn
from zoo import ZOO, build, example_input, random_model

import snncc
from snncc.ir import Severity, ops
from snncc.ir.types import Array
from snncc.targets.lynxi import conformance, fp16, model

FORMS = ("outer-loop", "unrolled")
RESETS = ("subtract", "zero")


def same(found: list[Array], wanted: list[Array]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ZOO)
def test_executors_agree_on_the_zoo(name: str, form: str, reset: str) -> None:
    """Every neuron's and every output's integers in every time step: our engine's, the module's, TorchScript's, and
    onnxruntime's."""
    x = example_input(ZOO[name].input_shape, 4, seed=1).numpy()
    compiled = monitored(build(name), x, timesteps=6, form=form, reset=reset)
    wanted = by_simulate(compiled, [x], 6)
    assert len(wanted) > 1 and any(y.any() for y in wanted)
    same(by_torch(compiled.modules(), compiled, [x], 6), wanted)
    same(by_script(compiled, [x], 6), wanted)
    same(by_onnxruntime(compiled, [x], 6), wanted)


ENCODINGS = ("constant", "rate", "bernoulli")


@pytest.mark.parametrize("seed", range(100))
def test_executors_agree_on_generated_networks(seed: int) -> None:
    network, shape = random_model(np.random.default_rng(seed))
    x = np.abs(example_input(shape, 4, seed).numpy())
    compiled = monitored(
        network, x, timesteps=5, form=FORMS[seed % 2], reset=RESETS[seed // 2 % 2], encoding=ENCODINGS[seed // 4 % 3],
        per=("channel", "layer")[seed // 12 % 2],
    )  # fmt: skip
    wanted = by_simulate(compiled, [x], 5)
    same(by_torch(compiled.modules(), compiled, [x], 5), wanted)
    same(by_script(compiled, [x], 5), wanted)
    same(by_onnxruntime(compiled, [x], 5), wanted)


@pytest.mark.parametrize("seed", range(60))
def test_executors_agree_on_networks_of_spiking_neurons(seed: int) -> None:
    network, shape = spiking_network(np.random.default_rng(seed))
    x = example_input(shape, 4, seed).numpy() * 2
    compiled = monitored(network, x, timesteps=6, form=FORMS[seed % 2])
    wanted = by_simulate(compiled, [x], 6)
    same(by_torch(compiled.modules(), compiled, [x], 6), wanted)
    same(by_script(compiled, [x], 6), wanted)
    same(by_onnxruntime(compiled, [x], 6), wanted)


# --- what is written ------------------------------------------------------------------------------------------------


def lenet(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), activation(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), activation(), nn.Flatten(),
        nn.Linear(16, 8), activation(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


X = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)


def compiled_lenet(**options: Any) -> snncc.CompiledModel:
    return snncc.compile(
        lenet(), "lynxi", calibration=X, **{"timesteps": 6, "bias": "keep", "selfcheck": False, **options}
    )


def test_reloaded_torchscript_keeps_every_save_and_reset() -> None:
    """Without a conservative alias analysis tracing drops them, as nothing in the graph reads what they give."""
    compiled = compiled_lenet(reset="zero")
    kinds = Counter(node.kind() for node in script(compiled).inlined_graph.nodes())
    assert {kind: n for kind, n in kinds.items() if kind.startswith("custom::")} == {
        "custom::load": 3, "custom::save": 3, "custom::cmpandfire": 3, "custom::resetwithdecay": 3,
    }  # fmt: skip
    subtract = Counter(node.kind() for node in script(compiled_lenet()).inlined_graph.nodes())
    assert (subtract["custom::save"], subtract["custom::resetwithdecay"], subtract["aten::ge"]) == (3, 0, 3)


def test_the_folder_stands_for_the_network(tmp_path: Path) -> None:
    compiled = compiled_lenet()
    folder = compiled.save(tmp_path / "out")
    names = {p.name for p in folder.iterdir()}
    assert names >= {"network.json", "network.npz", "network.pt", "step.onnx", "model.py", "compile_lynxi.py", "run.py"}
    network, arrays = model.read(folder)
    same(by_torch(model.build(network, arrays), compiled, [X], 6), by_simulate(compiled, [X], 6))
    loaded = snncc.load(folder)
    np.testing.assert_array_equal(loaded.simulate(X).output, compiled.simulate(X).output)
    assert loaded.target.files(loaded.graph, loaded.options)["network.json"] == (folder / "network.json").read_text()


def test_weights_are_fp16_numbers_and_powers_of_two_of_the_integers() -> None:
    compiled = compiled_lenet()
    made = program(compiled)
    for node in compiled.graph.nodes:
        if isinstance(node.op, ops.Weighted):
            real = made.arrays[f"{node.name}.weight"]
            np.testing.assert_array_equal(real, real.astype(np.float16))
            integers = compiled.graph.value(node.op.weight)
            ratios = np.unique(real[integers != 0] / integers[integers != 0])
            assert len(ratios) == 1 and float(np.log2(ratios[0])).is_integer()
    thresholds = [layer["threshold"] for layer in made.network["layers"] if layer["kind"] == "neuron"]
    assert all(1 / 4 <= theta <= 1 for theta in thresholds)  # from where a potential starts, half a threshold


def test_asymmetric_padding_slices_and_reflections_are_layers_of_their_own() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.second = nn.Conv2d(1, 4, 2, padding="same"), nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.conv(x))
            x = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
            return torch.relu(self.second(x[:, :, 1:8, ::2])).flatten(1)

    torch.manual_seed(0)
    compiled = snncc.compile(Net().eval(), "lynxi", calibration=X, timesteps=5, bias="keep", per="layer")
    wanted = by_simulate(compiled, [X], 5)
    same(by_torch(compiled.modules(), compiled, [X], 5), wanted)
    same(by_onnxruntime(compiled, [X], 5), wanted)
    unknown = {d.message.split()[0] for d in compiled.diagnostics if d.code == "SNN069"}
    assert unknown == {"aten::pad", "aten::slice"} or unknown == {"aten::constant_pad_nd", "aten::slice", "aten::pad"}
    assert all(d.loc.sources for d in compiled.diagnostics if d.code == "SNN069")


def test_two_inputs_and_two_outputs() -> None:
    torch.manual_seed(0)
    xs = [np.random.default_rng(i).random((8, n), dtype=np.float32) for i, n in enumerate((6, 4))]
    for form in FORMS:
        compiled = snncc.compile(TwoInputs(), "lynxi", calibration=[tuple(xs)], timesteps=5, form=form, bias="keep")
        wanted = by_simulate(compiled, xs, 5)
        assert len(wanted) == 2
        same(by_torch(compiled.modules(), compiled, xs, 5), wanted)
        same(by_onnxruntime(compiled, xs, 5), wanted)


def test_a_value_that_is_returned_twice_and_monitored() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.relu(self.layer(x))
            return y, y

    x = np.random.default_rng(0).random((8, 4), dtype=np.float32)
    for form in FORMS:
        options: dict[str, Any] = {"monitor": ("relu", "relu"), "form": form}
        compiled = snncc.compile(Net(), "lynxi", calibration=x, timesteps=5, bias="keep", **options)
        network = program(compiled).network
        assert [(e["value"], network["scores"]) for e in network["outputs"]] == [("relu", 2)] * 3
        wanted = by_simulate(compiled, [x], 5)[:3]
        same(by_torch(compiled.modules(), compiled, [x], 5), wanted)
        same(by_onnxruntime(compiled, [x], 5), wanted)


def test_ready_made_spikes_come_as_they_are() -> None:
    counts = np.random.default_rng(0).integers(0, 3, (5, 4, 1, 8, 8)).astype(np.float32)
    for form in FORMS:
        compiled = compiled_lenet(form=form, encoding="spikes", timesteps=5, monitor=("relu_1",))
        wanted = by_simulate(compiled, [counts], 5)
        same(by_torch(compiled.modules(), compiled, [counts], 5), wanted)
        same(by_onnxruntime(compiled, [counts], 5), wanted)


def test_modules_of_the_float_stage_are_the_network_itself() -> None:
    """Conversion of spiking modules, one for one: the user's own weights, and the same spikes."""
    for seed in range(20):
        network, shape = spiking_network(np.random.default_rng(seed))
        x = torch.from_numpy(example_input(shape, 4, seed).numpy() * 2)
        reset(network)
        with torch.no_grad():
            wanted = sum(network(x) for _ in range(6))
        reset(network)
        for form in FORMS:
            compiled = snncc.compile(
                network, "lynxi", calibration=x, timesteps=6, form=form, bias="keep", selfcheck=False
            )
            module = compiled.modules("snn")
            model.reset()
            with torch.no_grad():
                if form == "unrolled":
                    found = module(x).reshape(6, len(x), -1).sum(0)
                else:
                    found = sum(module(x) for _ in range(6))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_modules_are_plain_and_named_as_the_layers() -> None:
    module = compiled_lenet(reset="zero").modules()
    kinds = {name: type(m).__name__ for name, m in module.named_children()}
    assert list(kinds.values()) == [
        "Conv2d", "IF", "AvgPool2d", "Conv2d", "IF", "Flatten", "Linear", "IF", "Linear",
    ]  # fmt: skip
    with pytest.raises(snncc.InputError, match="is not given torch modules"):
        snncc.compile(lenet(), "reference", calibration=X).modules()


# --- what the custom operations do ----------------------------------------------------------------------------------


def test_custom_operations_mean_what_is_published() -> None:
    """BIDL_doc_en, api_neu.rst: fire *above* the threshold; custom_op_my_lif.py: below -100, a potential is reset."""
    model.register()
    v = torch.tensor([-101.0, -100.0, -99.0, 0.0, 0.5, 1.0, 1.5, 31744.0, 40000.0])
    fires = torch.ops.custom.cmpandfire(v, 1.0)
    assert fires.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0]
    after = torch.ops.custom.resetwithdecay(v, 1.0, 0.25, 0.5, 0.125)
    assert after.tolist() == [0.25, 0.25, -49.375, 0.125, 0.375, 0.625, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_potential_at_its_threshold_fires(precision: str) -> None:
    """What goes into the custom operation is the number below, so that it fires where neurons do."""
    neuron = model.IF((1, 1, 3), 0.75, rest=0.0, custom=True, precision=precision)
    model.register()
    below = float(np.nextafter(np.dtype(precision).type(0.75), np.dtype(precision).type(0)))
    x = torch.tensor([[[[0.75, below, 0.5]]]])
    model.reset()
    assert neuron(x).flatten().tolist() == [1, 0, 0]
    model.reset()


@pytest.mark.parametrize("weight", [-150.0, -3e5])
def test_potentials_below_the_custom_operations_range(weight: float) -> None:
    """Far more inhibition in one step than the custom reset leaves alone: the potential must come back from there."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, weight]]))
    calibration = np.array([[1.0, 0.0], [0.5, 0.0], [0.0, 1.0]], np.float32)
    compiled = snncc.compile(net, "lynxi", calibration=calibration, timesteps=4, reset="zero", encoding="rate")
    (neuron,) = [layer for layer in program(compiled).network["layers"] if layer["kind"] == "neuron"]
    assert neuron["custom"]
    assert neuron["threshold"] < 1 / 2  # with more, a potential would fall below -100
    x = np.array([[1.0, 0.5], [1.0, 0.0]], np.float32)
    wanted = by_simulate(compiled, [x], 4)
    same(by_torch(compiled.modules(), compiled, [x], 4), wanted)
    same(by_onnxruntime(compiled, [x], 4), wanted)


# --- what is said ---------------------------------------------------------------------------------------------------


def test_options_that_the_contract_does_not_have() -> None:
    for options, word in (
        ({"weight_bits": 13}, "an fp16 number holds 12"),
        ({"batch": 3}, "lyngor takes 1, 2, 4, 7, 14, 28"),
        ({"form": "netx"}, "does not take form='netx'"),
        ({"neuron": "sigma-delta"}, "does not take neuron"),
    ):
        with pytest.raises(snncc.InputError, match=word):
            compiled_lenet(**options)
    assert compiled_lenet(batch=3, form="unrolled").options.batch == 3
    with pytest.raises(snncc.CompileError, match="there is no neuron 'nobody' to monitor") as raised:
        compiled_lenet(monitor="nobody")
    assert "relu" in raised.value.diagnostics[-1].hint


def test_limits_of_inputs_and_of_the_chip() -> None:
    net = nn.Sequential(nn.Linear(5000, 5200, bias=False), nn.ReLU(), nn.Linear(5200, 2, bias=False))
    data = np.random.default_rng(0).random((2, 5000), dtype=np.float32)
    found = snncc.check(net, "lynxi", calibration=data, oversize=True, selfcheck=False)
    said = {d.code: d for d in found if d.severity is Severity.WARNING}
    assert (said["SNN055"].limit, said["SNN055"].found, said["SNN055"].quantity) == (4095, 5000, "values")
    assert (said["SNN056"].limit, said["SNN056"].found) == (25_000_000, 26_010_400)
    large = np.zeros((1, 4, 2000, 2000), np.float32)
    small = nn.Sequential(
        nn.Conv2d(4, 1, 1, stride=500, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False)
    )
    found = snncc.check(small, "lynxi", calibration=large + 1, selfcheck=False)
    assert sorted((d.limit, d.found) for d in found if d.code == "SNN055") == [
        (256 * 1024, 8_000_000), (6 * 1024 * 1024, 32_000_000),
    ]  # fmt: skip
    wide = nn.Sequential(nn.Conv2d(1, 70, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = snncc.check(wide, "lynxi", calibration=np.ones((1, 1, 64, 64), np.float32), oversize=True)
    assert [(d.limit, d.found) for d in found if d.code == "SNN057"] == [(250_000, 70 * 64 * 64)]


def test_more_than_the_chip_holds_is_refused_unless_it_is_asked_for() -> None:
    wide = nn.Sequential(nn.Conv2d(1, 70, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    data = np.ones((1, 1, 64, 64), np.float32)
    with pytest.raises(snncc.CompileError) as raised:
        snncc.compile(wide, "lynxi", calibration=data, timesteps=2)
    (error,) = (d for d in raised.value.diagnostics if d.severity is Severity.ERROR)
    assert (error.code, error.limit, error.found, error.quantity) == ("SNN057", 250_000, 70 * 64 * 64, "neurons")
    assert "1.2 times smaller" in error.hint and "oversize=True" in error.hint  # and both do:
    small = nn.Sequential(nn.Conv2d(1, int(70 / 1.2), 1, bias=False), *wide[1:]).eval()
    assert snncc.compile(small, "lynxi", calibration=data, timesteps=2).mapping["neurons_used"] < 1
    made = snncc.compile(wide, "lynxi", calibration=data, timesteps=2, oversize=True)
    (said,) = (d for d in made.diagnostics if d.code == "SNN057")
    assert said.severity is Severity.WARNING and made.mapping["neurons_used"] > 1
    with pytest.raises(snncc.InputError, match="does not take oversize=True"):
        snncc.compile(wide, "speck2f", calibration=data, oversize=True)


def test_fp16_is_measured_and_said() -> None:
    compiled = compiled_lenet()
    notes = [d.message for d in compiled.diagnostics if d.code == "SNN068"]
    loss = fp16(compiled, X)
    assert len(notes) == any(loss.spikes.values())
    assert all("of the spikes are others than in float32" in note for note in notes)
    assert set(loss.spikes) == set(neurons(compiled)) and not loss.overflow
    assert all(0 <= part < 0.05 for part in loss.spikes.values())
    # As an independent check: numpy's own fp16 for the first neuron, step by step.
    made = program(compiled)
    first, conv = (next(e for e in made.network["layers"] if e["kind"] == kind) for kind in ("neuron", "conv"))
    with torch.no_grad():
        x = torch.from_numpy(encoded(compiled, [X], 6)[0][0])
        weight, bias = (torch.from_numpy(made.arrays[conv[what]]) for what in ("weight", "bias"))
        current = nn.functional.conv2d(x, weight, bias.half().float()).numpy().astype(np.float16)
    v, sent = np.zeros_like(current), []
    for _ in range(6):
        v = v + current
        sent.append(v >= np.float16(first["threshold"]))
        v = v - sent[-1] * np.float16(first["amount"])
    exact = compiled.simulate(X, record=[first["name"]]).spikes[first["name"]]
    assert loss.spikes[first["name"]] == float((np.stack(sent) != exact.astype(bool)).mean())


def test_overflow_in_fp16_is_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        net[2].weight.fill_(1.0)
    calibration = np.array([[1e-3, 1.0]] * 255 + [[1e5, 1.0]], np.float32)
    found = snncc.check(net, "lynxi", calibration=calibration, threshold="percentile", percentile=50.0, per="channel")
    assert any(d.code == "SNN068" for d in found)


# --- conformance ----------------------------------------------------------------------------------------------------


class Bad(nn.Module):
    """What lyngor's users are warned of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.unsqueeze(0)  # five axes
        y = y.squeeze(0).clone()
        y[0] = 1.0  # in place
        y.add_(1.0)
        return torch.fft.rfft(y).abs()


def test_conformance_of_any_module() -> None:
    found = conformance(Bad(), [torch.zeros(1, 2, 4, 4)])
    said = [(d.code, d.severity.value, d.message) for d in found]
    assert ("SNN064", "error", "aten::unsqueeze gives a tensor of 5 axes, (1, 1, 2, 4, 4)") in said
    assert ("SNN064", "error", "aten::add_ changes a tensor in place, which lyngor drops without a word") in said
    assert any("aten::fill_ changes" in message for _, _, message in said)
    assert any("aten::fft_rfft is in none of the models" in message for _, _, message in said)
    place = next(d for d in found if "add_" in d.message).loc.sources[0]
    assert place.file.endswith("test_lynxi.py") and "y.add_" in linecache.getline(place.file, place.line)


def test_conformance_sees_control_flow_and_states() -> None:
    @torch.jit.script
    def branch(x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            x = x + 1
        return x

    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return branch(x)

    assert any("prim::If" in d.message for d in conformance(Branch(), [torch.zeros(1, 2)]))

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            model.save(model.load(x, "v") + x, "v")
            return model.load(x, "v")

    (found,) = conformance(Twice(), [torch.zeros(1, 2, 3, 3)])
    assert found.code == "SNN069" and found.message == "the state 'v' is loaded 2 times and saved 1 times"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reset_to", RESETS)
def test_our_own_programs_conform(form: str, reset_to: str) -> None:
    """Nothing in them but what was seen in models that were compiled for these chips."""
    compiled = compiled_lenet(form=form, reset=reset_to)
    assert not [d for d in compiled.diagnostics if d.code in ("SNN064", "SNN069")]
    assert conformance(compiled.modules(), model.example(program(compiled).network)) == []


def test_mapping_is_plain_data() -> None:
    mapping = compiled_lenet().mapping
    assert json.loads(json.dumps(mapping)) == mapping
    assert mapping["claim"] == "emits the published lyngor contract; not compiled by lyngor here"
    assert (mapping["neurons"], mapping["synapses"]) == (4 * 36 + 4 * 4 + 8, 36 + 64 + 128 + 24)
    assert (
        sum(t["bytes"] for t in mapping["tensors"] if t["op"] == "if") == mapping["state_bytes"] == 2 * (144 + 16 + 8)
    )

"""What is written is read back and held against the last stage: whole networks agree, one changed number is found."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import nn

import snncc
from snncc import readback
from snncc.ir.types import Array
from snncc.readback import Mismatch, check_written, written

Files = dict[str, Any]

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "reference": ("reference", {}),
    "speck2f": ("speck2f", {}),
    "speck2b": ("speck2b", {}),
    "lava": ("lava", {}),
    "lava-zero": ("lava", {"reset": "zero", "form": "process"}),
    "lava-sigma-delta": ("lava", {"neuron": "sigma-delta"}),
    "lava-netx": ("lava", {"reset": "zero", "form": "netx"}),
    "lynxi": ("lynxi", {}),
    "lynxi-zero": ("lynxi", {"reset": "zero"}),
    "lynxi-unrolled": ("lynxi", {"form": "unrolled"}),
}
KEPT: dict[str, snncc.CompiledModel] = {}


def network() -> nn.Module:
    """Two convolutions, the second not symmetric in any way, and a linear layer on what is flattened; with biases."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.ReLU(),
    ).eval()


def data(n: int = 4) -> Array:
    return np.random.default_rng(0).random((n, 1, 6, 6)).astype(np.float32)


def compiled(form: str) -> snncc.CompiledModel:
    if form not in KEPT:
        target, options = FORMS[form]
        KEPT[form] = snncc.compile(network(), target, calibration=data(), timesteps=8, **options)
    return KEPT[form]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_differs(form: str) -> None:
    model = compiled(form)
    assert model.verify() == []
    assert model.verify(data(), timesteps=None if form == "lynxi-unrolled" else 5) == []


@pytest.mark.parametrize("name", ["conv_variants", "densenet", "resnet_a", "inception", "mlp"])
@pytest.mark.parametrize("form", ["lava", "lava-sigma-delta", "lynxi"])
def test_networks_of_the_zoo(form: str, name: str) -> None:
    target, options = FORMS[form]
    x = zoo.example_input(zoo.ZOO[name].input_shape, 2)
    try:
        model = snncc.compile(zoo.build(name), target, calibration=x, timesteps=4, **options)
    except snncc.CompileError as error:
        if any(d.code == "SNN092" for d in error.diagnostics):
            raise
        pytest.skip("the target refuses the network")
    assert model.verify(x.numpy()) == []


@pytest.mark.parametrize("name", ["chip_residual", "chip_branches", "chip_split", "chip_depthwise", "chip_kernels"])
def test_networks_on_cores(name: str) -> None:
    x = zoo.example_input({**zoo.SEQUENTIAL_ZOO, **zoo.GRAPH_ZOO}[name].input_shape, 2)
    model = snncc.compile(zoo.build(name), "speck2f", calibration=x, timesteps=4)
    assert model.verify(x.numpy()) == []


class Sliced(nn.Module):
    """Every other row of the input, into a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x[:, :, ::2]))


def test_a_slice_of_the_input() -> None:
    """Which torch cannot make of what was made in its inference mode."""
    torch.manual_seed(0)
    model = snncc.compile(Sliced().eval(), "lynxi", calibration=data(), timesteps=4, encoding="spikes")
    counts = np.random.default_rng(0).integers(0, 3, (4, 2, 1, 6, 6)).astype(np.float32)
    assert model.verify(counts) == []


# --- one thing changed --------------------------------------------------------------------------------------------


def found(form: str, change: Callable[[Files], None], xs: Array | None = None) -> list[Mismatch]:
    """What is said of the form's files after a change; the files themselves are those of a compile."""
    model = compiled(form)
    files = written(model)
    before = dict(files)
    change(files)
    assert files != before
    return check_written(model, None if xs is None else [xs], files=files)


def in_json(name: str, change: Callable[[Any], None]) -> Callable[[Files], None]:
    def changed(files: Files) -> None:
        content = json.loads(files[name])
        change(content)
        files[name] = json.dumps(content)

    return changed


def in_npz(name: str, change: Callable[[dict[str, Array]], None]) -> Callable[[Files], None]:
    def changed(files: Files) -> None:
        with np.load(io.BytesIO(files[name])) as file:
            arrays = dict(file)
        change(arrays)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        files[name] = buffer.getvalue()

    return changed


def array(arrays: dict[str, Array], ending: str, which: int = 0) -> Array:
    """The which-th array of that name, as one that may be written to."""
    name = sorted(name for name in arrays if name.endswith(ending))[which]
    arrays[name] = arrays[name].copy()
    return arrays[name]


def another(weight: Array) -> None:
    """One weight that is one more, or one less."""
    at = tuple(n // 2 for n in weight.shape)
    step = np.abs(weight[weight != 0]).min()
    weight[at] += -step if weight[at] > 0 else step


def flipped(weight: Array) -> None:
    weight[:] = weight[:, :, ::-1].copy()


def core(change: Callable[[Any], None], which: int = 0) -> Callable[[Files], None]:
    """In the which-th core that is used, in the order of the network."""

    def changed(content: Any) -> None:
        layers = content["value0"].get("cnn_layers") or content["value0"]["cnnLayers"]
        names = list(content["snncc"]["names"])
        change(layers[f"value{names[which]}"])

    return in_json("config.json", changed)


def key(fields: Any, snake: str) -> str:
    """The spelling of a field in this chip's module."""
    head, *rest = snake.split("_")
    return snake if snake in fields else head + "".join(word.title() for word in rest)


def weight_of_core(fields: Any) -> None:
    values = fields["weights"]["values"]
    values[len(values) // 2] += -1 if values[len(values) // 2] > 0 else 1


def flip_core(fields: Any) -> None:
    tensor = fields["weights"]
    array = np.array(tensor["values"]).reshape(*tensor["dimensions"].values())
    tensor["values"] = array[:, :, ::-1].ravel().tolist()


def more(snake: str, amount: int = 1) -> Callable[[Any], None]:
    def changed(fields: Any) -> None:
        fields[key(fields, snake)] += amount

    return changed


def bias_of_core(fields: Any) -> None:
    fields["biases"]["values"][0] += 1


def destination(fields: Any) -> None:
    slot = next(iter(fields["destinations"].values()))
    slot[key(slot, "feature_shift")] += 1


def to_another_core(fields: Any) -> None:
    slot = next(iter(fields["destinations"].values()))
    slot["layer"] = (slot["layer"] + 1) % 9


def start_of_core(fields: Any) -> None:
    tensor = fields[key(fields, "neurons_initial_value")]
    channel = len(tensor["values"]) // next(iter(tensor["dimensions"].values()))
    tensor["values"][:channel] = [v + 1 for v in tensor["values"][:channel]]


CORES: dict[str, Callable[[Files], None]] = {
    "one weight": core(weight_of_core),
    "one weight of the last core": core(weight_of_core, -1),
    "a kernel flipped": core(flip_core, 1),
    "one threshold more": core(more("threshold_high")),
    "one threshold less": core(more("threshold_high", -1), 1),
    "the lowest potential": core(more("threshold_low"), 1),
    "a reset": core(lambda fields: fields.update({key(fields, "return_to_zero"): True}), 1),
    "a shifted destination": core(destination),
    "another destination": core(to_another_core),
    "where potentials start": core(start_of_core, 1),
    "an output's first channel": in_json("config.json", lambda c: c["snncc"]["readouts"][0].__setitem__(2, 2)),
}


@pytest.mark.parametrize("what", CORES)
@pytest.mark.parametrize("chip", ["speck2f", "speck2b"])
def test_a_changed_configuration_is_found(chip: str, what: str) -> None:
    assert [m.file for m in found(chip, CORES[what])] == ["config.json"]


def test_a_changed_bias_of_a_core_is_found() -> None:
    model = compiled("speck2f")
    leaks = [i for i, c in enumerate(model.target.config(model.graph, model.options).cores) if c.leaks]  # type: ignore[attr-defined]
    assert leaks
    assert found("speck2f", core(bias_of_core, leaks[0]))


def connection(kind: str, change: Callable[[Any], None]) -> Callable[[Files], None]:
    """In the first connection of that kind."""

    def changed(network: Any) -> None:
        change(next(c for c in network["connections"] if c["kind"] == kind))

    return in_json("network.json", changed)


def population(change: Callable[[Any], None], which: int = 0) -> Callable[[Files], None]:
    return in_json("network.json", lambda network: change(network["populations"][which]))


def plus_one(ending: str) -> Callable[[dict[str, Array]], None]:
    def changed(arrays: dict[str, Array]) -> None:
        array(arrays, ending).flat[0] += 1

    return changed


PROCESSES: dict[str, Callable[[Files], None]] = {
    "one weight": in_npz("network.npz", lambda arrays: another(array(arrays, ".weight"))),
    "one weight of the last layer": in_npz("network.npz", lambda arrays: another(array(arrays, ".weight", 2))),
    "a kernel flipped": in_npz("network.npz", lambda arrays: flipped(array(arrays, ".weight", 1))),
    "one bias": in_npz("network.npz", plus_one(".bias")),
    "a depth": population(lambda p: p.update(depth=p["depth"] + 1), 1),
    "a delay": connection("conv", lambda c: c.update(delay=1)),
    "an exponent": connection("dense", lambda c: c.update(exponent=1)),
    "spikes read as true or false": connection("conv", lambda c: c.update(message_bits=0)),
    "a padding": connection("conv", lambda c: c.update(padding=[2, 2])),
    "the output": in_json("network.json", lambda network: network.update(outputs=[network["populations"][0]["name"]])),
    "a wire": connection("dense", lambda c: c.update(source="input.encode")),
}


def a_threshold(form: str) -> Callable[[Files], None]:
    name = {"lava": "theta", "lava-zero": "threshold", "lava-sigma-delta": "shift"}[form]
    return population(lambda p: p["parameters"].update({name: p["parameters"][name] + 1}), 1)


@pytest.mark.parametrize("what", [*PROCESSES, "one threshold"])
@pytest.mark.parametrize("form", ["lava", "lava-zero", "lava-sigma-delta"])
def test_a_changed_process_program_is_found(form: str, what: str) -> None:
    if form == "lava-sigma-delta" and what == "one bias":
        pytest.skip("its biases are weights of pulses, see below")
    change = a_threshold(form) if what == "one threshold" else PROCESSES[what]
    (mismatch,) = found(form, change)
    assert "network.npz" in mismatch.file


@pytest.mark.parametrize("what", ["value", "step"])
def test_a_changed_pulse_is_found(what: str) -> None:
    """The biases of sigma-delta neurons: when, and how much."""

    def change(network: Any) -> None:
        message = network["pulses"]["messages"][0]
        message[what == "value"] += 1

    assert found("lava-sigma-delta", in_json("network.json", change))


def test_a_changed_start_is_found() -> None:
    KEPT["lava-v0"] = snncc.compile(network(), "lava", calibration=data(), timesteps=8, v0=0.25)
    assert KEPT["lava-v0"].verify(data()) == []
    assert found("lava-v0", in_npz("network.npz", plus_one(".v0")))


def in_netx(change: Callable[[Any], None]) -> Callable[[Files], None]:
    def changed(files: Files) -> None:
        h5py = pytest.importorskip("h5py")
        buffer = io.BytesIO(files["network.net"])
        with h5py.File(buffer, "r+") as file:
            change(file["layer"])
        files["network.net"] = buffer.getvalue()

    return changed


def write(layers: Any, layer: str, field: str, change: Callable[[Array], None]) -> None:
    array = np.array(layers[layer][field][()])
    change(array)
    layers[layer][field][...] = array


def add(array: Array) -> None:
    array += 1


NETX: dict[str, Callable[[Any], None]] = {
    "one weight": lambda layers: write(layers, "1", "weight", another),
    "a kernel flipped": lambda layers: write(layers, "2", "weight", flipped),
    "one threshold": lambda layers: write(layers, "1", "neuron/vThMant", add),
    "a decay": lambda layers: write(layers, "2", "neuron/vDecay", add),
    "a padding": lambda layers: write(layers, "1", "padding", add),
    "one bias": lambda layers: write(layers, "1", "bias", lambda bias: bias.__setitem__(0, bias[0] + 1)),
}


@pytest.mark.parametrize("what", NETX)
def test_a_changed_netx_file_is_found(what: str) -> None:
    (mismatch,) = found("lava-netx", in_netx(NETX[what]))
    assert "network.net" in mismatch.file


def layer(change: Callable[[Any], None], kind: str = "neuron") -> Callable[[Files], None]:
    def changed(network: Any) -> None:
        change(next(each for each in network["layers"] if each["kind"] == kind))

    return in_json("network.json", changed)


def larger_threshold(entry: Any) -> None:
    """By less than two steps of any sum: weights are whole numbers of some power of two."""
    entry["threshold"] *= 1 + 2**-8


LYNXI: dict[str, Callable[[Files], None]] = {
    "one weight": in_npz("network.npz", lambda arrays: another(array(arrays, ".weight"))),
    "a kernel flipped": in_npz("network.npz", lambda arrays: flipped(array(arrays, ".weight", 1))),
    "one threshold": layer(larger_threshold),
    "one bias": in_npz("network.npz", lambda arrays: another(array(arrays, ".bias"))),
    "a padding": layer(lambda each: each.update(padding=[0, 0]), "conv"),
    "what an output is worth": in_json("network.json", lambda network: network["outputs"][0].update(worth=0.25)),
    "the module's code": lambda files: files.update({"model.py": files["model.py"].replace("v >= ", "v > ")}),
}


@pytest.mark.parametrize("what", LYNXI)
@pytest.mark.parametrize("form", ["lynxi", "lynxi-unrolled"])
def test_a_changed_lynxi_network_is_found(form: str, what: str) -> None:
    if (form, what) == ("lynxi-unrolled", "the module's code"):
        pytest.skip("it starts at 0 only, from where no potential meets its threshold exactly")
    assert found(form, LYNXI[what], data())


def in_onnx(change: Callable[[Any], None]) -> Callable[[Files], None]:
    def changed(files: Files) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load_from_string(files["step.onnx"])
        change(model.graph)
        files["step.onnx"] = model.SerializeToString()

    return changed


def constant(ending: str, change: Callable[[Array], None]) -> Callable[[Any], None]:
    def changed(graph: Any) -> None:
        onnx = pytest.importorskip("onnx")
        tensor = next(each for each in graph.initializer if each.name.endswith(ending))
        array = onnx.numpy_helper.to_array(tensor).copy()
        change(array)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return changed


def rewired(graph: Any) -> None:
    """The last neuron reads its own last potential twice, and no input."""
    node = [each for each in graph.node if each.name.endswith(".v")][-1]
    node.input[0] = node.input[1]


ONNX: dict[str, Callable[[Any], None]] = {
    "one weight": constant("0.weight", another),
    "a kernel flipped": constant("2.weight", flipped),
    "one threshold": constant(".theta", lambda theta: np.multiply(theta, 1 + 2**-8, out=theta)),
    "a wire": rewired,
}


@pytest.mark.parametrize("what", ONNX)
@pytest.mark.parametrize("form", ["lynxi", "lynxi-unrolled"])
def test_a_changed_onnx_step_is_found(form: str, what: str) -> None:
    assert [m.file for m in found(form, in_onnx(ONNX[what]))] == ["step.onnx"]


@pytest.mark.parametrize("form", ["lynxi", "lynxi-unrolled"])
@pytest.mark.parametrize("what", ["weight", "threshold"])
def test_a_changed_torchscript_is_found(form: str, what: str) -> None:
    """That of the same network with one weight, or one threshold, changed."""
    from snncc.targets.lynxi import model

    network, arrays = LYNXI["one weight" if what == "weight" else "one threshold"], compiled(form)
    files = written(arrays)
    network(files)
    with np.load(io.BytesIO(files["network.npz"])) as file:  # type: ignore[arg-type]
        module = model.build(json.loads(files["network.json"]), dict(file))
    buffer = io.BytesIO()
    model.trace(module, model.example(json.loads(files["network.json"])), buffer)
    assert found(form, lambda files: files.update({"network.pt": buffer.getvalue()}), data())


@pytest.mark.parametrize("what", ["text", "tensor"])
def test_a_changed_last_stage_is_found(what: str) -> None:
    def change(files: Files) -> None:
        text = next(name for name in files if name.endswith(".mlir"))
        if what == "text":
            files[text] = files[text].replace("low = 0.0", "low = 0.1", 1)
        else:
            content = bytearray(files["weights.safetensors"])
            content[-3] ^= 1
            files["weights.safetensors"] = bytes(content)

    assert len(found("reference", change)) == 1


def test_a_file_that_is_none_is_found() -> None:
    (mismatch,) = found("speck2f", lambda files: files.update({"config.json": "{}"}))
    assert "cannot be read back" in mismatch.message


# --- in a compile ---------------------------------------------------------------------------------------------------


def test_a_compile_that_writes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    target = snncc.targets.find("speck2f")
    honest = type(target).files

    def files(self: Any, graph: Any, options: Any) -> dict[str, str | bytes]:
        made = honest(self, graph, options)
        CORES["one weight"](made)
        return made

    monkeypatch.setattr(type(target), "files", files)
    with pytest.raises(snncc.CompileError) as caught:
        snncc.compile(network(), "speck2f", calibration=data(), timesteps=8)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "SNN092" and "config.json" in diagnostic.message and "report it" in diagnostic.hint
    assert "test_readback.py" in diagnostic.render() or diagnostic.loc  # the user's layer
    assert caught.value.compilation is not None


@pytest.mark.parametrize("chip", ["speck2b", "speck2f"])
def test_a_batch_norm_behind_a_flattening_is_written_as_it_is_simulated(chip: str) -> None:
    """Was written with 2 weights in place of 8, and simulated with 8."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(8), nn.ReLU()).eval()
    with torch.no_grad():
        model[3].weight.copy_(torch.rand(8) + 0.5)
    x = np.random.default_rng(1).random((16, 2, 2, 2)).astype(np.float32)
    try:
        made = snncc.compile(model, chip, calibration=x, timesteps=16)
    except snncc.CompileError:
        return  # refused is not silent
    assert made.verify(x) == []


def test_the_run_over_time_has_its_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that takes more multiplications takes one step from chosen states only."""
    ran: list[int] = []
    honest = readback._Comparison.run
    monkeypatch.setattr(
        readback._Comparison, "run", lambda self, xs, *rest: ran.append(xs is not None) or honest(self, xs, *rest)
    )
    snncc.compile(network(), "lava", calibration=data(), timesteps=8)
    monkeypatch.setattr(readback, "OVER_TIME", 10)
    snncc.compile(network(), "lava", calibration=data(), timesteps=8)
    assert ran == [True, False]

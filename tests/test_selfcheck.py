"""The compile checks itself: each loss by its own column, the figures by an independent computation, what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lynxinets import spiking_network
from torch import nn
from zoo import GRAPH_ZOO, SEQUENTIAL_ZOO, ZOO, build, example_input

import snncc
from snncc import CompiledModel, selfcheck
from snncc.engine import TorchEngine
from snncc.ir import Diagnostic, Graph, Node, Severity, Stage, Store, ops
from snncc.ir.interp import simulate
from snncc.ir.types import Array
from snncc.selfcheck import CAUSES, SelfCheck, measure

T = 8
X = np.arange(9, dtype=np.float32).reshape(9, 1) / 8  # rates that T steps hold exactly


# --- one loss at a time ----------------------------------------------------------------------------------------------


def network(weight: float, integer: int, threshold: int, unit: float, reset: str = "subtract") -> dict[str, Graph]:
    """``relu(weight * x)``, and one neuron with an integer weight and threshold, in ``unit``, that starts at 0. A spike
    of the input is worth 1."""
    store = Store()

    def graph(stage: Stage, weight: Any, neuron: ops.Op, unit: float | None, encode: ops.Encode | None) -> Graph:
        made: dict[str, Node] = {}

        def add(name: str, op: ops.Op, *args: str, unit: float | None = None) -> None:
            type = op.infer(tuple(made[arg].type for arg in args), store)
            made[name] = Node(name, op, args, type if unit is None else replace(type, unit=unit))

        add("x", ops.Input((1,), 0.0, 1.0))
        if encode is not None:
            add("x.encode", encode, "x")
        add("fc", ops.Linear(store.put("w", np.asarray([[weight]]))), next(reversed(made)), unit=unit)
        add("act", neuron, "fc")
        return Graph(tuple(made.values()), ("act",), stage, store=store)

    plain = graph(Stage.FOLDED, np.float32(weight), ops.Relu(), None, None)
    neuron = ops.If(threshold, 0, reset)
    snn = graph(Stage.SNN, np.float32(weight), ops.If(threshold * unit, 0.0, reset), None, ops.Encode("rate"))
    made = graph(Stage.INT, np.int8(integer), neuron, unit, ops.Encode("rate", dtype="i32"))
    return {"ann": replace(plain, stage=Stage.ANN), "folded": plain, "snn": snn, "int": made}


def losses(stages: dict[str, Graph], x: Array = X) -> dict[str, float]:
    found = measure(stages, [(x,)], T, TorchEngine())
    assert found is not None
    assert found["x.encode"].time == 0
    return {cause: getattr(found["act"], cause) for cause in CAUSES}


def only(found: dict[str, float], cause: str) -> float:
    assert [name for name, loss in found.items() if loss > 1e-7] == [cause], found
    return found[cause]


def test_nothing_is_lost_where_all_is_exact() -> None:
    assert max(losses(network(1.0, 1, 1, 1.0)).values()) < 1e-7


def test_clipping_alone() -> None:
    x = X[[0, 4, 8]]  # a threshold of one half: of 0, 1/2 and 1, only 1 is clipped, by one half
    assert only(losses(network(1.0, 2, 1, 0.5), x), "clipping") == pytest.approx(0.5 / np.sqrt(0.25 + 1))


def test_rounding_alone() -> None:
    # 0.875 becomes 1: an eighth of all values, over their size.
    assert only(losses(network(0.875, 1, 1, 1.0)), "rounding") == pytest.approx(0.125 / 0.875)


def test_time_alone() -> None:
    # Half a threshold each: an odd number of spikes leaves a half, which T steps do not show.
    x = X[[1, 3, 8]]
    want = np.linalg.norm([1 / 16, 1 / 16, 0]) / np.linalg.norm([1 / 16, 3 / 16, 1 / 2])
    assert only(losses(network(0.5, 1, 2, 0.5), x), "time") == pytest.approx(want)


def test_unevenness_is_time() -> None:
    # Each spike brings two thresholds. Those of 3/8 come in the steps 2, 4 and 7: the last one has one step left.
    assert (
        only(losses(network(2.0, 2, 1, 1.0) | {}, X[[0]]) | {"time": 1.0}, "time") == 1.0
    )  # silent input loses nothing
    uneven = network(1.0, 2, 1, 0.5)
    found = losses(uneven, X[[3]])
    trace = simulate(uneven["int"], X[[3]], timesteps=T)
    assert found["time"] == pytest.approx(abs(trace.mean("act")[0, 0] - 3 / 8) / (3 / 8))


def test_reset_alone() -> None:
    # Spikes of three quarters against a threshold of one half: the reset forgets a quarter with each.
    stages = network(0.75, 3, 2, 0.25, "zero")
    found = losses(stages, X[[0, 4]])
    trace = simulate(stages["int"], X[[4]], timesteps=T)
    want = (0.375 - trace.mean("act")[0, 0]) / 0.375
    assert want > 0.3
    assert only(found, "reset") == pytest.approx(want)
    assert max(losses(network(0.75, 3, 2, 0.25), X[[0, 4]]).values()) < 1e-7


def test_earlier_layers_do_not_count() -> None:
    """Of two layers of which the first loses, the second is fed what the network gives."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.rand(4, 4) + 0.013)
        second.weight.copy_(torch.eye(4))
    x = np.random.default_rng(0).random((64, 4)).astype(np.float32)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
    done = snncc.compile(model, calibration=x, weight_bits=3, bias="keep", threshold="max", timesteps=64).selfcheck
    assert done is not None
    before, after = done.layers[-2:]
    assert before.rounding > 0.05 and after.error > 0.05
    assert after.rounding < 1e-3


# --- the figures, computed in another way ----------------------------------------------------------------------------


def given(rate: Array, steps: int) -> Array:
    """Spikes (T, N, F) of a neuron that starts at half its threshold and gets ``rate`` of it in every step."""
    v, out = np.full(rate.shape, 2048.0), []
    for _ in range(steps):
        v = v + np.rint(rate * 4096)
        out.append(v >= 4096)
        v = v - 4096 * out[-1]
    return np.asarray(out, np.float64)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_figures_against_plain_numpy(reset: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    x = np.random.default_rng(1).random((4, 6)).astype(np.float32)
    done = snncc.compile(model, calibration=x, timesteps=T, bias="keep", reset=reset, weight_bits=4)
    check, graph = done.selfcheck, done.graph
    assert check is not None and check.samples == check.layer_samples == 4
    with torch.inference_mode():
        a0 = model[:2](torch.from_numpy(x)).numpy().astype(np.float64)
        a1 = model[2:4](torch.from_numpy(a0).float()).numpy().astype(np.float64)
    neurons = [n for n in graph.nodes if isinstance(n.op, ops.If)]
    second = neurons[1]

    def value(v: Any) -> Array:
        return np.asarray(graph.value(v) if hasattr(v, "digest") else v, np.float64)

    worth = [value(n.type.unit) for n in neurons]
    layer = graph[second.args[0]]
    weight, bias = value(layer.op.weight), value(layer.op.bias)  # type: ignore[attr-defined]
    k, v0, unit = value(second.op.threshold), value(second.op.v0), value(layer.type.unit)
    most = worth[1] / unit  # what a spike is worth, in integer steps: with the gain of a reset to zero

    def transfer(spikes: Array) -> Array:
        return np.clip(spikes @ weight.T + bias, 0, most) * unit

    def run(spikes: Array, zero: bool) -> Array:
        v, count = np.broadcast_to(v0, (4, 8)).copy(), np.zeros((4, 8))
        for now in spikes:
            v += now @ weight.T + bias
            fires = v >= (k if zero else most)
            v = np.where(fires, 0.0 if zero else v - most, v)
            count += fires
        return count / T

    spikes = given(a0 / worth[0], T)
    soft, hard = run(spikes, False) * worth[1], run(spikes, reset == "zero") * worth[1]
    size = np.linalg.norm(a1)
    want = {
        "clipping": np.linalg.norm(a1 - np.minimum(a1, worth[1])) / size,
        "rounding": np.linalg.norm(transfer(a0 / worth[0]) - np.minimum(a1, worth[1])) / size,
        "time": np.linalg.norm(soft - transfer(spikes.mean(axis=0))) / size,
        "reset": np.linalg.norm(hard - soft) / size,
    }
    assert want["rounding"] > 0.003 and want["time"] > 0.002 and (want["reset"] > 0.01) == (reset == "zero")
    found = check[second.name]
    assert {cause: getattr(found, cause) for cause in CAUSES} == pytest.approx(want, rel=1e-4, abs=1e-6)
    trace = simulate(graph, x, timesteps=T)
    assert found.error == pytest.approx(np.linalg.norm(trace.mean(second.name) - a1) / size, rel=1e-5)
    assert found.rate == trace.spikes(second.name).mean()
    with torch.inference_mode():
        scores = model(torch.from_numpy(x)).numpy()
    off = trace.mean(graph.outputs[0]) - scores
    assert check.simulated.error == pytest.approx(np.linalg.norm(off) / np.linalg.norm(scores), rel=1e-5)
    changed = (trace.mean(graph.outputs[0]).argmax(axis=1) != scores.argmax(axis=1)).mean()
    assert check.simulated.changed == changed


@pytest.mark.parametrize("target", ["reference", "lava", "lynxi", "speck2b"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_figures_do_not_depend_on_batches(target: str, reset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = example_input((1, 8, 8), 24, seed=1)
    done = snncc.compile(build("chip_small"), target, calibration=x, timesteps=6, reset=reset, bias="keep")
    few = measure(done.stages, done.sample, 6, TorchEngine(memory=1), done.selfcheck.balanced)
    assert few is not None and done.selfcheck is not None
    for a, b in zip(few.layers, done.selfcheck.layers, strict=True):
        assert a.name == b.name and a.rate == b.rate
        assert [getattr(a, c) for c in CAUSES] == pytest.approx([getattr(b, c) for c in CAUSES], rel=1e-5, abs=1e-7)
    assert few.simulated.error == pytest.approx(done.selfcheck.simulated.error)
    hard = max(layer.reset for layer in few.layers)
    assert hard > 0.01 if reset == "zero" else hard == 0


# --- kinds of networks -----------------------------------------------------------------------------------------------


def compiled(
    model: nn.Module, shape: Sequence[int], target: str = "reference", n: int = 32, **options: Any
) -> CompiledModel:
    return snncc.compile(model, target, calibration=example_input(tuple(shape), n), **{"bias": "keep", **options})


def test_sigma_delta_neurons_lose_no_time() -> None:
    check = compiled(build("chip_small"), (1, 8, 8), "lava", neuron="sigma-delta").selfcheck
    assert check is not None and check.network is not None
    assert all(layer.time == layer.clipping == layer.reset == 0 for layer in check.layers)
    assert 0 < max(layer.rounding for layer in check.layers) < 0.2
    assert check.network == check.simulated


@pytest.mark.parametrize("seed", range(6))
def test_networks_with_spiking_neurons_of_their_own(seed: int) -> None:
    """Their network is its float simulation: integers round, and cost nothing else."""
    network, shape = spiking_network(np.random.default_rng(seed))
    x = 2 * example_input(shape, 4, seed).numpy()
    done = snncc.compile(network, "lynxi", calibration=x, timesteps=6, bias="keep")
    check = done.selfcheck
    assert check is not None and check.network is None and check.samples == check.layer_samples == 4
    own = [n.name for n in done.graph.nodes if isinstance(n.op, ops.Lif)]
    assert [layer.name for layer in check.layers if layer.rate is not None] == own
    assert all(layer.clipping == layer.time == layer.reset == 0 for layer in check.layers)
    wanted, got = (simulate(done.stages[stage], x, timesteps=6) for stage in ("snn", "int"))
    for name in own:
        was, now = (trace.spikes(name).mean(axis=0) for trace in (wanted, got))
        size = np.linalg.norm(was)
        assert check[name].error == pytest.approx(np.linalg.norm(now - was) / (size or 1.0), abs=1e-9)
        assert check[name].rate == pytest.approx(now.mean())
    first = check[own[0]]  # nothing is in front of it
    assert first.rounding == pytest.approx(first.error, abs=1e-9)
    (out,) = done.graph.outputs
    off = np.linalg.norm(got.mean(out) - wanted.mean(out)) / (np.linalg.norm(wanted.mean(out)) or 1.0)
    assert check.simulated.error == pytest.approx(off, abs=1e-9)


@pytest.mark.parametrize("encoding", ["constant", "rate", "bernoulli", "spikes"])
def test_encodings(encoding: str) -> None:
    check = compiled(build("chip_small"), (1, 8, 8), encoding=encoding, timesteps=5).selfcheck
    assert check is not None
    source = check.layers[0]
    assert (source.rounding > 0) == (encoding == "constant")
    assert (source.time > 0) == (encoding != "constant")
    assert source.rate is None


class Two(nn.Module):
    """A dense output, and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.conv(x))
        return self.head(x), self.fc(x[:, :1].flatten(1))


def test_dense_outputs_and_regression() -> None:
    torch.manual_seed(0)
    x = torch.rand(32, 2, 8, 8)
    model = Two()
    done = snncc.compile(model, calibration=x, timesteps=2, bias="keep")
    check = done.selfcheck
    assert check is not None and check.simulated.changed is not None
    xs = x[np.arange(check.samples) * 32 // check.samples]
    got = done.simulate(xs).outputs[0].argmax(axis=1)
    with torch.inference_mode():
        assert check.simulated.changed == pytest.approx((got != model(xs)[0].numpy().argmax(axis=1)).mean())

    class One(Two):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)[1]

    one = snncc.compile(One(), calibration=x, timesteps=2, bias="keep").selfcheck
    assert one is not None and one.simulated.changed is None and one.simulated.error > 0


def test_one_sample_is_enough() -> None:
    check = compiled(build("chip_small"), (1, 8, 8), n=1).selfcheck
    assert check is not None and check.samples == check.layer_samples == 1
    assert np.isfinite([getattr(layer, cause) for layer in check.layers for cause in CAUSES]).all()


@pytest.mark.parametrize(
    ("target", "name"),
    [("reference", "resnet_a"), ("lynxi", "resnet_a"), ("lava", "chip_residual"), ("speck2b", "chip_residual")],
)
def test_every_activation_is_measured(target: str, name: str) -> None:
    done = compiled(build(name), {**ZOO, **SEQUENTIAL_ZOO, **GRAPH_ZOO}[name].input_shape, target)
    assert done.selfcheck is not None
    activations = {n.name for n in done.stages["folded"].nodes if isinstance(n.op, ops.Activation)}
    assert {layer.name for layer in done.selfcheck.layers if layer.rate is not None} == activations


# --- what is said ----------------------------------------------------------------------------------------------------


def said(model: CompiledModel) -> list[Diagnostic]:
    return [d for d in model.diagnostics if d.code == "SNN046"]


def deep(seed: int = 0, outputs: int = 4) -> tuple[nn.Module, Array]:
    torch.manual_seed(seed)
    hidden: list[nn.Module] = []
    for _ in range(5):
        hidden += [nn.Linear(32, 32, bias=False), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(32, outputs))
    for layer in model[:-1:2]:
        nn.init.kaiming_normal_(layer.weight)
        with torch.no_grad():
            layer.weight -= layer.weight.mean(dim=1, keepdim=True)
    return model, np.random.default_rng(seed).random((64, 32)).astype(np.float32)


def options_in(hint: str) -> dict[str, Any]:
    word = hint.removeprefix("choose ").partition(":")[0]
    name, _, value = word.partition("=")
    return {name: value.strip("'") if "'" in value else int(value)}


def test_few_steps_warn_and_the_hint_works() -> None:
    model, x = deep()
    done = snncc.compile(model, calibration=x, timesteps=2, bias="keep")
    (warning,) = said(done)
    assert warning.severity is Severity.WARNING and "time: the steps are too few" in warning.message
    assert done.selfcheck is not None and done.selfcheck.cause == "time"
    changes = options_in(warning.hint)
    assert changes["timesteps"] > 2
    assert not said(snncc.compile(model, calibration=x, bias="keep", **changes))


def test_few_bits_warn_and_the_hint_works() -> None:
    model, x = deep()
    done = snncc.compile(model, calibration=x, timesteps=256, bias="keep", weight_bits=2)
    (warning,) = said(done)
    assert "rounding of weights" in warning.message
    assert not said(snncc.compile(model, calibration=x, timesteps=256, bias="keep", **options_in(warning.hint)))


def test_low_thresholds_warn_and_the_hint_works() -> None:
    model, x = deep()
    low = {"threshold": "percentile", "percentile": 60.0}
    (warning,) = said(snncc.compile(model, calibration=x, timesteps=256, bias="keep", **low))
    assert "clipping" in warning.message
    changed = {**low, **options_in(warning.hint)}
    assert changed["threshold"] == "max"
    assert not said(snncc.compile(model, calibration=x, timesteps=256, bias="keep", **changed))


def test_a_reset_to_zero_warns_and_the_hint_works() -> None:
    model, x = deep(1, outputs=1)
    (warning,) = said(snncc.compile(model, calibration=x, timesteps=32, bias="keep", reset="zero"))
    assert "reset to zero" in warning.message
    assert not said(snncc.compile(model, calibration=x, timesteps=32, bias="keep", **options_in(warning.hint)))


def test_what_is_lost_before_anything_spikes() -> None:
    model, x = deep(3)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([0.0, 3.0, 0.0, 0.0]))  # type: ignore[union-attr, operator]
        model[-1].weight.mul_(10)
    done = snncc.compile(model, calibration=x, timesteps=128, bias="strip")
    (warning,) = said(done)
    assert "have changed already" in warning.message and warning.hint == "choose bias='keep'"
    assert not said(snncc.compile(model, calibration=x, timesteps=128, bias="keep"))


def test_it_can_be_turned_off() -> None:
    model, x = deep()
    done = snncc.compile(model, calibration=x, timesteps=2, bias="keep", selfcheck=False)
    assert done.selfcheck is None and not said(done)
    assert not {"rate", "error", *CAUSES} & done.report[0].keys()
    with pytest.raises(snncc.InputError, match="selfcheck"):
        snncc.compile(model, calibration=x, selfcheck=1)


def test_check_says_it_too() -> None:
    model, x = deep()
    assert "SNN046" in [d.code for d in snncc.check(model, calibration=x, timesteps=2, bias="keep")]


def test_what_cannot_be_run_is_said() -> None:
    check = compiled(build("chip_small"), (1, 8, 8))
    codes = []

    def fails(*args: Any, **options: Any) -> SelfCheck:
        raise OverflowError("sums beyond the width")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "measure", fails)
        done = compiled(build("chip_small"), (1, 8, 8))
        codes = [d.code for d in done.diagnostics]
    assert "SNN047" in codes and done.selfcheck is None and check.selfcheck is not None


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    done = compiled(build("chip_small"), (1, 8, 8), "speck2b")
    loaded = snncc.load(done.save(tmp_path / "net"))
    assert loaded.selfcheck == done.selfcheck and loaded.report == done.report
    assert done.selfcheck is not None
    assert loaded.record(numbers=False)["selfcheck"] == done.selfcheck.plain()
    rows = {row["layer"]: row for row in loaded.report}
    shown = next(row for row in rows.values() if row.get("neuron") == done.selfcheck.layers[1].name)
    assert {c: shown[c] for c in CAUSES} == {c: getattr(done.selfcheck.layers[1], c) for c in CAUSES}

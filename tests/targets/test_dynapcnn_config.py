import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from snncc.targets.dynapcnn import run
from snncc.targets.dynapcnn.chips import CHIPS, bias_words, kernel_words, neuron_words
from snncc.targets.dynapcnn.config import (
    Config,
    ConfigError,
    CoreConfig,
    Destination,
    Readout,
    from_json,
    problems,
    to_json,
)

FIRST = CoreConfig(
    index=0,
    name="conv1",
    input_shape=(2, 16, 20),
    output_shape=(4, 16, 20),
    kernel=3,
    stride=(1, 1),
    padding=(1, 1),
    weights=np.arange(-36, 36, dtype=np.int8).reshape(4, 2, 3, 3),
    threshold_high=100,
    threshold_low=-100,
    biases=np.array([1, -2, 3, -4], np.int16),
    initial=np.arange(4 * 16 * 20, dtype=np.int16).reshape(4, 16, 20),
    destinations=(Destination(3, pooling=2),),
)
SECOND = CoreConfig(
    index=3,
    name="conv2",
    input_shape=(4, 8, 10),
    output_shape=(5, 4, 3),
    kernel=2,
    stride=(2, 4),
    padding=(0, 0),
    weights=np.ones((5, 4, 2, 2), np.int8),
    threshold_high=7,
    threshold_low=-1,
    return_to_zero=True,
    monitor=True,
)
GOOD = Config(CHIPS["speck2b"], (FIRST, SECOND), inputs=(0,), readouts=(Readout(3),))


def changed(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, **config: Any) -> Config:
    cores = (dataclasses.replace(FIRST, **(first or {})), dataclasses.replace(SECOND, **(second or {})))
    return dataclasses.replace(GOOD, **{"cores": cores, **config})


def third(index: int, *destinations: Destination, **changes: Any) -> CoreConfig:
    """A second input core beside FIRST, whose output pools to what SECOND takes."""
    return dataclasses.replace(FIRST, index=index, name="other", destinations=destinations, **changes)


def test_memory_examples() -> None:
    # Datasheet 3.2.4.1: Conv2d(16, 32, kernel_size=3, padding=1) on 64 x 64 needs 8 Ki and 128 Ki, and fits nowhere.
    assert kernel_words(16, 32, 3) == 8 * 1024
    assert neuron_words(32, 64, 64) == 128 * 1024
    assert max(core.neuron_words for core in CHIPS["speck2f"].cores) < 128 * 1024
    # sinabs, `DynapcnnLayer.memory_summary`: the same formulas, and one bias word a channel.
    assert kernel_words(3, 5, 1) == 3 * 8
    assert neuron_words(5, 33, 3) == 5 * 64 * 4
    assert (bias_words(5, True), bias_words(5, False)) == (5, 0)
    assert kernel_words(1, 1, 1) == neuron_words(1, 1, 1) == 1


def test_the_chips() -> None:
    assert {name for name, chip in CHIPS.items() if chip.validated} == {"dynapcnn", "speck", "speck2", "speck2b"}
    assert [len(chip.cores) for chip in CHIPS.values()] == [9] * 6 + [5] * 2
    # Datasheet 1.1: 'configurable with up to 320K spiking neurons'.
    assert sum(core.neuron_words for core in CHIPS["speck2f"].cores) == 320 * 1024


def test_a_good_configuration_has_no_problems() -> None:
    assert problems(GOOD) == []
    assert FIRST.memory == (2 * 16 * 4, 4 * 16 * 32, 4)
    assert GOOD.classes == 5


@pytest.mark.parametrize("name", CHIPS)
def test_json_round_trip(name: str) -> None:
    # The fifth core of the minis has bias memory, core 0 has none.
    cores = (dataclasses.replace(FIRST, index=4), dataclasses.replace(SECOND))
    config = Config(CHIPS[name], cores, inputs=(4,), readouts=(Readout(3, first=1),))
    text = to_json(config)
    back = from_json(text)
    assert to_json(back) == text
    for was, now in zip(config.cores, back.cores, strict=True):
        arrays = {"weights", "biases", "initial"}
        for field in dataclasses.fields(CoreConfig):
            if field.name not in arrays:
                assert getattr(was, field.name) == getattr(now, field.name), field.name
        np.testing.assert_array_equal(was.weights, now.weights)
    np.testing.assert_array_equal(back.cores[0].biases, FIRST.biases)
    np.testing.assert_array_equal(back.cores[0].initial, FIRST.initial)
    assert back.cores[1].biases is None
    assert (back.chip, back.inputs, back.readouts, back.classes) == (CHIPS[name], (4,), (Readout(3, 1),), 6)


def test_json_form() -> None:
    data = json.loads(to_json(GOOD))
    assert list(data) == ["value0", "snncc"]  # samna takes the first for the configuration, whatever its name
    core = data["value0"]["cnnLayers"]["value0"]
    assert core["weights"]["dimensions"] == {"value0": 4, "value1": 2, "value2": 3, "value3": 3}
    assert core["weights"]["offsets"] == {"value0": 18, "value1": 9, "value2": 3, "value3": 1}
    assert core["weights"]["values"][:4] == [-36, -33, -30, -35]  # x before y: down the first column
    assert core["dimensions"]["inputShape"] == {"featureCount": 2, "size": {"x": 20, "y": 16}}
    assert core["destinations"]["value0"] == {"layer": 3, "enable": True, "featureShift": 0, "pooling": 2}
    assert core["destinations"]["value1"]["enable"] is False
    assert (core["leakEnable"], core["weightsKillBit"]["values"]) == (True, [False] * 72)
    assert data["value0"]["dvsLayer"]["passSensorEvents"] is False
    assert "kernel_size" in to_json(dataclasses.replace(GOOD, chip=CHIPS["speck2"]))
    assert "KillBit" not in to_json(dataclasses.replace(GOOD, chip=CHIPS["speck2e"]))


def test_a_bias_of_zeros_costs_nothing() -> None:
    config = changed(first={"biases": np.zeros(4, np.int16)})
    assert config.cores[0].memory[2] == 0
    assert json.loads(to_json(config))["value0"]["cnnLayers"]["value0"]["leakEnable"] is False


# Of each wrong configuration its problems in order: the item, and the layer too where it is not the obvious one.
WRONG: list[tuple[Config, list[str | tuple[str, str]]]] = [
    (changed(first={"index": 9}), ["core", ("conv1", "sources"), ("", "inputs")]),
    (changed(first={"kernel": 17}), ["kernel size", "shape of weights", "output size y", "output size x"]),
    (changed(second={"kernel": 0}), ["kernel size", "shape of weights"]),
    (changed(first={"stride": (3, 1)}), ["stride y", "output size y"]),
    (changed(first={"stride": (1, 0)}), ["stride x"]),
    (changed(first={"padding": (1, 8)}), ["padding x", "output size x"]),
    (changed(first={"padding": (-1, 1)}), ["padding y", "output size y"]),
    (changed(second={"threshold_high": 0}), ["threshold_high"]),
    (changed(second={"threshold_high": 2**15}), ["threshold_high"]),
    (changed(second={"threshold_low": 0}), ["threshold_low"]),
    (changed(second={"threshold_low": -(2**15) - 1}), ["threshold_low"]),
    (changed(first={"weights": FIRST.weights.astype(int) + 100}), ["weights"]),
    (changed(first={"weights": FIRST.weights / 2}), ["weights dtype"]),
    (changed(first={"weights": FIRST.weights[:3]}), ["shape of weights"]),
    (changed(first={"weights": FIRST.weights * 0}), ["weights"]),
    (changed(first={"biases": np.full(4, -(2**15) - 1)}), ["biases"]),
    (changed(first={"biases": np.ones(3, np.int16)}), ["shape of biases"]),
    (changed(first={"initial": np.full((4, 16, 20), 2**15)}), ["initial state"]),
    (changed(first={"initial": np.zeros((4, 20, 16), np.int16)}), ["shape of initial state"]),
    (changed(second={"output_shape": (5, 4, 2)}), ["output size x"]),
    (changed(first={"destinations": (Destination(3, 3),)}), ["pooling"]),
    (changed(first={"destinations": (Destination(3, 0),)}), ["pooling"]),
    (changed(first={"destinations": (Destination(3, 8),)}), ["pooling"]),
    (
        changed(first={"destinations": (Destination(3, 4),)}),
        [("conv1 -> conv2", "size y after pooling"), ("conv1 -> conv2", "size x after pooling")],
    ),
    (changed(first={"destinations": (Destination(4),)}), ["destination", ("conv2", "sources")]),
    (changed(first={"destinations": (Destination(12, 2),)}), ["destination", ("conv2", "sources")]),
    (changed(first={"destinations": (Destination(3, 2, 1),)}), [("conv1 -> conv2", "channels")]),
    (changed(first={"destinations": (Destination(3, 2, -1),)}), [("conv1 -> conv2", "channels")]),
    (changed(first={"destinations": ()}), [("conv2", "sources"), "destinations"]),
    (changed(first={"destinations": (Destination(3, 2),) * 2}), [("conv2", "sources")]),
    (changed(second={"destinations": (Destination(3),)}), ["destination"]),
    (changed(second={"monitor": False}), ["monitor", "destinations"]),
    (changed(second={"index": 0}), [("", "cores"), "destination", ("", "readouts")]),
    (changed(inputs=()), [("conv1", "sources"), ("", "inputs")]),
    (changed(inputs=(0, 0)), [("", "inputs")]),
    (changed(inputs=(0, 3)), [("conv2", "sources"), ("", "input shapes")]),
    (changed(readouts=(Readout(1),)), [("", "readouts")]),
    (changed(readouts=(Readout(3, -1, 0),)), [("", "readout")]),
]


@pytest.mark.parametrize(("config", "expected"), WRONG)
def test_each_problem_is_named(config: Config, expected: list[str | tuple[str, str]]) -> None:
    found = [(problem.core_name, problem.item) for problem in problems(config)]
    assert [pair if pair in expected else pair[1] for pair in found] == expected
    with pytest.raises(ConfigError) as caught:
        to_json(config)
    assert [problem.text for problem in caught.value.problems] == str(caught.value).splitlines()


def test_memory_problems_say_by_how_much() -> None:
    # 8 channels of 64 x 64 in core 7, and 64 -> 512 channels of 3 x 3
    big = CoreConfig(
        index=7,
        name="features.0",
        input_shape=(64, 64, 64),
        output_shape=(512, 64, 64),
        kernel=3,
        stride=(1, 1),
        padding=(1, 1),
        weights=np.ones((512, 64, 3, 3), np.int8),
        threshold_high=1,
        threshold_low=-1,
        monitor=True,
    )
    kernel, neuron = problems(Config(GOOD.chip, (big,), (7,), (Readout(7),)))
    assert (kernel.item, kernel.limit, kernel.found) == ("kernel memory", 16384, 64 * 16 * 512)
    assert (neuron.item, neuron.limit, neuron.found) == ("neuron memory", 16384, 512 * 4096)
    assert neuron.text == "features.0: needs 2097152 words of neuron memory, core 7 has 16384"


def test_the_minis_have_cores_without_bias_memory() -> None:
    config = dataclasses.replace(GOOD, chip=CHIPS["speck2cmini"])
    assert [(problem.core_name, problem.item, problem.limit) for problem in problems(config)] == [
        ("conv1", "bias memory", 0)
    ]


def test_concatenation() -> None:
    second = dataclasses.replace(SECOND, input_shape=(8, 8, 10), weights=np.ones((5, 8, 2, 2), np.int8))
    beside = Config(GOOD.chip, (FIRST, third(1, Destination(3, 2, 4)), second), (0, 1), (Readout(3),))
    assert problems(beside) == []
    apart = dataclasses.replace(beside, cores=(FIRST, third(1, Destination(3, 2, 3)), second))
    assert [problem.item for problem in problems(apart)] == ["sources", "channels fed"]


def test_addition_is_for_the_newer_chips() -> None:
    added = Config(GOOD.chip, (FIRST, third(1, Destination(3, 2)), SECOND), (0, 1), (Readout(3),))
    (problem,) = problems(added)
    assert problem.text.startswith("conv2: channels 0..3 come from both conv1 and other; on speck2b a core can")
    assert problems(dataclasses.replace(added, chip=CHIPS["speck2f"])) == []


def test_a_cycle_is_named() -> None:
    back = dataclasses.replace(
        SECOND,
        output_shape=(2, 16, 20),
        stride=(1, 1),
        destinations=(Destination(0),),
        weights=np.ones((2, 4, 2, 2), int),
    )
    found = [problem for problem in problems(changed(cores=(FIRST, back))) if problem.item == "connections"]
    assert [problem.found for problem in found] == ["conv1 -> conv2 -> conv1"]


def test_the_readout_of_the_newer_chips() -> None:
    def ending(channels: int) -> Config:
        last = {
            "output_shape": (channels, 4, 3),
            "weights": np.ones((channels, 4, 2, 2), np.int8),
            "destinations": (Destination(12),),
        }
        return changed(second=last, chip=CHIPS["speck2f"], readouts=(Readout(3, step=4),))

    assert problems(ending(57)) == []
    assert ending(57).classes == 15
    assert [problem.item for problem in problems(ending(58))] == ["channels into the readout"]


# ------------------------------------------------------------------------------------------- the runner, without samna


class Event(SimpleNamespace):
    pass


class FakeBoard:
    """A board that answers each input spike at once with one of the last core, of channel t // 1000 - 1."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.out: list[Event] = []
        self.resets: list[tuple[int, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        if name in {"get_model", "get_io_module", "get_source_node", "get_sink_node"}:
            return lambda: self
        raise AttributeError(name)

    def apply_configuration(self, configuration: Any) -> None:
        self.log.append("configured")

    def add_destination(self, channel: str) -> bool:
        self.log.append(channel)
        return True

    def write_config(self, register: int, value: int) -> None:
        self.log.append(f"register {register} = {value}")

    def set_slow_clk_rate(self, hertz: int) -> None:
        self.log.append(f"slow clock {hertz} Hz")

    def set_slow_clk(self, on: bool) -> None:
        self.log.append(f"slow clock {on}")

    def write(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Spike):
                assert event.layer == 0
                self.out.append(Spike(layer=3, feature=event.timestamp // 1000 - 1, x=0, y=0))
                self.out.append(Spike(layer=0, feature=0, x=0, y=0))  # another core's monitor
            else:
                self.resets.append((event.layer, event.address, event.neuron_state))

    def get_events(self) -> list[Event]:
        events, self.out = self.out, []
        return events

    def get_input_channel(self) -> str:
        return "sink connected"


class Spike(Event):
    pass


def fake_samna(board: FakeBoard) -> ModuleType:
    """As much of samna 0.7 as a deployment uses."""
    chip = ModuleType("samna.speck2b")
    chip.event = SimpleNamespace(Spike=Spike, WriteNeuronValue=Event)  # type: ignore[attr-defined]
    configuration = SimpleNamespace(from_json=lambda text: None)
    chip.configuration = SimpleNamespace(SpeckConfiguration=lambda: configuration)  # type: ignore[attr-defined]
    controller = SimpleNamespace(
        get_unopened_devices=lambda: [
            SimpleNamespace(device_type_name=name) for name in ("Davis 346", "Speck2bTestboard")
        ],
        open_device=lambda info, name: board.log.append(f"opened {info.device_type_name} as {name}"),
    )
    samna = ModuleType("samna")
    samna.__dict__.update(
        speck2b=chip,
        device=SimpleNamespace(),
        device_node=SimpleNamespace(DeviceController=controller, board=board),
        SamnaNode=lambda *arguments: object(),
        setup_local_node=lambda *arguments: None,
        open_remote_node=lambda *arguments: None,
        BufferSinkNode_speck2b_event_output_event=lambda: board,
    )
    return samna


def test_deployment_on_a_fake_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls and the counting; that a real board answers so is not known."""
    board = FakeBoard()
    monkeypatch.setitem(sys.modules, "samna", fake_samna(board))
    monkeypatch.setattr(run, "validate", lambda configs: [{"valid": True}])
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)
    spikes = np.zeros((4, 2, 2, 16, 20), np.uint8)
    spikes[0, 0, 1, 3, 4] = 2
    spikes[3, 0, 0, 15, 19] = 1
    spikes[1, 1, 0, 0, 0] = 3
    np.savez(tmp_path / "events.npz", x0=spikes)
    (tmp_path / "config.json").write_text(to_json(GOOD))
    files = ["--input", str(tmp_path / "events.npz"), "--output", str(tmp_path / "counts.npz")]
    assert run.main([*files, "--timestep-us", "1000", str(tmp_path / "config.json")]) == 0
    with np.load(tmp_path / "counts.npz") as file:
        np.testing.assert_array_equal(file["counts0"], [[2, 0, 0, 1, 0], [0, 3, 0, 0, 0]])
    start = [
        "opened Speck2bTestboard as board",
        "sink connected",
        "configured",
        "slow clock False",
        "slow clock 1000 Hz",
    ]
    sample = ["register 3 = 0", "register 3 = 1", "slow clock True", "slow clock False"]
    assert board.log == [*start, *sample, *sample]
    neurons = {(core, address): value for core, address, value in board.resets}
    assert len(board.resets) == 2 * len(neurons) == 2 * (4 * 16 * 20 + 5 * 4 * 3)
    # channel 3, y 2, x 1 of conv1: 2 channel bits, 5 bits for x, y above them (speck2b)
    assert neurons[0, 2 << 7 | 1 << 2 | 3] == FIRST.initial[3, 2, 1]


def test_the_runner_without_samna(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise run.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(run.metadata, "version", absent)
    (tmp_path / "config.json").write_text(to_json(GOOD))
    assert run.main(["--json", str(tmp_path / "config.json")]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] is None
    assert "samna is not installed" in answer["message"]
    (tmp_path / "other.json").write_text("{}")
    for wrong in ("other.json", "nothing.json"):
        with pytest.raises(run.RunError):
            run.read(tmp_path / wrong)
    with pytest.raises(run.RunError, match="no field /a/x_y"):
        run.lay_over({"a": {"b": 1}}, {"A": {"x_y": 2}})

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chipconfigs import OURS_ALONE

from snncc.targets.dynapcnn import run
from snncc.targets.dynapcnn.chips import CHIPS, bias_words, kernel_words, neuron_words
from snncc.targets.dynapcnn.config import (
    Config,
    ConfigError,
    CoreConfig,
    Destination,
    InputRoute,
    Integers,
    Monitor,
    Readout,
    Sensor,
    from_json,
    problems,
    to_json,
)

REFUSALS = Path(__file__).parents[2] / "docs/dynapcnn.md"
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
SHAPE = FIRST.input_shape
GOOD = Config(CHIPS["speck2b"], (FIRST, SECOND), (InputRoute(0, SHAPE),), (Readout(3),), (SHAPE,))


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
    assert GOOD.output_shapes == ((5, 4, 3),)


@pytest.mark.parametrize("name", CHIPS)
def test_json_round_trip(name: str) -> None:
    # The fifth core of the minis has bias memory, core 0 has none.
    cores = (dataclasses.replace(FIRST, index=4), dataclasses.replace(SECOND))
    monitors = (Monitor("relu2", 3), Monitor("other", 3, 7))
    config = Config(CHIPS[name], cores, (InputRoute(4, SHAPE),), (Readout(3),), ((640,),), monitors=monitors)
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
    for field in dataclasses.fields(Config):
        if field.name != "cores":
            assert getattr(config, field.name) == getattr(back, field.name), field.name


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
    (changed(first={"index": 9}), ["core", ("", "inputs"), ("conv1", "sources")]),
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
    (
        changed(first={"destinations": (Destination(3, 2, 1),)}),
        [("conv1 -> conv2", "channels"), ("conv2", "channels fed")],
    ),
    (
        changed(first={"destinations": (Destination(3, 2, -1),)}),
        [("conv1 -> conv2", "channels"), ("conv2", "channels fed")],
    ),
    (changed(first={"destinations": ()}), [("conv2", "sources"), "destinations"]),
    (changed(first={"destinations": (Destination(3, 2),) * 2}), [("conv2", "sources")]),
    (changed(second={"destinations": (Destination(3),)}), ["destination"]),
    (changed(first={"destinations": (Destination(3, 2),) * 3}), ["destinations", *["sources"] * 3]),
    (changed(second={"monitor": False}), ["monitor", "destinations"]),
    (
        changed(second={"index": 0}),
        [("", "cores"), "size y after pooling", "size x after pooling", "destination", "channels fed", "readouts"],
    ),
    (changed(inputs=()), [("conv1", "sources"), ("", "inputs")]),
    (changed(inputs=(InputRoute(0, SHAPE),) * 2), [("conv1", "sources")]),
    (
        changed(inputs=(InputRoute(0, SHAPE), InputRoute(3, (4, 8, 10)))),
        [("input 0", "size of its map"), ("conv2", "sources")],
    ),
    (changed(inputs=(InputRoute(0, SHAPE, index=1),)), [("", "number of the input")]),
    (changed(inputs=(InputRoute(0, SHAPE, pooling=0),)), [("input 0 -> conv1", "pooling")]),
    (
        changed(inputs=(InputRoute(0, SHAPE, feature_shift=1),)),
        [("input 0 -> conv1", "channels"), ("conv1", "channels fed")],
    ),
    (changed(inputs=(InputRoute(0, (1, 16, 20)),), input_shapes=((320,),)), [("conv1", "channels fed")]),
    (changed(inputs=(InputRoute(0, (2, 16, 21)),)), [("input 0 -> conv1", "size x after pooling")]),
    (changed(inputs=(InputRoute(0, (2, 32, 20)),)), [("input 0 -> conv1", "size y after pooling")]),
    (changed(readouts=(Readout(1),)), [("", "readouts")]),
    (changed(readouts=()), [("", "readouts")]),
    (changed(readouts=(Readout(3), Readout(3, 5))), [("", "readouts")]),
    (changed(readouts=(Readout(3, -1),)), [("", "readout")]),
    (changed(readouts=(Readout(3, 0, 0),)), [("", "readout")]),
    (changed(readouts=(Readout(3, 1),)), [("", "readout")]),
    (changed(readouts=(Readout(3, output=1),)), [("", "outputs")]),
    (changed(readouts=(Readout(3, step=4),)), [("conv2", "channels between those that are read")]),
    (changed(first={"monitor": True}, readouts=(Readout(3), Readout(0, 5))), [("", "sizes of the maps of output 0")]),
    (changed(first={"monitor": True}, readouts=(Readout(3), Readout(0, 4, output=1))), [("", "readout")]),
    (changed(readouts=(Readout(3), Readout(0, output=1))), [("conv1", "monitor")]),
    (changed(monitors=(Monitor("a", 0),)), [("a", "monitor")]),
    (changed(monitors=(Monitor("a", 1),)), [("a", "monitor")]),
    (changed(monitors=(Monitor("a", 3, -1),)), [("a", "monitor")]),
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
    kernel, neuron = problems(
        Config(GOOD.chip, (big,), (InputRoute(7, big.input_shape),), (Readout(7),), (big.input_shape,))
    )
    assert (kernel.item, kernel.limit, kernel.found) == ("kernel memory", 16384, 64 * 16 * 512)
    assert (neuron.item, neuron.limit, neuron.found) == ("neuron memory", 16384, 512 * 4096)
    assert neuron.text == "features.0: needs 2097152 words of neuron memory, core 7 has 16384"


def test_the_minis_have_cores_without_bias_memory() -> None:
    config = dataclasses.replace(GOOD, chip=CHIPS["speck2cmini"])
    assert [(problem.core_name, problem.item, problem.limit) for problem in problems(config)] == [
        ("conv1", "bias memory", 0)
    ]


def joined(other: CoreConfig, weights: Integers, chip: str = "speck2b", **config: Any) -> Config:
    """FIRST and `other` side by side, and both into SECOND with these weights."""
    second = dataclasses.replace(SECOND, input_shape=(weights.shape[1], 8, 10), weights=weights)
    routes = (InputRoute(0, SHAPE), InputRoute(other.index, SHAPE))
    cores = (FIRST, other, second)
    return dataclasses.replace(GOOD, **{"chip": CHIPS[chip], "cores": cores, "inputs": routes, **config})


def test_concatenation() -> None:
    eight = np.ones((5, 8, 2, 2), np.int8)
    assert problems(joined(third(1, Destination(3, 2, 4)), eight)) == []
    apart = problems(joined(third(1, Destination(3, 2, 3)), eight))
    assert [problem.item for problem in apart] == ["sources", "channels fed"]
    twice = dataclasses.replace(FIRST, destinations=(Destination(3, 2), Destination(3, 2, 4)))
    second = dataclasses.replace(SECOND, input_shape=(8, 8, 10), weights=eight)
    assert problems(dataclasses.replace(GOOD, cores=(twice, second))) == []


def test_addition_is_for_the_newer_chips() -> None:
    four = np.ones((5, 4, 2, 2), np.int8)
    (problem,) = problems(joined(third(1, Destination(3, 2)), four))
    assert problem.text == (
        "conv2: channels 0..3 come from both conv1 and other; on speck2b a core can concatenate its sources, not add "
        "them (samna 0.7.1.0 answers `Overlap`)"
    )
    assert problems(joined(third(1, Destination(3, 2)), four, "speck2f")) == []


def test_the_host_beside_cores() -> None:
    """In other channels than the cores: samna 0.7.1.0 wants all channels from cores, of the newer that is not known."""
    eight, beside = np.ones((5, 8, 2, 2), np.int8), InputRoute(3, (1, 32, 40), 4, 4)
    four = InputRoute(3, (4, 32, 40), 4, 4, 1)
    host = {"inputs": (InputRoute(0, SHAPE), four), "input_shapes": (SHAPE, (4, 32, 40))}
    second = dataclasses.replace(SECOND, input_shape=(8, 8, 10), weights=eight)
    config = dataclasses.replace(GOOD, cores=(FIRST, second), **host)
    (problem,) = problems(config)
    assert (problem.item, problem.limit, problem.found) == ("channels fed", 8, 4)
    newer = dataclasses.replace(config, chip=CHIPS["speck2f"])
    assert problems(newer) == []
    assert from_json(to_json(newer)).inputs == (InputRoute(0, SHAPE), four)
    over = dataclasses.replace(config, inputs=(InputRoute(0, SHAPE), dataclasses.replace(four, feature_shift=3)))
    assert problems(over)[0].text.endswith("a core can concatenate its sources, not add them")
    part = dataclasses.replace(newer, inputs=(InputRoute(0, SHAPE), beside))
    assert [problem.item for problem in problems(part)] == ["channels fed"]


def test_channels_that_nothing_feeds() -> None:
    """None that has weights; of a core that cores feed, none at all."""
    weights = FIRST.weights.copy()
    weights[:, 1] = 0
    half = InputRoute(0, (1, 16, 20))
    assert problems(changed(first={"weights": weights}, inputs=(half,), input_shapes=((320,),))) == []
    six = np.concatenate([SECOND.weights, np.zeros((5, 2, 2, 2), np.int8)], axis=1)
    config = changed(second={"input_shape": (6, 8, 10), "weights": six})
    assert [(problem.item, problem.found) for problem in problems(config)] == [("channels fed", 4)]
    assert problems(dataclasses.replace(config, chip=CHIPS["speck2e"])) == []


def test_several_inputs_and_outputs() -> None:
    routes = (InputRoute(0, (1, 16, 20)), InputRoute(0, (1, 32, 40), 2, 1, 1))
    shapes: tuple[tuple[int, ...], ...] = ((320,), (1, 32, 40))
    readouts = (Readout(3), Readout(0, output=1))
    config = changed(first={"monitor": True}, inputs=routes, input_shapes=shapes, readouts=readouts)
    assert problems(config) == []
    assert config.output_shapes == ((5, 4, 3), (4, 16, 20))
    back = from_json(to_json(config))
    assert (back.inputs, back.input_shapes, back.readouts) == (routes, shapes, readouts)
    header = json.loads(to_json(config))["snncc"]
    assert header["inputs"] == [[0, [1, 16, 20], 1, 0, 0], [0, [1, 32, 40], 2, 1, 1]]
    assert (header["readouts"], header["outputs"]) == ([[3, 0, 1, 0], [0, 0, 1, 1]], [[5, 4, 3], [4, 16, 20]])


def test_an_output_from_several_cores() -> None:
    last = dataclasses.replace(SECOND, index=4, name="conv2.1")
    first = dataclasses.replace(FIRST, destinations=(Destination(3, 2), Destination(4, 2)))
    config = dataclasses.replace(GOOD, cores=(first, SECOND, last), readouts=(Readout(4, 5), Readout(3)))
    assert problems(config) == []
    assert config.output_shapes == ((10, 4, 3),)


PIXELS = CoreConfig(
    index=1,
    name="pixels",
    input_shape=(2, 64, 32),
    output_shape=(3, 64, 32),
    kernel=1,
    stride=(1, 1),
    padding=(0, 0),
    weights=np.ones((3, 2, 1, 1), np.int8),
    threshold_high=1,
    threshold_low=-1,
    monitor=True,
)


def seeing(sensor: Sensor, chip: str = "speck2b") -> Config:
    """One core behind the pixels."""
    shape, (weights, out) = sensor.shape, (np.ones((3, sensor.shape[0], 1, 1), np.int8), (3, *sensor.shape[1:]))
    cores = (dataclasses.replace(PIXELS, input_shape=shape, output_shape=out, weights=weights),)
    return Config(CHIPS[chip], cores, (InputRoute(1, shape),), (Readout(1),), (shape,), sensor)


def test_the_sensor() -> None:
    sensor = Sensor((2, 4), (0, 0), (64, 32), merge=True, off=False, mirror=(True, False))
    config = seeing(sensor)
    assert problems(config) == []
    data = json.loads(to_json(config))
    dvs = data["value0"]["dvsLayer"]
    assert dvs["destinations"] == {"value0": {"layer": 1, "enable": True}, "value1": {"layer": 0, "enable": False}}
    assert (dvs["passSensorEvents"], dvs["merge"], dvs["onChannel"], dvs["offChannel"]) == (True, True, True, False)
    assert (dvs["pooling"], dvs["origin"], dvs["cut"]) == ({"x": 4, "y": 2}, {"x": 0, "y": 0}, {"x": 127, "y": 127})
    assert (dvs["mirror"], dvs["mirrorDiagonal"]) == ({"x": False, "y": True}, False)
    assert data["snncc"]["sensor"]["size"] == [64, 32]
    assert from_json(to_json(config)).sensor == sensor
    # The chips of newer samna count pooled pixels.
    newer = json.loads(to_json(seeing(Sensor((2, 4), (5, 6), (7, 8)), "speck2f")))["value0"]["dvsLayer"]
    assert (newer["origin"], newer["cut"]) == ({"x": 6, "y": 5}, {"x": 13, "y": 11})


WRONG_SENSORS: list[tuple[Config, list[str]]] = [
    (seeing(Sensor((3, 1), (0, 0), (8, 8))), ["sensor pooling y"]),
    (seeing(Sensor((1, 1), (64, 65), (64, 64))), ["sensor cut x"]),
    (seeing(Sensor((1, 1), (-1, 0), (64, 64))), ["sensor cut y"]),
    (seeing(Sensor((2, 2), (0, 0), (64, 65)), "speck2f"), ["output width", "sensor cut x"]),
    (seeing(Sensor((2, 1), (1, 0), (63, 64))), ["sensor cut y"]),
    (seeing(Sensor((1, 1), (0, 0), (0, 64))), ["input height", "output height", "sensor cut y"]),
    (seeing(Sensor(size=(64, 64), on=False, off=False)), ["sensor polarities"]),
    (seeing(Sensor(size=(64, 32), mirror_diagonal=True)), ["sensor size with a diagonal mirror"]),
    (
        dataclasses.replace(seeing(Sensor(size=(64, 32))), inputs=(InputRoute(1, (2, 128, 64), 2),)),
        ["way of the sensor"],
    ),
    (dataclasses.replace(seeing(Sensor(size=(64, 32))), input_shapes=((4096,),)), ["input shapes"]),
]


@pytest.mark.parametrize(("config", "expected"), WRONG_SENSORS)
def test_each_problem_of_a_sensor_is_named(config: Config, expected: list[str]) -> None:
    assert [problem.item for problem in problems(config)] == expected


def test_the_sensor_feeds_two_cores() -> None:
    one = seeing(Sensor(size=(64, 32)))
    cores = tuple(dataclasses.replace(PIXELS, index=i, name=f"core{i}") for i in range(3))
    routes = tuple(InputRoute(i, (2, 64, 32)) for i in range(3))
    readouts = tuple(Readout(i, output=i) for i in range(3))
    assert problems(dataclasses.replace(one, cores=cores[:2], inputs=routes[:2], readouts=readouts[:2])) == []
    three = problems(dataclasses.replace(one, cores=cores, inputs=routes, readouts=readouts))
    assert [(problem.item, problem.limit, problem.found) for problem in three] == [
        ("cores that the sensor feeds", 2, 3)
    ]


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
        weights = np.zeros((channels, 4, 2, 2), np.int8)
        weights[::4] = 1
        last = {"output_shape": (channels, 4, 3), "weights": weights, "destinations": (Destination(12),)}
        return changed(second=last, chip=CHIPS["speck2f"], readouts=(Readout(3, step=4),))

    assert problems(ending(57)) == []
    assert ending(57).output_shapes == ((15, 4, 3),)
    assert [problem.item for problem in problems(ending(58))] == ["channels into the readout"]
    for initial, wrong in ((6, []), (7, ["channels between those that are read"])):
        last = dataclasses.replace(ending(57).cores[1], initial=np.full((57, 4, 3), initial))
        assert [p.item for p in problems(dataclasses.replace(ending(57), cores=(FIRST, last)))] == wrong


def test_the_documented_refusals() -> None:
    """The documents list what samna takes and we refuse: the vendor test holds the same list against samna."""
    _, _, section = REFUSALS.read_text(encoding="utf-8").partition("## What snncc refuses and samna takes")
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    names = [cells[1].strip() for cells in rows]
    assert names[:2] == ["refused", "---"]
    assert tuple(names[2:]) == OURS_ALONE
    assert all(len(cells) == 5 and cells[2].strip() and cells[3].strip() for cells in rows)


# ------------------------------------------------------------------------------------------- the runner, without samna


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

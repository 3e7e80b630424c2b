"""Real samna on our configurations: it takes them, reads in them what we wrote, and agrees on the limits."""

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from chipconfigs import LIMITS, OURS_ALONE, build, corners, kind
from samna_sdk import RUN, Samna

from snncc.targets.dynapcnn import config as config_module
from snncc.targets.dynapcnn.chips import CHIPS, Chip
from snncc.targets.dynapcnn.config import (
    Config,
    CoreConfig,
    Destination,
    InputRoute,
    Readout,
    Sensor,
    from_json,
    problems,
    to_json,
)
from snncc.targets.dynapcnn.decode import read_config, read_writes

pytestmark = pytest.mark.vendor
VALIDATED = [chip for chip in CHIPS.values() if chip.validated]


def text_of(config: Config, monkeypatch: pytest.MonkeyPatch) -> str:
    """What would be written if nothing were refused. What only our header says is left out, as it may be nonsense."""
    monkeypatch.setattr(config_module, "problems", lambda config: [])
    inputs = config.inputs if config.sensor else ()
    return to_json(dataclasses.replace(config, inputs=inputs, readouts=(), monitors=()))


def test_samna_at_the_corners(samna: Samna, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5,000 configurations samna takes each one that we take; it takes more, but all of that is in the documents."""
    cases = [case for i, chip in enumerate(VALIDATED) for case in corners(chip, 1250, seed=i)]
    found = [problems(config) for config, _ in cases]
    answers = samna.ask((config.chip for config, _ in cases), (text_of(config, monkeypatch) for config, _ in cases))
    assert len(answers) == 5000
    ours_alone = set()
    for (config, what), ours, (valid, message) in zip(cases, found, answers, strict=True):
        assert valid or ours, f"{config.chip.name}, {what}: {message}"
        if valid:
            ours_alone |= {kind(problem) for problem in ours}
    assert ours_alone == set(OURS_ALONE)
    said = [message for _, message in answers]
    assert any(message.startswith("crash: ") for message in said)
    assert sum(not ours for ours in found) > 1700
    # The generator is worth its name:
    past = {what.removeprefix("beyond ") for (_, what), ours in zip(cases, found, strict=True) if ours}
    assert set(LIMITS) <= past
    cores = [core for (config, _), ours in zip(cases, found, strict=True) if not ours for core in config.cores]
    chip = VALIDATED[0]
    assert {core.index for core in cores} == set(range(9))
    assert {core.kernel for core in cores} == set(chip.kernel_sizes)
    assert {core.stride[0] for core in cores} == set(chip.strides)
    assert {core.padding[1] for core in cores} == set(chip.paddings)
    assert {destination.pooling for core in cores for destination in core.destinations} == set(chip.poolings)
    words = [zip(core.memory, chip.cores[core.index].words, strict=True) for core in cores]
    full = {(what, used == has) for each in words for what, (used, has) in zip("knb", each, strict=True)}
    assert full == {(what, whether) for what in "knb" for whether in (True, False)}


@pytest.mark.parametrize("chip", VALIDATED, ids=lambda chip: chip.name)
def test_samna_reads_what_was_written(samna: Samna, chip: Chip) -> None:
    """Its own text is ours, and the memory writes that it makes are our integers at the documented addresses: none is
    missing, none goes anywhere else."""
    configs = [build(chip, np.random.default_rng([7, i])) for i in range(24)]
    texts = [to_json(config) for config in configs]
    for config, text, read in zip(configs, texts, samna.read_back(texts), strict=True):
        assert read["text"]["value0"] == json.loads(text)["value0"]
        memories = read_writes(read["writes"], config)
        used = {core.index for core in config.cores}
        assert memories.keys() == used
        assert {core.index for core in read_config(json.dumps(read["text"]), chip.name).cores} == used
        for core in config.cores:
            np.testing.assert_array_equal(memories[core.index].weights, core.weights)
            np.testing.assert_array_equal(memories[core.index].biases, 0 if core.biases is None else core.biases)
            np.testing.assert_array_equal(memories[core.index].initial, 0 if core.initial is None else core.initial)
        neurons = [write for write in read["writes"] if write[0] == "WriteNeuronValue" and write[1] in used]
        assert sorted(read["reset"]) == sorted(neurons)


def layer(
    rng: np.random.Generator,
    index: int,
    input_shape: tuple[int, int, int],
    channels: int,
    kernel: int = 1,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    destinations: tuple[Destination, ...] = (),
) -> CoreConfig:
    """A core with random numbers over their whole ranges, its output size by the usual formula."""
    height, width = ((n + 2 * p - kernel) // s + 1 for n, s, p in zip(input_shape[1:], stride, padding, strict=True))
    return CoreConfig(
        index=index,
        name=f"layer{index}",
        input_shape=input_shape,
        output_shape=(channels, max(height, 0), max(width, 0)),
        kernel=kernel,
        stride=stride,
        padding=padding,
        weights=rng.integers(-128, 128, (channels, input_shape[0], kernel, kernel)).astype(np.int8),
        threshold_high=int(rng.integers(1, 2**15)),
        threshold_low=-int(rng.integers(1, 2**15 + 1)),
        return_to_zero=bool(rng.random() < 0.5),
        destinations=destinations,
        monitor=not destinations,
    )


def fed(chip: Chip, *cores: CoreConfig) -> Config:
    """The host feeds the first core, and the last is read."""
    shape = cores[0].input_shape
    return Config(chip, cores, (InputRoute(cores[0].index, shape),), (Readout(cores[-1].index),), (shape,))


@pytest.mark.parametrize("chip", [CHIPS["dynapcnn"], CHIPS["speck2b"]], ids=lambda chip: chip.name)
def test_samna_agrees_on_the_limits(samna: Samna, chip: Chip, monkeypatch: pytest.MonkeyPatch) -> None:
    """On either side of each limit we and samna say the same, but where we say more on purpose."""
    rng = np.random.default_rng(1)

    def one(index: int, *args: object, **changes: object) -> Config:
        return fed(chip, dataclasses.replace(layer(rng, index, *args), **changes))

    def two(input_shape: tuple[int, int, int], size: tuple[int, int] = (5, 4), **destination: int) -> Config:
        first = layer(rng, 0, (1, *size), 2, destinations=(Destination(1, **destination),))
        return fed(chip, first, layer(rng, 1, input_shape, 1))

    def three(shift: int, width: int, **changes: object) -> Config:
        """Two channels from one core, two from another so much higher, and a core that takes `width`."""
        sides = [layer(rng, i, (1, 5, 4), 2, destinations=(Destination(3, 1, i * shift),)) for i in (0, 1)]
        config = fed(chip, *sides, dataclasses.replace(layer(rng, 3, (width, 5, 4), 1), **changes))
        return dataclasses.replace(config, inputs=(*config.inputs, InputRoute(1, (1, 5, 4))))

    def seen(sensor: Sensor, *, own: bool = False) -> Config:
        """A core behind the pixels; with `own`, a core of the host's feeds the same one."""
        core = layer(rng, 3, (sensor.shape[0] + 2 * own, *sensor.size), 2, stride=(2, 2))
        other = layer(rng, 1, sensor.shape, 2, destinations=(Destination(3, 1, 2),))
        routes = tuple(InputRoute(index, sensor.shape) for index in ((1, 3) if own else (3,)))
        cores = (other, core) if own else (core,)
        return Config(chip, cores, routes, (Readout(3),), (sensor.shape,), sensor)

    legal = {
        "kernel 16": one(0, (1, 16, 16), 2, 16),
        "input 128": one(0, (1, 128, 128), 2, 1, (2, 2)),
        "output 64": one(0, (1, 64, 64), 2),
        "features in 1024": one(0, (1024, 4, 4), 2),
        "features out 1024": one(0, (1, 4, 4), 1024),
        "padding 7": one(0, (1, 4, 4), 2, 1, (1, 1), (7, 7)),
        "strides 8 and 1": one(0, (1, 40, 40), 2, 3, (8, 1)),
        "kernel memory full": one(0, (64, 4, 4), 256),
        "neuron memory full": one(7, (1, 64, 64), 4),
        "thresholds": one(0, (1, 4, 4), 2, threshold_high=2**15 - 1, threshold_low=-(2**15)),
        "pooling with a remainder": two((2, 2, 2), pooling=2),
        "channels side by side": three(2, 4),
        "pixels": seen(Sensor()),
        "pixels of one polarity": seen(Sensor(merge=True, off=False)),
        "some pixels": seen(Sensor((1, 1), (127, 1), (1, 127), mirror=(True, False))),
        "pooled pixels": seen(Sensor((4, 2), (0, 0), (32, 64))),
        "pixels beside a core": seen(Sensor((2, 2), (0, 0), (64, 64)), own=True),
    }
    illegal = {
        "kernel 17": one(0, (1, 17, 17), 2, 17),
        "input 129": one(0, (1, 129, 128), 2, 1, (4, 4)),
        "output 65": one(0, (1, 65, 64), 2),
        "features in 1025": one(0, (1025, 4, 4), 2),
        "features out 1025": one(0, (1, 4, 4), 1025),
        "padding 8": one(0, (1, 9, 9), 2, 9, (1, 1), (8, 7)),
        "stride 3": one(0, (1, 40, 40), 2, 3, (3, 1)),
        "kernel memory": one(0, (65, 4, 4), 256),
        "neuron memory": one(7, (1, 33, 33), 5),
        "output size": one(0, (1, 4, 4), 2, output_shape=(2, 4, 3), initial=None),
        "pooling rounds down": two((2, 3, 2), pooling=2),
        "pooling 3": two((2, 1, 1), pooling=3),
        "channels too few": two((3, 5, 4)),
        "channels do not start at 0": two((4, 5, 4), feature_shift=2),
        "channels that nothing feeds": three(3, 5, weights=np.array([1, 1, 0, 1, 1], np.int8).reshape(1, 5, 1, 1)),
        "channels that meet": three(1, 3),
        "the same channels": three(0, 2),
        "pooling 8 of pixels": seen(Sensor((8, 8), (0, 0), (16, 16))),
        "pixels 129": seen(Sensor((1, 1), (1, 0), (128, 64))),
    }
    ours_alone = {
        "threshold_high 0": one(0, (1, 4, 4), 2, threshold_high=0),
        "threshold_low 0": one(0, (1, 4, 4), 2, threshold_low=0),
        "all zero": one(0, (1, 4, 4), 2, weights=np.zeros((2, 1, 1, 1), np.int8)),
        "feeds itself": one(0, (1, 4, 4), 1, destinations=(Destination(0),)),
        "pooling 8": two((2, 1, 1), (8, 8), pooling=8),
        "to a core that is not used": one(0, (1, 1, 1), 1, destinations=(Destination(4),)),
        "a diagonal mirror of a rectangle": seen(Sensor((1, 1), (0, 0), (8, 6), mirror_diagonal=True)),
        "no polarity": seen(Sensor(on=False, off=False)),
    }
    cases = {**legal, **illegal, **ours_alone}
    assert {name for name, config in cases.items() if not problems(config)} == set(legal)
    monkeypatch.setattr(config_module, "problems", lambda config: [])  # to_json writes what it would refuse
    answers = samna.judge(map(to_json, cases.values()))
    taken = {name for name, answer in zip(cases, answers, strict=True) if answer["valid"]}
    assert taken == set(legal) | set(ours_alone)


def small(chip: Chip) -> Config:
    rng = np.random.default_rng(0)
    return fed(chip, layer(rng, 3, (2, 5, 4), 2, destinations=(Destination(1),)), layer(rng, 1, (2, 5, 4), 3))


def test_samna_cuts_before_it_pools(samna: Samna) -> None:
    """Of pooled pixels samna 0.7.1.0 takes the whole as 128, sinabs 3.1.3 writes 64 (see `_dvs_layer`)."""
    sensor = Sensor((2, 2), (0, 0), (64, 64))
    core = layer(np.random.default_rng(0), 3, (2, 64, 64), 2)
    config = Config(CHIPS["speck2b"], (core,), (InputRoute(3, (2, 64, 64)),), (Readout(3),), ((2, 64, 64),), sensor)
    text = to_json(config)
    assert '"cut":{"x":127,"y":127}' in text
    answers = samna.judge([text, text.replace('"cut":{"x":127,"y":127}', '"cut":{"x":63,"y":63}')])
    assert [answer["valid"] for answer in answers] == [True, False]
    assert "input size x: 64 different than DVS output size x: 32" in str(answers[1]["message"])


def test_samna_takes_texts_that_we_never_write(samna: Samna) -> None:
    """What stands in the documents beside the list: snncc writes none of it, and reads only the first."""
    config = small(CHIPS["speck2b"])
    biased = dataclasses.replace(config.cores[0], biases=np.array([1, -1], np.int16))
    good = to_json(dataclasses.replace(config, cores=(biased, config.cores[1])))

    def edited(edit: Callable[[dict[str, Any]], object]) -> str:
        data = json.loads(good)
        edit(data["value0"]["cnnLayers"]["value3"])
        return json.dumps(data)

    texts = {
        "a bias that no clock adds": edited(lambda core: core.update(leakEnable=False)),
        "too few weights": edited(lambda core: core["weights"]["values"].pop()),
        "too many weights": edited(lambda core: core["weights"]["values"].append(1)),
        "weights in another order": edited(lambda core: core["weights"]["offsets"].update(value0=1)),
        "a cell that is off": edited(lambda core: core["weightsKillBit"].update(values=[True] * 4)),
        "a third destination": edited(lambda core: core["destinations"].update(value2=core["destinations"]["value0"])),
    }
    answers = samna.ask([config.chip] * len(texts), texts.values())
    assert answers == [(True, "")] * len(texts)
    readable = []
    for what, text in texts.items():
        with contextlib.suppress(ValueError):
            from_json(text)
            readable.append(what)
    assert readable == ["a bias that no clock adds"]


def test_a_crash_is_an_answer(samna: Samna) -> None:
    good = to_json(small(CHIPS["speck2b"]))
    crash = good.replace('"enable":false,"featureShift":0,"pooling":1', '"enable":true,"featureShift":0,"pooling":0')
    missing = good.replace('"thresholdHigh"', '"threshold"')
    answers = samna.judge([good, crash, missing, good])
    assert [answer["valid"] for answer in answers] == [True, False, False, True]
    assert answers[1]["message"] == "samna's validator crashed with signal 8 (SIGFPE)"
    assert "thresholdHigh" in str(answers[2]["message"])


def test_a_chip_that_this_samna_lacks(samna: Samna) -> None:
    text = to_json(small(CHIPS["speck2f"]))
    (answer,) = samna.judge([text])
    assert answer["valid"] is None
    assert "samna 0.7.1.0 has no module speck2f" in str(answer["message"])


def test_a_part_is_laid_over_the_defaults(samna: Samna) -> None:
    """The way of the chips that samna 0.7.1.0 lacks, on one that it has: other spelling, and only our fields."""
    data = json.loads(to_json(small(CHIPS["speck2b"])))
    whole = json.loads(json.dumps(data))
    data["snncc"]["whole"] = False
    data["value0"] = {"cnn_layers": data["value0"]["cnnLayers"], "dvs_layer": {"pass_sensor_events": False}}
    (read,) = samna.read_back([json.dumps(data)])
    assert read["text"]["value0"] == whole["value0"]


def test_deployment_without_a_board(samna: Samna) -> None:
    config = small(CHIPS["speck2b"])
    (path,) = samna.write([to_json(config)])
    np.savez(samna.folder / "events.npz", x0=np.ones((2, 1, *config.cores[0].input_shape), np.int64))
    files = ["--input", samna.folder / "events.npz", "--output", samna.folder / "counts.npz"]
    line = [samna.python, RUN, *files, "--timestep-us", "1000", path]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert "error: no board found: looked for Speck2bTestboard" in done.stdout

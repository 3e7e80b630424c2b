"""A contract test of the emitted runner: what it calls of samna, and what it makes of the answers.

The samna here is a FAKE, so that nothing in this file says how a board behaves, and none of it counts as a test on
hardware. Its names and the types that it takes are those of the real samna 0.7.1.0, which the last test holds it to
(where it is installed) by introspection: the events' classes, which of them a host may send, the boards' methods. The
part for newer samna has the names in sinabs 3.1.3 and its tutorials, and could not be held against anything.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snncc import sdk
from snncc.targets.dynapcnn import run
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import (
    Config,
    CoreConfig,
    Destination,
    InputRoute,
    Monitor,
    Readout,
    Sensor,
    to_json,
)

# Time is virtual in it. A host's spike on core k is answered, `delay` seconds after its time has come, by a spike of
# the same channel, y and x of core k. What pixels send is given: seconds after the start, then layer, channel, y and x.
FAKE = '''
import json, os, time
from pathlib import Path
from types import SimpleNamespace as Some

HERE = Path(os.environ["FAKE_SAMNA"])
PLAN = json.loads((HERE / "plan.json").read_text())
FIELDS = {
    "Spike": ("layer", "feature", "y", "x", "timestamp"),
    "RouterEvent": ("layer", "feature", "y", "x"),
    "WriteNeuronValue": ("layer", "address", "neuron_state"),
    "WriteRegisterValue": ("layer", "index", "data"),
}
STAMPED, UNSTAMPED = ("Spike", *list(FIELDS)[1:]), tuple(list(FIELDS)[1:])
SENDS = {"dynapcnn": STAMPED, "speck": STAMPED, "speck2": UNSTAMPED, "speck2b": UNSTAMPED}
CONFIGURATIONS = {"dynapcnn": "DynapcnnConfiguration"}  # the others: SpeckConfiguration
NEWER = PLAN["board"].startswith("Speck2f")
clock = Some(now=0.0, start=0.0, waiting=[], pins=[], rate=0.0, on=False)


def sleep(seconds):
    assert seconds >= 0
    clock.now += seconds + PLAN["oversleep"]


time.sleep, time.monotonic = sleep, lambda: clock.now


def log(*what):
    with (HERE / "log").open("a") as file:
        print(json.dumps(what), file=file)


def event_class(name):
    def init(self):
        for each in FIELDS[name]:
            setattr(self, each, 0)
    return type(name, (), {"__slots__": FIELDS[name], "__init__": init})


def come(event, seconds):
    clock.waiting.append((clock.now + seconds, event))


def write(module, events):
    for event in events:
        if type(event).__name__ not in SENDS.get(module.name, STAMPED):
            raise TypeError(f"write(): incompatible function arguments: {type(event)}")
    log("write", [[type(e).__name__, *(getattr(e, name) for name in type(e).__slots__)] for e in events])
    if any(isinstance(event, module.event.WriteNeuronValue) for event in events) and not stamped(module):
        start(module)
    for event in events:
        if isinstance(event, (module.event.Spike, module.event.RouterEvent)):
            at = event.timestamp * 1e-6 if stamped(module) else 0.0
            answer = spike(module, event.layer, event.feature, event.y, event.x, at + PLAN["delay"])
            come(answer, at + PLAN["delay"])


def stamped(module):
    return "Spike" in SENDS.get(module.name, STAMPED)


def spike(module, layer, feature, y, x, seconds=0.0):
    event = module.event.Spike()
    event.layer, event.feature, event.y, event.x = layer, feature, y, x
    event.timestamp = round(seconds * 1e6) if stamped(module) else 0
    return event


def start(module):
    """Time stamps begin; where there are none the pixels' do, when the states have been written."""
    clock.start = clock.now
    for seconds, *what in PLAN["pixels"]:
        come(spike(module, *what, seconds), seconds + (0.0 if stamped(module) else 0.1))


class Sink:
    def get_input_channel(self):
        return "the sink"

    def get_events(self):
        ready = [event for at, event in clock.waiting if at <= clock.now + 1e-9]
        clock.waiting = [each for each in clock.waiting if each[0] > clock.now + 1e-9]
        pins, clock.pins = clock.pins, []
        return ready + pins


def ticking(module, on):
    log("set_slow_clk", on)
    if on:
        for index in PLAN.get("pins", ()):
            clock.pins.append(module.event.ReadoutPinValue(index))


def board(module):
    send = lambda events: write(module, events)
    apply = lambda configuration: log("apply_configuration")
    source = lambda: Some(add_destination=lambda channel: log("add_destination", channel))
    old = dict(get_model_source_node=source)
    unifirm = dict(
        write=send,
        write_config=lambda register, value: (log("write_config", register, value), value and start(module)),
        set_bias_clk=lambda on: log("set_bias_clk", on),
        pulse_bias_clk=lambda: log("pulse_bias_clk", round(clock.now - clock.start, 6)),
        enable_dvs=lambda: log("enable_dvs"),
    )
    dynapcnn_unifirm = {name: unifirm[name] for name in ("write", "write_config")}
    model = Some(write=send, apply_configuration=apply)
    daughter = Some(get_model=lambda: model, get_io_module=lambda: Some(**unifirm), **old)
    power = Some(
        get_source_node=lambda: "power",
        start_auto_power_measurement=lambda rate: log("power", rate),
        stop_auto_power_measurement=lambda: log("power", "off"),
    )
    watch = Some(start=lambda: log("watch", "start"), reset=lambda: (log("watch", "reset"), start(module)))
    newer_model = Some(apply_configuration=apply, get_sink_node=lambda: "chip in", get_source_node=lambda: "chip out")
    slow = dict(set_slow_clk=lambda on: ticking(module, on), set_slow_clk_rate=lambda hertz: log("rate", hertz))
    boards = {
        "DynapcnnDevKit": dict(get_model=lambda: model, get_io_module=lambda: Some(**dynapcnn_unifirm), **old),
        "Speck2DevKit": dict(get_daughter_board=lambda number: daughter),
        "Speck2bTestboard": dict(get_model=lambda: Some(), get_io_module=lambda: Some(**unifirm), **old),
        "SpeckTestBoard": dict(write=send),
        "Speck2fDevKit": dict(
            get_model=lambda: newer_model, get_io_module=lambda: Some(**slow),
            get_stop_watch=lambda: watch, get_power_monitor=lambda: power,
        ),
    }
    return Some(**boards[PLAN["board"]])


class Configuration:
    text = (HERE / "defaults.json").read_text() if (HERE / "defaults.json").exists() else ""

    def from_json(self, text):
        self.text = text

    def to_json(self):
        return self.text


def module(name):
    found = Some(name=name, __name__=f"samna.{name}")
    kinds = {each: event_class(each) for each in FIELDS}
    to_events = lambda configuration: [kinds["WriteRegisterValue"]()]
    if NEWER:
        kinds["ReadoutPinValue"] = Pin
    found.event = Some(**kinds, speck_configuration_to_event=to_events)
    found.configuration = Some(**{CONFIGURATIONS.get(name, "SpeckConfiguration"): Configuration})
    found.validate_configuration = lambda configuration: (True, "")
    return found


class Pin:
    def __init__(self, index):
        self.index, self.timestamp = index, 0


names = ("speck2f",) if NEWER else tuple(SENDS)
globals().update({name: module(name) for name in names})
infos = [Some(device_type_name=name) for name in ("Davis 346", PLAN["board"])]
opened = globals()[PLAN["module"]]
if NEWER:
    class Graph:
        def sequential(self, nodes):
            log("sequential", [each if isinstance(each, str) else type(each).__name__ for each in nodes])

        def start(self):
            log("graph started")

    class BasicSourceNode_speck2f_event_input_event:
        def write(self, events):
            write(speck2f, events)

    class BasicSinkNode_unifirm_modules_events_measurement:
        reads = 0

        def get_events(self):  # between samples, 9 W come: not to be counted
            self.reads += 1
            volts = [9.0] * 5 if self.reads % 2 else [0.001, 0.002, 0.003, 0.004]
            return [Some(channel=i, value=value) for i, value in enumerate(volts)]

    BasicSinkNode_speck2f_event_output_event = Sink
    graph = Some(EventFilterGraph=Graph)
    device = Some(get_unopened_devices=lambda: infos, open_device=lambda info: board(opened))
else:
    globals().update({f"BufferSinkNode_{name}_event_output_event": Sink for name in names})
    device = Some()

    def open_device(info, name):
        log("open_device", info.device_type_name, name)
        device_node.board = board(opened)

    controller = Some(get_unopened_devices=lambda: infos, open_device=open_device)
    device_node = Some(DeviceController=controller)
    SamnaNode = lambda sender, receiver, number: object()
    setup_local_node = lambda receiver, sender, number: None
    open_remote_node = lambda number, name: None
'''

BOARDS = {"dynapcnn": "DynapcnnDevKit", "speck2": "Speck2DevKit", "speck2b": "Speck2bTestboard"}


def core(index: int, into: tuple[int, int, int], channels: int, **more: Any) -> CoreConfig:
    """A core whose output has the size of its input."""
    weights = np.ones((channels, into[0], 1, 1), np.int8)
    fields = {"monitor": True, "threshold_high": 1, "threshold_low": -1, "weights": weights, **more}
    return CoreConfig(index, f"layer{index}", into, (channels, *into[1:]), 1, (1, 1), (0, 0), **fields)


# Input 0 has 38 values, laid into a map of 40. It goes to cores 0 and 2, the two halves of `relu` and of output 0, and,
# pooled, to channels 1 and 2 of core 1; input 1 goes to its channel 0.
MAP = (2, 5, 4)
INITIAL = np.arange(2 * 5 * 4, dtype=np.int16).reshape(MAP)
NETWORK = Config(
    CHIPS["dynapcnn"],
    (core(0, MAP, 2, initial=INITIAL), core(1, (3, 2, 2), 4), core(2, MAP, 2)),
    (InputRoute(0, MAP), InputRoute(2, MAP), InputRoute(1, MAP, 2, 1), InputRoute(1, (1, 2, 2), index=1)),
    (Readout(0), Readout(2, 2), Readout(1, output=1)),
    ((38,), (1, 2, 2)),
    monitors=(Monitor("relu", 0), Monitor("relu", 2, 2), Monitor("last", 1)),
)
X0, X1 = np.zeros((3, 2, 38), np.uint8), np.zeros((3, 2, 1, 2, 2), np.int64)
X0[0, 0, 1] = X1[0, 0, 0, 1, 0] = 1
X0[2, 0, 37] = 2  # channel 1, y 4, x 1: below what pooling by 2 leaves
X0[1, 1, 34] = 1
# Of each sample, of each time step: core, channel, y, x.
SENT = [
    [[[0, 0, 0, 1], [2, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0]], [], [[0, 1, 4, 1], [2, 1, 4, 1]] * 2],
    [[], [[0, 1, 3, 2], [2, 1, 3, 2], [1, 2, 1, 1]], []],
]


def on(name: str, network: Config = NETWORK, **changes: Any) -> Config:
    return dataclasses.replace(network, chip=CHIPS[name], **changes)


def leaking(network: Config) -> Config:
    first = dataclasses.replace(network.cores[0], biases=np.array([1, -1], np.int16))
    return dataclasses.replace(network, cores=(first, *network.cores[1:]))


@dataclasses.dataclass
class Done:
    """What a run printed, wrote and called."""

    status: int
    said: str
    arrays: dict[str, Any]
    log: list[list[Any]]

    def writes(self, kind: str) -> list[list[list[int]]]:
        """Of each write with events of a kind, their numbers."""
        found = [[event[1:] for event in what[0] if event[0] == kind] for name, *what in self.log if name == "write"]
        return [events for events in found if events]

    def named(self, *names: str) -> list[list[Any]]:
        return [what for what in self.log if what[0] in names]


def play(folder: Path, network: Config | str, *arguments: str, arrays: Any = None, **plan: Any) -> Done:
    """Runs the runner in a process of its own, where the fake is the samna that Python finds."""
    text = network if isinstance(network, str) else to_json(network)
    (folder / "config.json").write_text(text)
    (folder / "defaults.json").write_text(text)
    header = json.loads(text)["snncc"]
    module = header["samna_module"]
    defaults = {"board": BOARDS.get(module), "module": module, "delay": 0.0, "oversleep": 0.0, "pixels": []}
    (folder / "plan.json").write_text(json.dumps({**defaults, **plan}))
    (folder / "samna.py").write_text(FAKE)
    (folder / "samna-0.7.1.0.dist-info").mkdir(exist_ok=True)
    (folder / "samna-0.7.1.0.dist-info" / "METADATA").write_text("Name: samna\nVersion: 0.7.1.0\n")
    if header["sensor"] is None:
        np.savez(folder / "in.npz", **(arrays or {"x0": X0, "x1": X1}))
        arguments = ("--input", str(folder / "in.npz"), "--output", str(folder / "out.npz"), *arguments)
    environment = {**os.environ, "PYTHONPATH": str(folder), "FAKE_SAMNA": str(folder)}
    line = [sys.executable, run.__file__, *arguments, str(folder / "config.json")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    written = {}
    if (folder / "out.npz").exists():
        with np.load(folder / "out.npz") as file:
            written = {name: file[name] for name in file.files}
    log = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return Done(done.returncode, done.stdout + done.stderr, written, [json.loads(each) for each in log])


def expected(late: int = 0) -> dict[str, Any]:
    """What comes out if every spike is answered `late` time steps later."""
    found = {
        "counts0": np.zeros((2, 4, 5, 4), int),
        "counts1": np.zeros((2, 4, 2, 2), int),
        "spikes/relu": np.zeros((3, 2, 4, 5, 4), int),
        "spikes/last": np.zeros((3, 2, 4, 2, 2), int),
    }
    for sample, steps in enumerate(SENT):
        for step, events in enumerate(steps):
            for index, channel, y, x in events:
                output, name, first = (1, "last", 0) if index == 1 else (0, "relu", index)
                found[f"counts{output}"][sample, first + channel, y, x] += 1
                found[f"spikes/{name}"][min(step + late, 2), sample, first + channel, y, x] += 1
    return found


def same(arrays: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert set(arrays) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(arrays[name], array, name)
        assert arrays[name].dtype.kind == "i"


def states(done: Done, chip: str = "dynapcnn") -> None:
    """Each sample begins with the initial potential of every neuron."""
    written = done.writes("WriteNeuronValue")
    assert len(written) == 2 and written[0] == written[1]
    values = {(index, address): value for index, address, value in written[0]}
    assert len(values) == len(written[0]) == 2 * 40 + 4 * 4
    for (channel, y, x), value in np.ndenumerate(INITIAL):  # 1 bit of channels, 3 of y, 2 of x
        assert values[0, (x << 4 | y << 1 if chip == "dynapcnn" else y << 3 | x << 1) | channel] == value
    kinds = [what[0][0][0] for name, *what in done.log if name == "write" and what[0][0][0] != "WriteRegisterValue"]
    assert kinds[0] == "WriteNeuronValue" and kinds.count("WriteNeuronValue") == 2


@pytest.mark.parametrize("late", [0, 1, 5])
def test_events_with_time_stamps(tmp_path: Path, late: int) -> None:
    done = play(tmp_path, NETWORK, "--record", "spikes", "--timestep-us", "2000", delay=(late + 0.5) * 2e-3)
    assert done.status == 0 and done.said == f"wrote the counts of 2 samples to {tmp_path / 'out.npz'}\n"
    sent = [
        [[*event, run.LEAD_US + step * 2000] for step, events in enumerate(steps) for event in events] for steps in SENT
    ]
    assert done.writes("Spike") == sent
    same(done.arrays, expected(late))
    states(done)
    others = [what for what in done.log if what[0] != "write"]
    clock = [["write_config", 3, 0], ["write_config", 3, 1]]
    start = [["open_device", "DynapcnnDevKit", "board"], ["add_destination", "the sink"], ["apply_configuration"]]
    assert others == [*start, *clock, *clock]


@pytest.mark.parametrize("chip", ["speck2", "speck2b"])
@pytest.mark.parametrize("late", [0, 1, 5])
def test_events_without_time_stamps(tmp_path: Path, chip: str, late: int) -> None:
    """Of these chips samna 0.7 gives the host none: the steps are kept by the host."""
    done = play(tmp_path, on(chip), "--record", "relu,last", delay=(late + 0.5) * 1e-3)
    assert done.status == 0, done.said
    assert done.writes("RouterEvent") == [events for steps in SENT for events in steps if events]
    same(done.arrays, expected(late))
    states(done, chip)
    configured = ["apply_configuration"] if chip == "speck2" else ["write", [["WriteRegisterValue", 0, 0, 0]]]
    assert done.log[2] == configured
    assert not done.named("set_bias_clk", "pulse_bias_clk", "write_config", "enable_dvs")


def test_biases_tick_once_a_time_step(tmp_path: Path) -> None:
    done = play(tmp_path, leaking(on("speck2b")), "--timestep-us", "4000")
    assert done.status == 0, done.said
    assert done.named("set_bias_clk") == [["set_bias_clk", False]]
    began = [what[1] for what in done.named("pulse_bias_clk")]
    assert began == [0.1, 0.104, 0.108] * 2  # after the states and a pause
    tail = [name if name == "pulse_bias_clk" else what[0][0][0] for name, *what in done.log[4:]]
    first = ["WriteNeuronValue", "pulse_bias_clk", "RouterEvent", "pulse_bias_clk", "pulse_bias_clk", "RouterEvent"]
    assert tail == [*first, "WriteNeuronValue", *["pulse_bias_clk"] * 2, "RouterEvent", "pulse_bias_clk"]
    same(done.arrays, {name: array for name, array in expected().items() if name[:6] == "counts"})


def test_what_a_board_cannot_do(tmp_path: Path) -> None:
    done = play(tmp_path, leaking(NETWORK))
    assert (done.status, done.arrays, done.named("write")) == (2, {}, [])
    assert done.said == "error: biases or the readout block need the slow clock, and this samna cannot drive it\n"
    done = play(tmp_path, on("speck"), board="SpeckTestBoard")
    assert done.said == "error: samna gives this board no model to configure and to send events to\n"
    done = play(tmp_path, NETWORK, "--power", "--json")
    assert json.loads(done.said)["message"] == "--power: this board, or this samna, has no power monitor"
    done = play(tmp_path, NETWORK, "--device", "DynapcnnDevKit:1")
    assert done.said.startswith("error: no board found: looked for DynapcnnDevKit, samna sees Davis 346, Dynapcnn")


def test_one_sample_and_flat_counts(tmp_path: Path) -> None:
    """Input without an axis for samples; an output of one pixel is written as (N, classes)."""
    network = Config(CHIPS["speck2b"], (core(0, (3, 1, 1), 3),), (InputRoute(0, (3, 1, 1)),), (Readout(0),), ((3,),))
    done = play(tmp_path, network, arrays={"x0": np.array([[1, 0, 2], [0, 0, 1]])})
    assert done.status == 0, done.said
    same(done.arrays, {"counts0": np.array([[1, 0, 3]])})
    done = play(tmp_path, network, "--record", "spikes", arrays={"x0": np.zeros((1, 3), int)})
    same(done.arrays, {"counts0": np.zeros((1, 3), int)})


def test_a_spike_from_nowhere_is_said(tmp_path: Path) -> None:
    network = Config(
        CHIPS["speck2b"], (core(0, (3, 4, 4), 2),), (InputRoute(0, (3, 4, 4)),), (Readout(0),), ((3, 4, 4),)
    )
    x = np.zeros((1, 1, 3, 4, 4), bool)
    x[..., 1:, 0, 3] = True  # the fake answers with channel 2 too
    done = play(tmp_path, network, arrays={"x0": x})
    assert "warning: 1 spikes from where no neuron is were left out" in done.said
    assert done.arrays["counts0"].sum() == done.arrays["counts0"][0, 1, 0, 3] == 1


STRIDES = {"output_shape": (2, 16, 16), "stride": (8, 8), "destinations": (Destination(3),)}
SEEN = Config(
    CHIPS["dynapcnn"],
    (dataclasses.replace(core(0, (2, 128, 128), 2), **STRIDES), core(3, (2, 16, 16), 2)),
    (InputRoute(0, (2, 128, 128)),),
    (Readout(3),),
    ((2, 128, 128),),
    sensor=Sensor(),
    monitors=(Monitor("seen", 3),),
)
PIXELS = [
    [0.0015, 3, 1, 2, 3],
    [0.0016, 3, 1, 2, 3],
    [0.0016, 0, 0, 0, 0],
    [0.0031, 3, 0, 15, 15],
    [0.0042, 3, 0, 0, 0],
]


@pytest.mark.parametrize("chip", BOARDS)
def test_the_chips_own_pixels(tmp_path: Path, chip: str) -> None:
    files = ["--output", str(tmp_path / "out.npz"), "--record", "spikes"]
    done = play(tmp_path, on(chip, SEEN), "--seconds", "0.004", *files, pixels=PIXELS)
    assert done.status == 0, done.said
    steps = np.zeros((4, 1, 2, 16, 16), int)
    steps[1, 0, 1, 2, 3], steps[3, 0, 0, 15, 15] = 2, 1
    same(done.arrays, {"counts0": steps.sum(0), "steps0": steps, "spikes/seen": steps})
    assert not done.writes("Spike") and not done.writes("RouterEvent")
    assert len(done.writes("WriteNeuronValue")) == 1
    assert len(done.named("enable_dvs")) == (chip != "dynapcnn")


def test_the_pixels_time_steps_are_printed(tmp_path: Path) -> None:
    """What comes after the seconds, while this process oversleeps, is not among them."""
    done = play(tmp_path, SEEN, "--seconds", "0.004", pixels=PIXELS, oversleep=0.001)
    assert done.said == "    0.001 s: [0, 2]\n    0.003 s: [1, 0]\n     in all: [1, 2]\n"


def test_newer_samna(tmp_path: Path) -> None:
    """As sinabs 3.1.3 uses it: no check against the real one was possible. The readout block and the power monitor."""
    weights = np.zeros((9, 9, 1, 1), np.int8)
    weights[::4] = 1  # the block takes class i from channel 4 * i
    last = core(5, (9, 1, 1), 9, weights=weights, destinations=(Destination(12),))
    network = Config(CHIPS["speck2f"], (last,), (InputRoute(5, (9, 1, 1)),), (Readout(5, step=4),), ((9,),))
    arrays, plan = {"x0": np.zeros((2, 3, 9), int)}, {"board": "Speck2fDevKit", "pins": [1, 3, 3, 0]}
    arrays["x0"][:, :, 8] = 1
    data = json.loads(to_json(network))
    del data["value0"]["readout"]
    done = play(tmp_path, json.dumps(data), arrays=arrays, **plan)
    refused = "a core feeds the readout block, but config.json does not switch on it and its pins' monitor"
    assert (done.status, done.said, done.log) == (2, f"error: {refused}\n", [])
    done = play(tmp_path, network, "--power", arrays=arrays, **plan)
    assert done.status == 0, done.said
    assert done.arrays["counts0"].tolist() == [[0, 0, 2]] * 3
    assert done.arrays["readout"].tolist() == [[1, 0, 2] + [0] * 12] * 3
    np.testing.assert_allclose(done.arrays["power"], [1, 2, 3, 4, np.nan])
    assert "power: io 1.000 mW, ram 2.000 mW, logic 3.000 mW, pixel digital 4.000 mW, pixel analog nan mW" in done.said
    assert done.writes("Spike") == [[[5, 8, 0, 0, 1000], [5, 8, 0, 0, 2000]]] * 3  # the first tick is at 1000 us
    names = [what[0] for what in done.log]
    assert names.count("sequential") == 3 and names.count("rate") == 1
    sample = ["write", "power", "watch", "watch", "write", "set_slow_clk", "set_slow_clk", "power"]
    assert names[-len(sample) * 3 :] == sample * 3
    done = play(tmp_path, dataclasses.replace(network, cores=(dataclasses.replace(last, destinations=()),)),
                arrays=arrays, **plan)  # fmt: skip
    assert "readout" not in done.arrays and done.writes("Spike")[-1][0][-1] == run.LEAD_US


# ------------------------------------------------------------------------------------------- what is said before samna


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "x"], "--input needs --output"),
        (["--input", "x", "--output", "y", "--seconds", "1"], "from the file or from the chip's pixels"),
        (["--output", "y"], "--output, --record and --power need --input or --seconds"),
        (["--power"], "--output, --record and --power need --input or --seconds"),
        (["--seconds", "1", "--record", "spikes"], "--record needs --output"),
        (["--seconds", "0"], "--timestep-us and --seconds must be above 0"),
        (["--seconds", "inf"], "--timestep-us and --seconds must be above 0"),
        (["--input", "x", "--output", "y", "--timestep-us", "0"], "--timestep-us and --seconds must be above 0"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "arguments", "said"),
    [
        (NETWORK, ["--seconds", "1"], "was compiled to take its input from the host, from --input"),
        (SEEN, ["--input", "in.npz", "--output", "out.npz"], "from the chip's own pixels, for --seconds"),
        (
            NETWORK,
            ["--input", "in.npz", "--output", "out.npz", "--record", "relu,conv,fc"],
            "not monitored: conv, fc; monitored are relu, last. Monitors are chosen when the network is compiled, with",
        ),
        (SEEN, ["--seconds", "1", "--output", "out.npz", "--record", "x"], "not monitored: x; monitored are seen."),
        (NETWORK, ["--input", "in.npz", "--output", "out.npz"], "cannot read the input spikes: FileNotFoundError"),
    ],
)
def test_refusals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    network: Config,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(to_json(network))
    assert run.main([*arguments, "config.json"]) == 2
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x0": X0}, "in.npz has no x1; wanted are x0, x1"),
        ({"x0": X0.astype(float), "x1": X1}, "x0 is float64 (3, 2, 38), not whole numbers (T, N, 38) or (T, 38)"),
        ({"x0": X0[:, :, :37], "x1": X1}, "x0 is uint8 (3, 2, 37), not"),
        ({"x0": X0[:0], "x1": X1}, "x0 is uint8 (0, 2, 38), not"),
        ({"x0": X0, "x1": X1 - 1}, "x1 holds -1: these are numbers of spikes"),
        ({"x0": X0, "x1": X1[:, 0]}, "the inputs differ in their (T, N): (3, 2), (3, 1)"),
    ],
)
def test_wrong_inputs(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(run.RunError) as caught:
        run.read_input(np, tmp_path / "in.npz", [[38], [1, 2, 2]])
    assert said in str(caught.value)


def test_what_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", X0)
    (tmp_path / "in.npz").write_bytes(b"PK\3\4")
    for name in ("in.npy", "in.npz"):
        with pytest.raises(run.RunError, match="cannot read the input spikes: "):
            run.read_input(np, tmp_path / name, [[38]])


# ------------------------------------------------------------------------------------------- the fake against samna

# Prints what the fake relies on, as samna 0.7.1.0 has it: of each module the events that a host may send, from the text
# of the function that turns a configuration into events; the attributes of each event; and, where samna writes and
# reads its own words for the chip, the runner's event through them.
INTROSPECT = """
import json, re, sys
from types import SimpleNamespace
import samna
sys.path.insert(0, sys.argv[1])
import run
found = {}
for name in ("dynapcnn", "speck", "speck2", "speck2b"):
    module = getattr(samna, name)
    event = module.event
    functions = [n for n in dir(event) if n.endswith(("config_to_event", "configuration_to_event"))]
    sends = re.findall("event[.:]+([A-Z][A-Za-z]+)", getattr(event, functions[-1]).__doc__.partition("->")[2])
    fields = {n: [f for f in dir(getattr(event, n)) if f[0] != "_"] for n in json.loads(sys.argv[2])}
    sink = dir(getattr(samna, f"BufferSinkNode_{name}_event_output_event"))
    board = SimpleNamespace(module=module, stamped=name not in run.UNSTAMPED, lead_us=100, timestep_us=10)
    sent = run.Board.event(board, 3, 8, 1023, 62, 63)
    if not board.stamped:
        (sent,) = event.decode_input_interface_events(event.encode_input_interface_events([sent]))
    spike = [type(sent).__name__, sent.layer, sent.feature, sent.y, sent.x, getattr(sent, "timestamp", None)]
    found[name] = {"functions": functions, "sends": sends, "fields": fields, "sink": sink, "spike": spike}
print(chr(10) + json.dumps({**found, "file": samna.__file__}))
"""
# The boards' methods cannot be seen without a board, but the functions behind them are in samna's library, by the names
# of the C++ compiler; Python has them in snake_case.
METHODS = (
    "14dynapcnnDevKit14DynapcnnDevKit8getModelEv", "14dynapcnnDevKit14DynapcnnDevKit11getIoModuleEv",
    "14dynapcnnDevKit14DynapcnnDevKit18getModelSourceNodeEv", "14dynapcnnDevKit13UnifirmModule11writeConfigEtt",
    "8dynapcnn13DynapcnnModel5writeE", "8dynapcnn13DynapcnnModel18applyConfigurationE",
    "11motherBoard11MotherBoardIN6speck219Speck2DaughterBoardEE16getDaughterBoardEh",
    "6speck219Speck2DaughterBoard8getModelEv", "6speck219Speck2DaughterBoard11getIoModuleEv",
    "6speck219Speck2DaughterBoard18getModelSourceNodeEv", "6speck213UnifirmModule10setBiasClkEb",
    "6speck213UnifirmModule12pulseBiasClkEv", "6speck213UnifirmModule9enableDvsEv", "6speck211Speck2Model5writeE",
    "6speck211Speck2Model18applyConfigurationE", "16speck2bTestboard16Speck2bTestboard8getModelEv",
    "16speck2bTestboard16Speck2bTestboard11getIoModuleEv",
    "16speck2bTestboard16Speck2bTestboard18getModelSourceNodeEv", "16speck2bTestboard13UnifirmModule5writeE",
    "16speck2bTestboard13UnifirmModule10setBiasClkEb", "16speck2bTestboard13UnifirmModule12pulseBiasClkEv",
    "16speck2bTestboard13UnifirmModule9enableDvsEv",
)  # fmt: skip


@pytest.mark.vendor
def test_the_fake_has_the_names_of_samna() -> None:
    python = sdk.find("samna")
    if python is None:
        assert os.environ.get("SNNCC_REQUIRE_SDK") != "1", "samna is not installed"
        pytest.skip("samna is not installed: python -m snncc.sdk build samna")
    fields = {
        "Spike": ["layer", "feature", "y", "x", "timestamp"],
        "RouterEvent": ["layer", "feature", "y", "x"],
        "WriteNeuronValue": ["layer", "address", "neuron_state"],
        "WriteRegisterValue": ["layer", "index", "data"],
    }
    for name, each in fields.items():
        assert f'"{name}": ({", ".join(map(json.dumps, each))})' in FAKE
    line = [python, "-c", INTROSPECT, Path(run.__file__).parent, json.dumps(list(fields))]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    library = next(Path(found.pop("file")).parent.glob("samna.*.so")).read_bytes()
    for name, module in found.items():
        stamped = name in ("dynapcnn", "speck")
        assert ("Spike" in module["sends"]) == stamped == (name not in run.UNSTAMPED)
        assert {"RouterEvent", "WriteNeuronValue", "WriteRegisterValue"} <= set(module["sends"])
        for event, names in fields.items():
            assert set(names) <= set(module["fields"][event]), (name, event)
        assert "timestamp" not in module["fields"]["RouterEvent"]
        assert module["spike"] == ["Spike" if stamped else "RouterEvent", 8, 1023, 62, 63, 130 if stamped else None]
        assert {"get_events", "get_input_channel"} <= set(module["sink"])
        assert name != "speck2b" or "speck_configuration_to_event" in module["functions"]
    assert [each for each in METHODS if f"_ZN{each}".encode() not in library] == []
    for absent in ("getStopWatch", "setSlowClk", "getPowerMonitor"):  # newer samna's
        assert absent.encode() not in library
    # Python's calls of a class go through its method invokers: speck2's model has some, speck2b's has none.
    assert b"methodInvocatorIN6speck211Speck2ModelE" in library
    assert b"methodInvocatorIN7speck2b12Speck2bModelE" not in library

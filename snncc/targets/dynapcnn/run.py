"""Validates the configuration beside this file with samna, or runs it on a DYNAP-CNN or Speck board.

    python run.py [--json]                                         asks samna's own validator (the default)
    python run.py --input events.npz --output counts.npz [--record NAME,NAME | spikes] [--power]
    python run.py --seconds 5 [--output counts.npz] [--record ...] [--power]      the chip's own pixels are the input

Both ways of running take [--timestep-us 1000] [--device Speck2bTestboard]. The input file holds `x0`, `x1` and so on,
whole numbers of spikes, (T, N, *shape) or (T, *shape). The output file gets

- `counts0`, `counts1` and so on: of each output the spikes (N, C, H, W), or (N, C) where H = W = 1;
- `steps0` and so on, with --seconds: the same of each time step, (T, 1, ...);
- `spikes/NAME`, with --record: (T, N, C, H, W) of layers whose monitor was chosen when the network was compiled;
- `power`, with --power: the average of each supply while samples ran, in mW;
- `readout` (N, 15), if the network feeds the chip's readout block: on how many ticks the block named each class.

Stands alone: it needs samna in this Python (samna 0.7.1.0 needs Python 3.10), numpy to run, and config.json.
Exit status: 0 valid or done, 1 not valid, 2 could not be found out.

Honest limits: --validate has been run with samna 0.7.1.0. Running has been tried with it as far as the search for a
board, and HAS NEVER BEEN DONE ON A BOARD; what comes after is written from the names in samna's bindings and from
sinabs' use of them. The calls of newer samna, which a speck2e or speck2f needs, its readout block and its power monitor
are from sinabs 3.1.3 and its tutorials and have not been run at all.

- dynapcnn and speck, and every chip of newer samna: the host's events carry time stamps, and a spike belongs to the
  time step of its own stamp. A clock of the board adds the biases; nothing holds it in step with the time steps.
- speck2 and speck2b with samna 0.7: the host's events carry no time stamps. This process sends them when their time
  step begins, and a spike belongs to the time step in which it is received: no better than the USB and this computer
  keep time. Biases are added by one tick before the events of each step.
- speck2b with samna 0.7: its board's model has no call to configure it, so that the configuration is sent as the
  events into which samna itself turns it.
- The chip's own pixels (--seconds) send from the moment the configuration is written, so that potentials may have moved
  a little by the time the recording begins. A spike that is under way in the host's USB when the seconds end is lost.
"""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

CONFIG = Path(__file__).resolve().parent / "config.json"
MARK = "snncc-answer "  # samna prints lines of its own; ours begin with this
LEAD_US = 100_000  # the first event's time stamp: the host must have sent it before its time has come
PAUSE = 0.1  # seconds between two looks at what has come; with none in between, the chip counts as silent (sinabs)
# What samna calls the boards with each chip (sinabs, `io.device_types`); --device takes any other name.
BOARDS = {
    "dynapcnn": ("DynapcnnDevKit",),
    "speck": ("speck", "SpeckTestBoard"),
    "speck2": ("Speck2DevKit",),
    "speck2b": ("Speck2bTestboard", "Speck2bDevKitTiny"),
    "speck2e": ("Speck2eTestBoard", "Speck2eDevKit"),
    "speck2f": ("Speck2fModuleDevKit", "Speck2fDevKit"),
}
# The modules of samna 0.7 whose boards take no Spike from the host, but RouterEvents, which have no time stamp: the
# types that each module's `*_config_to_event` and its model's `write` name.
UNSTAMPED = ("speck2", "speck2b")
READOUT, CLASSES = 12, 15  # the readout block as a destination, and its classes (datasheet 3.2.5)
SUPPLIES = ("io", "ram", "logic", "pixel digital", "pixel analog")  # datasheet table 7, by samna's channel number


class RunError(Exception):
    """It could not be done; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--validate", action="store_true", help="ask samna's validator (the default)")
    what.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="answer as JSON, one line for each configuration")
    parser.add_argument("--device", help="the board: samna's name for it, and :N for the Nth of that name")
    parser.add_argument("--input", type=Path, help="run on a board: npz with `x0`, ..., counts (T, N, *shape)")
    parser.add_argument("--seconds", type=float, help="run on a board for so long, with the chip's pixels as the input")
    parser.add_argument("--output", type=Path, help="npz to write: `counts0`, ..., and what else was asked for")
    parser.add_argument("--record", default="", help="monitored layers (names with commas between), or spikes: all")
    parser.add_argument("--power", action="store_true", help="the average power of each supply, in mW")
    parser.add_argument("--timestep-us", type=int, default=1000, help="the length of one time step in microseconds")
    parser.add_argument("configs", type=Path, nargs="*", default=[CONFIG], help="default: config.json beside this file")
    options = parser.parse_args(arguments)
    runs = options.input is not None or options.seconds is not None
    if options.input and options.seconds is not None:
        parser.error("--input and --seconds: the input comes from the file or from the chip's pixels")
    if options.input and not options.output:
        parser.error("--input needs --output")
    if options.record and not options.output:
        parser.error("--record needs --output")
    if (options.record or options.power or options.output) and not runs:
        parser.error("--output, --record and --power need --input or --seconds")
    if options.timestep_us < 1 or (options.seconds is not None and not 0 < options.seconds < float("inf")):
        parser.error("--timestep-us and --seconds must be above 0")
    if options.child:
        return answer(options.configs)
    try:
        if runs:
            return deploy(options)
        answers = validate(options.configs)
    except RunError as error:
        print(json.dumps({"valid": None, "message": str(error)}) if options.json else f"error: {error}")
        return 2
    for found in answers:
        said = "valid" if found["valid"] else f"NOT VALID: {found['message']}"
        line = f"{found['config']} ({found['chip']}, {found['version']}): {said}"
        print(json.dumps(found) if options.json else line)
    return 0 if all(found["valid"] for found in answers) else 1


# ------------------------------------------------------------------------------------------------------- validation


def validate(configs: list[Path]) -> list[dict[str, Any]]:
    """What samna says of each configuration. Raises RunError if it cannot be asked.

    The validator runs in a process of its own because it can crash (a pooling of 0 is SIGFPE). After a crash a new
    process is asked about the rest.
    """
    version, chips = samna_version(), [read(config)["snncc"]["chip"] for config in configs]
    answers: list[dict[str, Any]] = []
    while len(answers) < len(configs):
        line = [sys.executable, __file__, "--child", *map(str, configs[len(answers) :])]
        child = subprocess.run(line, capture_output=True, text=True, check=False)
        said = [json.loads(out[len(MARK) :]) for out in child.stdout.splitlines() if out.startswith(MARK)]
        if not said or "error" in said[-1]:
            raise RunError(said[-1]["error"] if said else f"samna did not start: {child.stderr.strip()[-2000:]}")
        answers += said[1:]  # the first only says that samna is there
        if len(answers) < len(configs):
            code = child.returncode
            cause = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"status {code}"
            message = f"samna's validator crashed with {cause} {child.stderr.strip()[-2000:]}".rstrip()
            answers.append({"valid": False, "message": message})
    return [
        {**said, "version": f"samna {version}", "chip": chip, "config": str(config)}
        for said, chip, config in zip(answers, chips, configs, strict=True)
    ]


def answer(configs: list[Path]) -> int:
    """The child: one line that samna imports, then one line for each configuration."""
    import samna

    say({})
    for config in configs:
        try:
            module, configuration = load(samna, read(config))
            valid, message = module.validate_configuration(configuration)
        except RunError as error:
            say({"error": f"{config}: {error}"})
            break
        except RuntimeError as error:  # what samna's JSON reader raises
            valid, message = False, f"samna cannot read it: {error}"
        say({"valid": bool(valid), "message": str(message).strip()})
    return 0


def say(what: dict[str, Any]) -> None:
    """One line to the parent, out of the door before the next configuration can crash this process."""
    print(f"\n{MARK}{json.dumps(what)}", flush=True)


def samna_version() -> str:
    """The version of the samna in this Python, without importing it. Raises RunError if there is none."""
    try:
        return metadata.version("samna")
    except metadata.PackageNotFoundError:
        raise RunError(
            f"samna is not installed for {sys.executable}; it needs Python 3.10 and samna==0.7.1.0"
        ) from None


def read(config: Path) -> dict[str, Any]:
    """The JSON that snncc wrote. Raises RunError if it is not there or something else."""
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the configuration: {error}") from None
    if not isinstance(data, dict) or not {"snncc", "value0"} <= set(data):
        raise RunError(f"{config} was not written by snncc")
    return data


def load(samna: Any, data: dict[str, Any]) -> tuple[Any, Any]:
    """The samna module for the chip, and its configuration object. Raises RunError if this samna has no such module."""
    header = data["snncc"]
    module = getattr(samna, header["samna_module"], None)
    if module is None:
        raise RunError(f"samna {samna_version()} has no module {header['samna_module']} for the chip {header['chip']}")
    configuration = getattr(module.configuration, header["samna_configuration"])()
    if not header["whole"]:
        data = lay_over(json.loads(configuration.to_json()), {"value0": data["value0"]})
    configuration.from_json(json.dumps(data))
    return module, configuration


def lay_over(base: dict[str, Any], ours: dict[str, Any], where: str = "") -> dict[str, Any]:
    """`base` with our values, whether spelled in snake_case or camelCase. Raises RunError for a field that it lacks."""
    spelled = {key.replace("_", "").lower(): key for key in base}
    result = dict(base)
    for key, value in ours.items():
        name = spelled.get(key.replace("_", "").lower())
        if name is None:
            raise RunError(f"this samna's configuration has no field {where}/{key}")
        nested = isinstance(value, dict) and "values" not in value  # a tensor is replaced whole: its size differs
        result[name] = lay_over(base[name], value, f"{where}/{name}") if nested else value
    return result


# ------------------------------------------------------------------------------------------------------- deployment


def deploy(options: argparse.Namespace) -> int:
    """Runs every sample on the board, each from the initial potentials, and writes what was counted and recorded."""
    import numpy as np

    if len(options.configs) > 1:
        raise RunError("one configuration at a time can run")
    (config,) = options.configs
    data = read(config)
    header = data["snncc"]
    if (header["sensor"] is None) != (options.seconds is None):
        source = "the host, from --input" if header["sensor"] is None else "the chip's own pixels, for --seconds"
        raise RunError(f"this network was compiled to take its input from {source}")
    recorded = monitored(header, options.record)
    block = feeds_readout(data)
    if options.input is not None:
        spikes = read_input(np, options.input, header["input_shapes"])
        steps, samples = spikes[0].shape[:2]
    else:
        spikes, steps, samples = [], -(-round(options.seconds * 1e6) // options.timestep_us), 1
    (judged,) = validate([config])
    if not judged["valid"]:
        raise RunError(f"samna does not take the configuration: {judged['message']}")

    import samna

    module, configuration = load(samna, data)
    board = Board(samna, module, header["chip"], options.device, options.timestep_us)
    board.set_up(configuration, ticks=header["leaks"] or block, sensor=header["sensor"] is not None)
    meter = Meter(samna, board.board) if options.power else None
    tally = Tally(np, data, recorded, steps, samples, each_step=not spikes)
    states = initial_states(module, data)
    for sample in range(samples):
        events = input_events(np, [x[:, sample] for x in spikes], header, board.event) if spikes else None
        board.send(states)
        board.receive(after=PAUSE)  # and drops what is left of the sample before
        if meter:
            meter.begin()
        for step, event in board.run(steps, events):
            tally.add(sample, step, event)
        if meter:
            meter.end()
    result = tally.arrays(block)
    if meter:
        result["power"] = meter.average(np)
        print("power:", ", ".join(f"{n} {mw:.3f} mW" for n, mw in zip(SUPPLIES, result["power"], strict=True)))
    if tally.stray:
        print(f"warning: {tally.stray} spikes from where no neuron is were left out", file=sys.stderr)
    if options.output:
        np.savez(options.output, **result)
        print(f"wrote the counts of {samples} samples to {options.output}")
    else:
        say_steps(np, result, options.timestep_us)
    return 0


def read_input(np: Any, path: Path, shapes: list[list[int]]) -> list[Any]:
    """Of each input the counts (T, N, *shape). Raises RunError for a file that holds something else."""
    names = [f"x{i}" for i in range(len(shapes))]
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files if name in names}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise RunError(f"cannot read the input spikes: {type(error).__name__}: {error}") from None
    if missing := [name for name in names if name not in found]:
        raise RunError(f"{path.name} has no {', '.join(missing)}; wanted are {', '.join(names)}")
    spikes = []
    for name, shape in zip(names, shapes, strict=True):
        x = found[name]
        x = x[:, None] if list(x.shape[1:]) == shape else x
        if x.dtype.kind not in "biu" or list(x.shape[2:]) != shape or x.size == 0:
            wanted = ", ".join(map(str, shape))
            raise RunError(f"{name} is {x.dtype} {x.shape}, not whole numbers (T, N, {wanted}) or (T, {wanted})")
        if x.min() < 0:
            raise RunError(f"{name} holds {x.min()}: these are numbers of spikes")
        spikes.append(x)
    if len({x.shape[:2] for x in spikes}) > 1:
        raise RunError(f"the inputs differ in their (T, N): {', '.join(str(x.shape[:2]) for x in spikes)}")
    return spikes


def input_events(np: Any, spikes: list[Any], header: dict[str, Any], make: Any) -> list[list[Any]]:
    """Of each time step the host's events; `spikes` are the counts (T, *shape) of each input of one sample.

    First the biases that the host gives. Then input by input, in `host_order`; a spike's copies for several cores
    follow each other. What the pooling leaves over at the map's edge is not sent: a core has no such coordinate.
    """
    events: list[list[Any]] = [[] for _ in spikes[0]]
    for core, first, count, rows, columns in header["biases"]:
        for step, sent in enumerate(events):
            for channel in range(first, first + count):
                sent += [make(step, core, channel, row, column) for row in rows for column in columns]
    for index, x in enumerate(spikes):
        ways = [way for way in header["inputs"] if way[4] == index]
        order = host_order(np, x.shape[1:])
        flat = x.reshape(len(x), -1)[:, order]
        for step, turn in np.argwhere(flat).tolist():
            copies, place = [], int(order[turn])
            for core, (channels, height, width), pooling, shift, _ in ways:
                channel, rest = divmod(place, height * width)
                row, column = rest // width // pooling, rest % width // pooling
                if channel < channels and row < height // pooling and column < width // pooling:
                    copies.append((core, channel + shift, row, column))
            for _ in range(int(flat[step, turn])):
                events[step] += [make(step, *copy) for copy in copies]
    return events


def host_order(np: Any, shape: tuple[int, ...]) -> Any:
    """In which order the events of a time step are sent: the places of an input (C, H, W), or (F,), in C order.

    By rows and columns with their bits reversed, so that each window of a kernel gets its share of every part of them:
    row by row, sums would run far beyond what they come to, and fire neurons that nothing can silence again.
    """
    size = shape if len(shape) == 3 else (1, 1, int(np.prod(shape)))
    _, y, x = np.indices(size)
    key = np.zeros(size, np.int64)
    for bit in range(max(size[1:]).bit_length()):
        key = key << 2 | (y >> bit & 1) << 1 | x >> bit & 1
    return np.argsort(key.ravel(), kind="stable")


def initial_states(module: Any, data: dict[str, Any]) -> list[Any]:
    """A write of the initial potential of every neuron in use: what puts the chip back to the start of a sample."""
    events = []
    for core in map(int, data["snncc"]["names"]):
        tensor = field(core_fields(data, core), "neurons_initial_value")
        shape = tuple(tensor["dimensions"].values())
        for place, value in enumerate(tensor["values"]):
            event = module.event.WriteNeuronValue()
            event.layer, event.neuron_state = core, value
            event.address = neuron_address(data["snncc"]["neuron_major"], shape, place)
            events.append(event)
    return events


def neuron_address(major: str, shape: tuple[int, ...], place: int) -> int:
    """The address of the neuron at `place` of a flat [channel][x][y] tensor: x or y in the high bits, then the other,
    then the channel, each with as many bits as its size needs. Source: samna's own *_to_event functions.
    """
    (channel, x), y = divmod(place // shape[2], shape[1]), place % shape[2]
    channel_bits, x_bits, y_bits = ((size - 1).bit_length() for size in shape)
    if major == "x":
        return x << (channel_bits + y_bits) | y << channel_bits | channel
    return y << (channel_bits + x_bits) | x << channel_bits | channel


def monitored(header: dict[str, Any], asked: str) -> list[str]:
    """The layers to record. Raises RunError for one that has no monitor."""
    names = list(dict.fromkeys(name for name, *_ in header["monitors"]))
    wanted = names if asked == "spikes" else [name for name in asked.split(",") if name]
    if unknown := [name for name in wanted if name not in names]:
        raise RunError(
            f"not monitored: {', '.join(unknown)}; monitored are {', '.join(names) or 'none'}. "
            "Monitors are chosen when the network is compiled, with the option monitor=..."
        )
    return wanted


def feeds_readout(data: dict[str, Any]) -> bool:
    """Whether a core feeds the chip's readout block. Raises RunError if it does and the block is not set up to say."""
    cores = [core_fields(data, core) for core in map(int, data["snncc"]["names"])]
    ways = [way for core in cores for way in field(core, "destinations").values()]
    if not any(way["enable"] and way["layer"] == READOUT for way in ways):
        return False
    block = field(data["value0"], "readout", {})
    if not (field(block, "enable", False) and field(block, "readout_pin_monitor_enable", False)):
        raise RunError("a core feeds the readout block, but config.json does not switch on it and its pins' monitor")
    return True


def core_fields(data: dict[str, Any], core: int) -> dict[str, Any]:
    """What config.json says of a core."""
    layers = field(data["value0"], "cnn_layers")
    found: dict[str, Any] = layers[f"value{core}"]
    return found


def field(data: dict[str, Any], name: str, *default: Any) -> Any:
    """The value of a key, in whichever of the two styles it is spelled. Raises StopIteration without a default."""
    same = (value for key, value in data.items() if key.replace("_", "").lower() == name.replace("_", ""))
    return next(same, *default)


class Tally:
    """What has come out of the chip, as arrays."""

    def __init__(
        self, np: Any, data: dict[str, Any], recorded: list[str], steps: int, samples: int, each_step: bool
    ) -> None:
        """`each_step`: counts of each time step too (one sample)."""
        header, dtype = data["snncc"], np.int32
        self.counts = [np.zeros((samples, *shape), np.int64) for shape in header["outputs"]]
        self.steps = [np.zeros((steps, samples, *shape), dtype) for shape in header["outputs"] if each_step]
        self.pins = np.zeros((samples, CLASSES), np.int64)
        self.stray = 0
        self.readouts: dict[int, list[tuple[int, int, int]]] = {}
        for core, first, step, output in header["readouts"]:
            self.readouts.setdefault(core, []).append((first, step, output))
        self.monitors: dict[int, list[tuple[str, int]]] = {}
        shapes: dict[str, tuple[int, int, int]] = {}
        for name, core, first in header["monitors"]:
            if name in recorded:
                self.monitors.setdefault(core, []).append((name, first))
                out = field(field(core_fields(data, core), "dimensions"), "output_shape")
                last = first + field(out, "feature_count")
                shapes[name] = max(last, shapes.get(name, (0,))[0]), out["size"]["y"], out["size"]["x"]
        self.records = {name: np.zeros((steps, samples, *shape), dtype) for name, shape in shapes.items()}

    def add(self, sample: int, step: int, event: Any) -> None:
        """One event: a spike of a core, or what the readout block's pins say."""
        if hasattr(event, "index"):  # a ReadoutPinValue: 1 to 15, the first class is 1
            if 1 <= event.index <= CLASSES:
                self.pins[sample, event.index - 1] += 1
            return
        for first, per, output in self.readouts.get(event.layer, ()):
            place = (first + event.feature // per, event.y, event.x)
            if self._within(place, self.counts[output].shape[1:]):
                self.counts[output][(sample, *place)] += 1
                if self.steps:
                    self.steps[output][(step, sample, *place)] += 1
        for name, first in self.monitors.get(event.layer, ()):
            place = (first + event.feature, event.y, event.x)
            if self._within(place, self.records[name].shape[2:]):
                self.records[name][(step, sample, *place)] += 1

    def _within(self, place: tuple[int, int, int], shape: tuple[int, ...]) -> bool:
        fits = all(0 <= at < size for at, size in zip(place, shape, strict=True))
        self.stray += not fits
        return fits

    def arrays(self, readout: bool) -> dict[str, Any]:
        """What the output file gets."""

        def squeezed(array: Any) -> Any:
            return array[..., 0, 0] if array.shape[-2:] == (1, 1) else array

        found = {f"counts{i}": squeezed(counts) for i, counts in enumerate(self.counts)}
        found |= {f"steps{i}": squeezed(steps) for i, steps in enumerate(self.steps)}
        found |= {f"spikes/{name}": spikes for name, spikes in self.records.items()}
        return found | ({"readout": self.pins} if readout else {})


def say_steps(np: Any, result: dict[str, Any], timestep_us: int) -> None:
    """A line for each time step with spikes: of each output the channels' counts, summed over its map."""
    outputs = [steps.reshape(*steps.shape[:3], -1).sum((1, 3)) for key, steps in result.items() if key[:5] == "steps"]
    for step in np.flatnonzero(sum(counts.sum(1) for counts in outputs)).tolist():
        print(f"{step * timestep_us / 1e6:9.3f} s:", *(counts[step].tolist() for counts in outputs))
    print("in all:".rjust(12), *(counts.sum(0).tolist() for counts in outputs))


# ------------------------------------------------------------------------------------------------------- the board


class Board:
    """An opened board with its chip. What differs between boards and versions of samna is in here."""

    def __init__(self, samna: Any, module: Any, chip: str, wanted: str | None, timestep_us: int) -> None:
        """Raises RunError if there is no such board, or none that this can use."""
        self.node, self.board = open_board(samna, chip, wanted)  # the node: samna's own end, has to live as long
        # the Speck2DevKit has its chip on a board of its own
        self.owner = self.board.get_daughter_board(0) if hasattr(self.board, "get_daughter_board") else self.board
        if not hasattr(self.owner, "get_model"):  # samna 0.7's SpeckTestBoard has other calls, which nothing describes
            raise RunError("samna gives this board no model to configure and to send events to")
        self.module, self.timestep_us, self.lead_us = module, timestep_us, LEAD_US
        self.model = self.owner.get_model()
        get_io: Any = getattr(self.owner, "get_io_module", object)  # without one, none of the calls below is found
        self.io = get_io()
        name = re.sub("([A-Z])", r"_\1", module.__name__.rpartition(".")[2]).lower()
        old = hasattr(samna, f"BufferSinkNode_{name}_event_output_event")
        self.stamped = not (old and name in UNSTAMPED)
        self.types = tuple(getattr(module.event, kind, module.event.Spike) for kind in ("Spike", "ReadoutPinValue"))
        self.sink = getattr(samna, f"{'Buffer' if old else 'Basic'}SinkNode_{name}_event_output_event")()
        if old:  # samna 0.7, whose Speck2bTestboard has a model without methods: events go to the io module
            self.owner.get_model_source_node().add_destination(self.sink.get_input_channel())
            self.send = (self.model if hasattr(self.model, "write") else self.io).write
        else:
            sources = [each for each in dir(samna) if re.fullmatch(f"BasicSourceNode_{name}_event_.*input_event", each)]
            source, self.graph = getattr(samna, sources[0])(), samna.graph.EventFilterGraph()
            self.graph.sequential([source, self.model.get_sink_node()])
            self.graph.sequential([self.model.get_source_node(), self.sink])
            self.graph.start()
            self.send = source.write

    def set_up(self, configuration: Any, ticks: bool, sensor: bool) -> None:
        """Write the configuration. `ticks`: something on the chip waits for a slow clock, one tick a time step.

        Raises RunError if this samna cannot drive that clock.
        """
        self.clock: Any = lambda on: None
        self.tick: Any = lambda: None
        if ticks and self.stamped and hasattr(self.io, "set_slow_clk"):  # sinabs 3.1.3, `DynapcnnNetwork.to`
            self.clock = self.io.set_slow_clk
            self.clock(False)
            self.io.set_slow_clk_rate(round(1e6 / self.timestep_us))
            # An early tick would add the biases before the input begins, so that there is little lead.
            self.lead_us = self.timestep_us
        elif ticks and not self.stamped and hasattr(self.io, "pulse_bias_clk"):  # the boards of speck2 and speck2b
            self.io.set_bias_clk(False)
            self.tick = self.io.pulse_bias_clk
        elif ticks:
            raise RunError("biases or the readout block need the slow clock, and this samna cannot drive it")
        if hasattr(self.model, "apply_configuration"):
            self.model.apply_configuration(configuration)
        else:
            self.send(self.module.event.speck_configuration_to_event(configuration))
        if sensor and hasattr(self.io, "enable_dvs"):
            self.io.enable_dvs()
        time.sleep(1)  # until it is written (sinabs waits as long)

    def event(self, step: int, core: int, feature: int, y: int, x: int) -> Any:
        """One spike of the host, for a core."""
        event = self.module.event.Spike() if self.stamped else self.module.event.RouterEvent()
        event.layer, event.feature, event.y, event.x = core, feature, y, x
        if self.stamped:
            event.timestamp = self.lead_us + step * self.timestep_us
        return event

    def receive(self, after: float = 0.0) -> list[Any]:
        """The spikes, and what the readout block says, that have come since the last call."""
        time.sleep(after)
        return [event for event in self.sink.get_events() if isinstance(event, self.types)]

    def run(self, steps: int, events: list[list[Any]] | None) -> list[tuple[int, Any]]:
        """Send the events of each time step and take what comes, each with its time step. None: the pixels send."""
        if not self.stamped:
            return self._run_by_host(steps, events)
        self._restart()
        if events is not None:
            self.send([event for step in events for event in step])
        self.clock(True)
        end = time.monotonic() + (self.lead_us * (events is not None) + steps * self.timestep_us) * 1e-6
        came = []
        while (left := end - time.monotonic()) > 0:
            came += self.receive(after=min(left, PAUSE))
        self.clock(False)
        if events is None:  # pixels are never silent
            placed = [(event.timestamp // self.timestep_us, event) for event in came]
            return [(step, event) for step, event in placed if step < steps]
        while fresh := self.receive(after=PAUSE):
            came += fresh
        return [(min(max(event.timestamp - self.lead_us, 0) // self.timestep_us, steps - 1), event) for event in came]

    def _run_by_host(self, steps: int, events: list[list[Any]] | None) -> list[tuple[int, Any]]:
        came: list[tuple[int, Any]] = []
        begin = time.monotonic()
        for step in range(steps):
            self.tick()
            if events is not None and events[step]:
                self.send(events[step])
            left = begin + (step + 1) * self.timestep_us * 1e-6 - time.monotonic()
            came += [(step, event) for event in self.receive(after=max(left, 0.0))]
        while events is not None and (fresh := self.receive(after=PAUSE)):
            came += [(steps - 1, event) for event in fresh]
        return came

    def _restart(self) -> None:
        """Time stamps from 0, and events sent at theirs."""
        if not hasattr(self.owner, "get_stop_watch"):
            self.io.write_config(0x0003, 0)  # the DynapcnnDevKit of samna 0.7: register 3 (sinabs, `enable_timestamps`)
            self.io.write_config(0x0003, 1)
            return
        watch = self.owner.get_stop_watch()
        watch.start() if hasattr(watch, "start") else watch.set_enable_value(True)
        watch.reset()


class Meter:
    """The board's power monitor. Source: sinabs' tutorial on it, for newer samna."""

    RATE = 100.0  # Hz: the highest (datasheet 3.2.6.4; it states an offset of about 50 uW on each supply, too)

    def __init__(self, samna: Any, board: Any) -> None:
        """Raises RunError if this samna or board has none."""
        if not hasattr(board, "get_power_monitor"):
            raise RunError("--power: this board, or this samna, has no power monitor")
        self.monitor = board.get_power_monitor()
        self.sink = samna.BasicSinkNode_unifirm_modules_events_measurement()
        self.graph = samna.graph.EventFilterGraph()
        self.graph.sequential([self.monitor.get_source_node(), self.sink])
        self.graph.start()
        self.events: list[Any] = []

    def begin(self) -> None:
        """Of a sample."""
        self.sink.get_events()
        self.monitor.start_auto_power_measurement(self.RATE)

    def end(self) -> None:
        """Of a sample."""
        self.monitor.stop_auto_power_measurement()
        self.events += self.sink.get_events()

    def average(self, np: Any) -> Any:
        """Of each supply in mW; nan for one that was not measured."""
        watts = [[event.value for event in self.events if event.channel == i] for i in range(len(SUPPLIES))]
        return np.array([1e3 * sum(each) / len(each) if each else np.nan for each in watts])


def open_board(samna: Any, chip: str, wanted: str | None) -> tuple[Any, Any]:
    """The samna node (to be kept alive, None in newer samna) and the opened board. Raises RunError if there is none."""
    node = None
    if hasattr(samna.device, "get_unopened_devices"):  # newer samna
        found = samna.device.get_unopened_devices()
    else:
        sender, receiver = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
        node = samna.SamnaNode(sender, receiver, 1)
        samna.setup_local_node(receiver, sender, 2)
        for attempt in (1, 2, 3):
            time.sleep(1)  # the two ends are not connected at once, and until they are the next call times out
            try:
                samna.open_remote_node(1, "device_node")
                break
            except RuntimeError as error:
                if attempt == 3:
                    raise RunError(f"samna's own device node does not answer: {error}") from None
        found = samna.device_node.DeviceController.get_unopened_devices()
    name, _, number = (wanted or "").partition(":")
    place = int(number) if number.isdigit() else 0
    names = (name,) if name else BOARDS.get(chip, ())
    matching = [info for info in found if info.device_type_name.lower() in {each.lower() for each in names}]
    if len(matching) <= place:
        seen = ", ".join(info.device_type_name for info in found) or "no device at all"
        raise RunError(f"no board found: looked for {' or '.join(names) or 'one named by --device'}, samna sees {seen}")
    info = matching[place]
    if node is None:
        return None, samna.device.open_device(info)
    samna.device_node.DeviceController.open_device(info, "board")
    return node, samna.device_node.board


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, so that two runs do not meet."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    sys.exit(main())

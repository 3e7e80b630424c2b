"""Validates the configuration beside this file with samna, or runs it on a DYNAP-CNN or Speck board.

    python run.py [--json]                                         asks samna's own validator (the default)
    python run.py --input events.npz --output counts.npz [--timestep-us 1000] [--device Speck2bTestboard]

Stands alone: it needs samna in this Python (samna 0.7.1.0 needs Python 3.10), numpy for --input, and config.json.
Exit status: 0 valid or done, 1 not valid, 2 could not be found out.

Honest limits: --validate has been run with samna 0.7.1.0. --input has been run with it as far as the search for a
board; what comes after was written from samna's bindings and sinabs' use of them, and HAS NOT BEEN RUN ON A BOARD. The
calls of newer samna, which a speck2e or speck2f needs, are from sinabs 3.1.3 and have not been run at all. Biases are
added by a clock of the board that nothing holds in step with the time steps of the input.
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

CONFIG = Path(__file__).resolve().parent / "config.json"
MARK = "snncc-answer "  # samna prints lines of its own; ours begin with this
LEAD_US = 100_000  # the first event's time stamp: the host must have sent it before its time has come
# What samna calls the boards with each chip (sinabs, `io.device_types`); --device takes any other name.
BOARDS = {
    "dynapcnn": ("DynapcnnDevKit",),
    "speck": ("speck", "SpeckTestBoard"),
    "speck2": ("Speck2DevKit",),
    "speck2b": ("Speck2bTestboard", "Speck2bDevKitTiny"),
    "speck2e": ("Speck2eTestBoard", "Speck2eDevKit"),
    "speck2f": ("Speck2fModuleDevKit", "Speck2fDevKit"),
}


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
    parser.add_argument(
        "--input",
        type=Path,
        help="run on a board: npz with `x0`, counts (T, N, C, H, W), (T, C, H, W) or (T, N, C*H*W)",
    )
    parser.add_argument("--output", type=Path, help="npz to write: `counts0` of shape (N, classes)")
    parser.add_argument("--timestep-us", type=int, default=1000, help="the length of one time step in microseconds")
    parser.add_argument("configs", type=Path, nargs="*", default=[CONFIG], help="default: config.json beside this file")
    options = parser.parse_args(arguments)
    if options.input and not (options.output and options.timestep_us > 0):
        parser.error("--input needs --output, and --timestep-us above 0")
    if options.child:
        return answer(options.configs)
    try:
        if options.input:
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
    """Runs every sample on the board, each from the initial potentials, and writes the spike counts of the classes."""
    import numpy as np

    (config,) = options.configs
    data = read(config)
    header = data["snncc"]
    try:
        with np.load(options.input) as file:
            spikes = file["x0"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"cannot read the input spikes: {error}") from None
    spikes = spikes[:, None] if spikes.ndim == 4 else spikes
    if spikes.ndim == 3 and spikes.shape[2] == np.prod(header["input_shape"]):
        spikes = spikes.reshape(*spikes.shape[:2], *header["input_shape"])
    if spikes.ndim != 5 or list(spikes.shape[2:]) != header["input_shape"] or spikes.dtype.kind not in "biu":
        raise RunError(f"spikes are {spikes.dtype} {spikes.shape}, not integers (T, N, {header['input_shape']})")
    (judged,) = validate([config])
    if not judged["valid"]:
        raise RunError(f"samna does not take the configuration: {judged['message']}")

    import samna

    module, configuration = load(samna, data)
    node, board = open_board(samna, header["chip"], options.device)
    owner = board.get_daughter_board(0) if hasattr(board, "get_daughter_board") else board  # the Speck2DevKit's way
    model = owner.get_model()
    send, receive = connect(samna, module, model)
    model.apply_configuration(configuration)
    time.sleep(1)  # until it is written (sinabs waits as long)
    clock = slow_clock(board, options.timestep_us) if header["leaks"] else lambda on: None
    # An early tick would add the biases before the input begins, so that with biases there is little lead.
    lead_us = options.timestep_us if header["leaks"] else LEAD_US
    counts = np.zeros((spikes.shape[1], header["classes"]), np.int64)
    readouts = {core: (first, step) for core, first, step in header["readouts"]}
    for sample in range(spikes.shape[1]):
        send(initial_states(module, data))
        receive(after=0.1)  # and drops what is left of the sample before
        restart_clock(board)
        send(input_events(np, module, spikes[:, sample], header["inputs"], options.timestep_us, lead_us))
        clock(True)
        events = receive(after=(lead_us + len(spikes) * options.timestep_us) * 1e-6)
        clock(False)
        while fresh := receive(after=0.1):  # until the chip is silent
            events += fresh
        for event in events:
            if isinstance(event, module.event.Spike) and event.layer in readouts:
                first, step = readouts[event.layer]
                counts[sample, first + event.feature // step] += 1
    np.savez(options.output, counts0=counts)
    del node  # samna's own end of the connection: it has to live until here
    print(f"wrote the counts of {len(counts)} samples to {options.output}")
    return 0


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


def connect(samna: Any, module: Any, model: Any) -> tuple[Any, Any]:
    """How to send events to the chip, and how to take those that came: two functions."""
    name = re.sub("([A-Z])", r"_\1", module.__name__.rpartition(".")[2]).lower()
    old, graph = hasattr(samna, f"BufferSinkNode_{name}_event_output_event"), None
    sink = getattr(samna, f"{'Buffer' if old else 'Basic'}SinkNode_{name}_event_output_event")()
    if old:  # samna 0.7
        model.get_source_node().add_destination(sink.get_input_channel())
        send = model.write
    else:
        sources = [each for each in dir(samna) if re.fullmatch(f"BasicSourceNode_{name}_event_.*input_event", each)]
        source, graph = getattr(samna, sources[0])(), samna.graph.EventFilterGraph()
        graph.sequential([source, model.get_sink_node()])
        graph.sequential([model.get_source_node(), sink])
        graph.start()
        send = source.write

    def receive(after: float = 0.0, keep: Any = graph) -> list[Any]:  # the graph runs as long as something holds it
        time.sleep(after)
        return list(sink.get_events())

    return send, receive


def slow_clock(board: Any, timestep_us: int) -> Any:
    """The switch (off now) of the clock on whose ticks each core adds its biases, one a time step.

    Raises RunError if this samna cannot.
    """
    io: Any = board.get_io_module() if hasattr(board, "get_io_module") else None
    if io is None or not hasattr(io, "set_slow_clk"):
        raise RunError("the network has biases, and this samna cannot set the slow clock that adds them")
    io.set_slow_clk(False)
    io.set_slow_clk_rate(round(1e6 / timestep_us))
    return io.set_slow_clk


def restart_clock(board: Any) -> None:
    """Time stamps from 0, and events sent at theirs."""
    if not hasattr(board, "get_stop_watch"):
        io = board.get_io_module()  # the DynapcnnDevKit of samna 0.7: register 3 (sinabs, `enable_timestamps`)
        io.write_config(0x0003, 0)
        io.write_config(0x0003, 1)
        return
    watch = board.get_stop_watch()
    watch.start() if hasattr(watch, "start") else watch.set_enable_value(True)
    watch.reset()


def input_events(np: Any, module: Any, spikes: Any, cores: list[int], timestep_us: int, lead_us: int) -> list[Any]:
    """One event a spike for each input core, ordered by time step, channel, y, x; `spikes` counts (T, C, H, W)."""
    events = []
    for step, channel, y, x in np.argwhere(spikes).tolist():
        for _ in range(int(spikes[step, channel, y, x])):
            for core in cores:
                event = module.event.Spike()
                event.layer, event.feature, event.y, event.x = core, channel, y, x
                event.timestamp = lead_us + step * timestep_us
                events.append(event)
    return events


def initial_states(module: Any, data: dict[str, Any]) -> list[Any]:
    """A write of the initial potential of every neuron in use: what puts the chip back to the start of a sample."""
    events, layers = [], field(data["value0"], "cnn_layers")
    for core in map(int, data["snncc"]["names"]):
        tensor = field(layers[f"value{core}"], "neurons_initial_value")
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


def field(data: dict[str, Any], name: str) -> Any:
    """The value of a key, in whichever of the two styles it is spelled."""
    return next(value for key, value in data.items() if key.replace("_", "").lower() == name.replace("_", ""))


if __name__ == "__main__":
    sys.exit(main())

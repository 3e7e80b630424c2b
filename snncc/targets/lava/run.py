"""Runs the network beside this file in Lava, on the CPU, bit for bit as Lava's fixed-point models define Loihi 2.

    python run.py [--validate] [--json]     builds and compiles the network in Lava without running it (the default)
    python run.py --input input.npz --output output.npz [--record all | NAME,NAME] [--timesteps T] [--json]

The input has one array of integers for each input of the network, x0, x1, ...: (N, *shape), sent in every time step,
or (T, N, *shape), one for each. The output has counts0, counts1, ... for the network's outputs: what each sent in the T
steps of a sample, summed up, (N, *shape); and spikes/NAME for what is recorded, (T, N, *shape). Samples run back to
back: a layer begins with the next as soon as it is done with one, and starts it from its initial state.

Stands alone: it needs Python 3.10 with lava-nc 0.10.0 (for a network.net also lava-dl 0.6.0) on Linux or macOS, and
the files that lie here. Exit status: 0 valid or done, 1 not valid, 2 could not be found out or done.

Honest limits: --hardware chooses Lava's Loihi 2 run configuration instead of the CPU's. It HAS NOT BEEN RUN: it needs
Intel's extension of Lava and a board, and is as good as that extension's models of the processes used here.
"""

import argparse
import contextlib
import functools
import importlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
MARK = "snncc-answer "  # Lava prints lines of its own; ours begin with this
SPIKING = ("cuba_lif", "atr_lif")  # kinds of neurons that send 0 or 1


class RunError(Exception):
    """It could not be done; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--validate", action="store_true", help="build and compile, do not run (the default)")
    parser.add_argument("--json", action="store_true", help="answer as one line of JSON")
    parser.add_argument("--input", type=Path, help="npz with x0, x1, ...: integers (N, *shape) or (T, N, *shape)")
    parser.add_argument("--output", type=Path, help="npz to write: counts0, ..., and spikes/NAME for what is recorded")
    parser.add_argument("--record", default="", help="names of neurons with commas between them, or all")
    parser.add_argument("--timesteps", type=int, help="time steps T of each sample; default: what was compiled for")
    parser.add_argument("--hardware", action="store_true", help="on Loihi 2 instead of the CPU (never tried)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # a folder for its files, and whose child it is
    options = parser.parse_args(arguments)
    if options.validate and options.input:
        parser.error("--validate runs nothing: leave out --input")
    if (options.input is None) != (options.output is None):
        parser.error("--input and --output go together")
    if options.input is None and (options.record or options.timesteps is not None or options.hardware):
        parser.error("--record, --timesteps and --hardware need --input")
    if options.timesteps is not None and options.timesteps < 1:
        parser.error("--timesteps must be above 0")
    if options.child:
        child(options)
    try:
        answer = supervise(sys.argv[1:] if arguments is None else arguments)
    except RunError as error:
        answer = {"valid": None, "message": str(error)}
    except KeyboardInterrupt:
        answer = {"valid": None, "message": "interrupted"}
    if options.json:
        print(json.dumps(answer))
    elif "output" in answer:
        print(f"wrote the output of {answer['samples']} samples to {answer['output']}: {answer['seconds']} s")
    elif answer["valid"] is None:
        print(f"error: {answer['message']}")
    else:
        print(f"{answer['version']}: {'valid' if answer['valid'] else 'NOT VALID: ' + answer['message']}")
    return {True: 0, False: 1, None: 2}[answer["valid"]]


# ------------------------------------------------------------------------------------------------ parent and child
# Lava runs each process of a network as a process of the system, and where one of them dies the others wait for it
# forever. So all of them run under a child of ours, in a session of their own that can be ended as a whole.


def supervise(arguments: list[str]) -> dict[str, Any]:
    """What the child answers; leaves no process behind. Raises RunError if it says nothing."""
    with tempfile.TemporaryDirectory(prefix="snncc-") as folder:
        environment = {"OMP_NUM_THREADS": "1", **os.environ}  # one thread for each of Lava's many processes
        line = [sys.executable, __file__, *arguments, "--child", folder, str(os.getpid())]
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                line, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                code = process.wait()
            finally:
                # Not SIGKILL: Python's own helper, which takes no SIGTERM, frees the shared memory and then ends.
                with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    for said in lines:  # the first cause counts
        if said.startswith(MARK):
            return dict(json.loads(said[len(MARK) :]))
    raise RunError(f"Lava {ending(code)}: {' '.join(lines[-1:])}".rstrip(": "))


def say(**answer: Any) -> None:
    """One line to the parent."""
    print(f"\n{MARK}{json.dumps(answer)}", flush=True)


def child(options: argparse.Namespace) -> None:
    """Does the work, says the answer and ends this process."""
    try:
        network, arrays = read_network()
        version = versions(network)
        if options.input:
            say(valid=True, **run(options, network, arrays), version=version)
        else:
            silence = [np.zeros((1, *spec["shape"]), np.int8) for spec in network["inputs"]]
            try:
                plan(network, arrays, network["timesteps"], silence, {})
            except RunError:
                raise
            except Exception as error:  # noqa: BLE001 (Lava says no in many ways)
                say(valid=False, message=sentence(error), version=version)
            else:
                say(valid=True, message="", version=version)
    except RunError as error:
        say(valid=None, message=str(error))
    except Exception as error:  # noqa: BLE001 (and fails in many)
        say(valid=None, message=sentence(error))
    os._exit(0)  # at the usual exit Python waits for all of Lava's processes, also for those that hang


def sentence(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def watch(done: threading.Event, process: Any, folder: str, parent: str) -> None:
    """Until `done` is set: ends this process as soon as one of Lava's ends, and all of them if the parent did."""
    while not done.wait(0.2):
        if os.getppid() != int(parent):
            shutil.rmtree(folder, ignore_errors=True)
            os.killpg(0, signal.SIGTERM)
        messages = getattr(process.runtime, "_messaging_infrastructure", None)
        for actor in list(messages.actors) if messages else ():
            try:
                code = actor.exitcode
            except ValueError:  # Lava itself has seen that it ended
                code = 0
            if code is not None and not done.is_set():
                time.sleep(0.5)  # until its own words are out
                say(valid=None, message=f"one of Lava's processes {ending(code)}")
                os._exit(2)


def ending(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"ended with status {code}"
    return f"was ended by {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"


# -------------------------------------------------------------------------------------------------------- the files


def read_network() -> tuple[dict[str, Any], dict[str, Any]]:
    """What snncc wrote: network.json and the arrays of network.npz. Raises RunError if they cannot be read."""
    try:
        network = json.loads((HERE / "network.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the network: {error}") from None
    if not isinstance(network, dict) or not {"snncc", "form", "populations"} <= set(network):
        raise RunError(f"{HERE / 'network.json'} was not written by snncc")
    if network.get("format") != 1:
        raise RunError(f"{HERE / 'network.json'} has format {network.get('format')}; this run.py reads 1")
    return network, read_arrays(HERE / "network.npz") if network["form"] == "process" else {}


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz. Raises RunError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise RunError(f"cannot read {path.name} as .npz: {sentence(error)}") from None


def read_input(path: Path, network: dict[str, Any], timesteps: int | None) -> tuple[list[Any], int, int]:
    """The arrays x0, x1, ..., the number of samples N, and T. Raises RunError for what does not fit the network."""
    found, inputs = read_arrays(path), network["inputs"]
    wanted = [f"x{i}" for i in range(len(inputs))]
    if set(found) != set(wanted):
        raise RunError(f"{path.name} has {', '.join(sorted(found)) or 'nothing'}; wanted: {', '.join(wanted)}")
    samples, lengths = set(), set()
    for name, spec in zip(wanted, inputs, strict=True):
        array, shape = found[name], tuple(spec["shape"])
        axes = array.ndim - len(shape)
        if array.dtype.kind not in "biu" or axes not in (1, 2) or array.shape[axes:] != shape or not array.size:
            form = ", ".join(map(str, shape))
            raise RunError(f"{name} is {array.dtype} {array.shape}, not integers (N, {form}) or (T, N, {form})")
        bits = spec["message_bits"]
        low, high = (0, 1) if bits == 0 else (-(2 ** min(bits, 31)), 2 ** min(bits, 31) - 1)
        if array.min() < low or array.max() > high:
            span = f"from {array.min()} to {array.max()}"
            raise RunError(f"{name} has values {span}; input `{spec['name']}` takes {low} to {high}")
        samples.add(array.shape[axes - 1])
        lengths |= {array.shape[0]} if axes == 2 else set()
    for what, differing in (("numbers of samples", samples), ("time steps", lengths)):
        if len(differing) > 1:
            raise RunError(f"the inputs differ in their {what}: {sorted(differing)}")
    steps = lengths.pop() if lengths else timesteps or network["timesteps"]
    if timesteps not in (None, steps):
        raise RunError(f"the inputs have {steps} time steps, --timesteps is {timesteps}")
    if steps > network["longest"]:
        raise RunError(
            f"{steps} time steps: potentials are proved to fit their 24 bits for {network['longest']}, compiled were "
            f"{network['timesteps']}; compile with timesteps={steps}"
        )
    return [found[name] for name in wanted], samples.pop(), steps


def versions(network: dict[str, Any]) -> str:
    """The Lava of this Python, without importing it. Raises RunError if there is none."""
    needed = {"lava-nc": "0.10.0", **({"lava-dl": "0.6.0"} if network["form"] == "netx" else {})}
    try:
        return ", ".join(f"{name} {metadata.version(name)}" for name in needed)
    except metadata.PackageNotFoundError as error:
        wanted = " and ".join(f"{name}=={version}" for name, version in needed.items())
        python = f"{sys.executable} (Python {platform.python_version()})"
        raise RunError(f"{error.name} is not installed for {python}; needed are Python 3.10 and {wanted}") from None


# ------------------------------------------------------------------------------------------------- the network in Lava


def run(options: argparse.Namespace, network: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """Runs all samples and writes the output. Raises RunError for what does not fit the network, or was not found."""
    inputs, samples, timesteps = read_input(options.input, network, options.timesteps)
    populations = {p["name"]: p for p in network["populations"]}
    recorded = list(populations) if options.record in ("all", "spikes") else options.record.split(",")
    recorded = [name for name in recorded if name]
    if unknown := [name for name in recorded if name not in populations]:
        raise RunError(f"there are no neurons {', '.join(unknown)} to record; there are: {', '.join(populations)}")
    if not options.output.absolute().parent.is_dir() or options.output.is_dir():
        raise RunError(f"cannot write {options.output}: it is a folder, or is to be in one that does not exist")
    if samples > 1 and options.hardware:
        raise RunError("one sample a run on hardware: only the CPU's models start the next one from the initial state")
    if samples > 1 and network["form"] == "netx" and any(p["kind"] != "cuba_lif" for p in populations.values()):
        raise RunError("one sample a run: netx starts only CUBA neurons from their initial state")

    read = dict.fromkeys([*network["outputs"], *recorded])
    rows, folder = {}, Path(options.child[0])
    for i, name in enumerate(read):
        p = populations[name]
        shape, kind = (samples * timesteps, size(p)), np.int8 if p["kind"] in SPIKING else np.int32
        rows[name] = np.lib.format.open_memmap(folder / f"{i}.npy", "w+", kind, shape)
    start = time.perf_counter()
    process, executable = plan(network, arrays, timesteps, inputs, rows, options.hardware)
    planned = time.perf_counter() - start
    steps = samples * timesteps + max(populations[name]["depth"] for name in read)
    execute(process, executable, steps, options)
    seconds = time.perf_counter() - start - planned

    output = {}
    for name, values in rows.items():
        spikes = values.reshape(samples, timesteps, *populations[name]["shape"])
        for i in (i for i, each in enumerate(network["outputs"]) if each == name):
            output[f"counts{i}"] = spikes.sum(axis=1, dtype=np.int64)
        if name in recorded:
            small = spikes.min() >= -128 and spikes.max() <= 127
            output[f"spikes/{name}"] = spikes.swapaxes(0, 1).astype(np.int8 if small else np.int32)
    with options.output.open("wb") as file:  # given a path, numpy would append .npz
        np.savez(file, **output)
    spent = {"seconds": round(seconds, 3), "build_seconds": round(planned, 3)}
    return {"output": str(options.output), "samples": samples, "timesteps": timesteps, **spent}


def execute(process: Any, executable: Any, steps: int, options: argparse.Namespace) -> None:
    """Runs the compiled network for so many time steps. If a process of it fails, that one says why and ours ends."""
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.runtime import runtime

    def reporting(target: Any, **arguments: Any) -> None:
        try:
            target(**arguments)
        except Exception as error:
            model = getattr(arguments["builder"], "proc_model", type(arguments["builder"]))
            say(valid=None, message=f"Lava's {model.__name__}: {sentence(error)}")
            raise

    runtime.target_fn = functools.partial(reporting, runtime.target_fn)
    done = threading.Event()
    threading.Thread(target=watch, args=(done, process, *options.child), daemon=True).start()
    process.create_runtime(executable=executable)
    process.run(condition=RunSteps(num_steps=steps))
    done.set()
    if options.hardware:
        process.stop()  # gives the board back; on the CPU our parent ends all processes


def plan(
    network: dict[str, Any],
    arrays: dict[str, Any],
    timesteps: int,
    inputs: list[Any],
    rows: dict[str, Any],
    hardware: bool = False,
) -> tuple[Any, Any]:
    """Builds and compiles the network: one of its processes (any stands for all) and Lava's executable.

    Args:
        inputs: the arrays to send.
        rows: the memory maps to write the spikes of populations to.
    """
    sys.path.insert(0, str(HERE / "processes"))
    sys.dont_write_bytecode = True  # nothing is to come into the folder
    try:
        from lava.magma.core.run_configs import Loihi2HwCfg, Loihi2SimCfg
        from lava.utils import loihi

        if hardware and not loihi.is_installed():
            raise RunError(f"{versions(network)} has no Loihi 2 backend: that is Intel's extension lava-loihi")
        ours = importlib.import_module("snncc_processes")
        build = build_netx if network["form"] == "netx" else build_processes
        ports, models = build(ours, network, arrays, timesteps, inputs)
    except ImportError as error:
        raise RunError(f"{versions(network)} cannot be used: {sentence(error)}") from None
    for population in network["populations"]:
        name = population["name"]
        if name in rows:
            sink = ours.Sink(path=rows[name].filename, size=size(population), start=population["depth"])
            swap(ports[name]).flatten().connect(sink.a_in)
            models[sink] = ours.SinkModel
    process = next(iter(models))
    if hardware:
        host = {each: model for each, model in models.items() if model in (ours.SourceModel, ours.SinkModel)}
        return process, process.compile(Loihi2HwCfg(exception_proc_model_map=host))
    # By process, not by class: so Lava need not search its files for models.
    return process, process.compile(Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map=models))


def size(population: dict[str, Any]) -> int:
    """The number of neurons."""
    return int(np.prod(population["shape"], dtype=np.int64))


def swap(port: Any) -> Any:
    """Maps (C, H, W) in Lava's order (W, H, C), or the other way round; what has no maps as it is."""
    return port.transpose((2, 1, 0)) if len(port.shape) == 3 else port


def build_processes(
    ours: Any, network: dict[str, Any], arrays: dict[str, Any], timesteps: int, inputs: list[Any]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """The process graph: what sends by name, as ports (size,), and every process with its model."""
    models: dict[Any, Any] = {}
    ports, neurons = {}, {}
    sources = []
    for spec, data in zip(network["inputs"], inputs, strict=True):
        flat = data.reshape(*data.shape[: data.ndim - len(spec["shape"])], -1)
        sources.append((spec["name"], size(spec), flat))
    if pulses := network.get("pulses"):
        messages = pulses["messages"]
        data = np.zeros((timesteps, 1, len(messages)), np.int32)
        for channel, (step, value) in enumerate(messages):
            data[step % timesteps, 0, channel] = value
        sources.append((pulses["name"], len(messages), data))
    for name, count, data in sources:
        source = ours.Source(data=data, shape=(count,), timesteps=timesteps)
        models[source], ports[name] = ours.SourceModel, source.s_out
    for population in network["populations"]:
        name = population["name"]
        neuron, model = make_neuron(ours, population, arrays)
        neuron.proc_params["window"] = (timesteps, population["depth"])
        models[neuron], neurons[name], ports[name] = model, neuron, neuron.s_out
    for connection in network["connections"]:
        source, destination = ports[connection["source"]], neurons[connection["destination"]].a_in
        if connection["kind"] == "direct":
            source.connect(destination)
            continue
        synapse, model = make_synapse(ours, connection, arrays)
        models[synapse] = model
        if connection["kind"] == "conv":  # Lava's maps are (W, H, C)
            swap(source.reshape(tuple(connection["input_shape"]))).connect(synapse.s_in)
            swap(synapse.a_out).flatten().connect(destination)
        else:
            source.connect(synapse.s_in)
            synapse.a_out.connect(destination)
    # Lava runs what is connected to the process that it is told to run, and nothing else: synapses without weight
    # connect the rest.
    main, *others = islands(network, list(ports))
    anchor = next(name for name in main if name in neurons)
    for other in others:
        port = ports[other[0]]
        values, rows, columns = (np.zeros(0, np.int32) for _ in range(3))
        names = {"source": other[0], "destination": anchor, "kind": "sparse", "message_bits": 32}
        shape = [neurons[anchor].a_in.shape[0], port.shape[0]]
        link = {**names, "shape": shape, "values": "values", "rows": "rows", "columns": "columns"}
        synapse, model = make_synapse(ours, link, {"values": values, "rows": rows, "columns": columns})
        models[synapse] = model
        port.connect(synapse.s_in)
        synapse.a_out.connect(neurons[anchor].a_in)
    return ports, models


def islands(network: dict[str, Any], names: list[str]) -> list[list[str]]:
    """The names of sources and populations in groups that no connection joins; the first has a population."""
    group = {name: [name] for name in names}
    for connection in network["connections"]:
        a, b = group[connection["source"]], group[connection["destination"]]
        if a is not b:
            a += b
            group.update(dict.fromkeys(b, a))
    found = list({id(each): each for each in group.values()}.values())
    populations = {population["name"] for population in network["populations"]}
    return sorted(found, key=populations.isdisjoint)


def make_neuron(ours: Any, population: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, Any]:
    """A population as a process of Lava, and its model. The units are those of Lava's fixed-point models: thresholds
    count the synaptic sum, biases and potentials 1/64 of it."""
    from lava.proc.atrlif.process import ATRLIF
    from lava.proc.lif.process import LIF
    from lava.proc.sdn.process import ActivationMode, Delta, Sigma, SigmaDelta

    kind, shape, p = population["kind"], (size(population),), population["parameters"]
    given = {name: arrays[key] for name, key in population.get("arrays", {}).items()}
    if kind in SPIKING:
        mantissa, exponent = split(given.get("bias", np.zeros(shape, np.int32)), population["name"])
        common = {
            "shape": shape,
            "v": 64 * np.asarray(given.get("v0", 0), np.int64),
            "bias_mant": mantissa,
            "bias_exp": exponent,
        }
        if kind == "cuba_lif":
            leaks = {"du": p["decay_u"] - 1, "dv": p["decay_v"]}  # Lava's adds the 1
            return LIF(vth=p["threshold"], **leaks, **common), ours.CubaLif
        # The current is forgotten at once (4095/4096, and Lava adds 1/4096), nothing else decays.
        still = {"delta_i": 4095 / 4096, "delta_v": 0, "delta_theta": 0, "delta_r": 0, "theta_step": 0}
        return ATRLIF(theta=p["theta"], theta_0=p["theta"], **still, **common), ours.AtrLif
    if kind == "delta":
        exponent = p["scale"].bit_length() - 1
        if p["scale"] != 1 << exponent:
            raise RunError(f"`{population['name']}` has the scale {p['scale']}, which is no power of two")
        return Delta(shape=shape, vth=p["threshold"], spike_exp=exponent), ours.Delta
    if kind == "sigma_delta":
        mode = {"relu": ActivationMode.RELU, "none": ActivationMode.UNIT}[p["activation"]]
        threshold = p["threshold"] / 2 ** p["shift"]  # Lava multiplies by this power
        return SigmaDelta(shape=shape, vth=threshold, act_mode=mode, state_exp=p["shift"]), ours.SigmaDelta
    if kind == "sigma":
        return Sigma(shape=shape), ours.Sigma
    raise RunError(f"`{population['name']}` is of the kind {kind}, which this run.py does not know")


def make_synapse(ours: Any, connection: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, Any]:
    """A connection as a process of Lava, and its model."""
    from lava.proc.conv.process import Conv
    from lava.proc.dense.models import PyDenseModelBitAcc
    from lava.proc.dense.process import Dense
    from lava.proc.sparse.models import PySparseModelBitAcc
    from lava.proc.sparse.process import DelaySparse, Sparse
    from lava.utils.weightutils import SignMode
    from scipy.sparse import csr_matrix

    kind, bits = connection["kind"], connection["message_bits"]
    exponent, delay = connection.get("exponent", 0), connection.get("delay", 0)
    if (delay and kind != "sparse") or (exponent and kind == "conv"):
        raise RunError(f"{describe(connection)} is of the kind {kind}, which has no delay, or no exponent")
    if kind == "conv":
        weights = arrays[connection["weight"]].astype(np.int32)
        check_weights(weights, connection)
        # (O, I, h, w) as (O, W, H, I), mirrored: Lava convolves where torch correlates.
        kernel = weights[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
        geometry = {key: tuple(connection[key][::-1]) for key in ("stride", "padding", "dilation", "input_shape")}
        conv = Conv(weight=kernel, groups=connection["groups"], num_message_bits=bits, **geometry)
        return conv, ours.Conv
    # Lava's synapses of mixed sign have even weights from -256 to 254, hence twice ours, and halve the sum.
    options = {"weight_exp": exponent - 1, "sign_mode": SignMode.MIXED, "num_message_bits": bits}
    if kind == "dense":
        weights = arrays[connection["weight"]].astype(np.int32)
        check_weights(weights, connection)
        return Dense(weights=2 * weights, **options), PyDenseModelBitAcc
    if kind != "sparse":
        raise RunError(f"{describe(connection)} is of the kind {kind}, which this run.py does not know")
    values, rows, columns = (arrays[connection[key]] for key in ("values", "rows", "columns"))
    weights = csr_matrix((values.astype(np.int32), (rows, columns)), shape=tuple(connection["shape"]))
    check_weights(weights.data, connection)
    if not delay:
        return Sparse(weights=2 * weights, **options), PySparseModelBitAcc
    later = np.full(weights.nnz, delay, np.int64)
    delays = csr_matrix((later, weights.indices, weights.indptr), shape=weights.shape)
    return DelaySparse(weights=2 * weights, delays=delays, **options), ours.DelaySparse


def check_weights(weights: Any, connection: dict[str, Any]) -> None:
    """Raises RunError for weights beyond 8 bits, which Lava would clip without a word."""
    if weights.size and not (weights.min() >= -128 and weights.max() <= 127):
        raise RunError(f"{describe(connection)} has weights from {weights.min()} to {weights.max()}, not within 8 bits")


def describe(connection: dict[str, Any]) -> str:
    """Which connection it is."""
    return f"the connection from `{connection['source']}` to `{connection['destination']}`"


def split(bias: Any, name: str) -> tuple[Any, Any]:
    """Biases as mantissas of 13 bits and exponents of 3, each the smallest that will do.

    Raises RunError for a bias that has no such form.
    """
    mantissa, exponent = bias.astype(np.int64), np.zeros(bias.shape, np.int64)
    for _ in range(8):
        wide = (mantissa < -4096) | (mantissa > 4095)
        odd = wide & ((mantissa % 2 != 0) | (exponent == 7))
        if odd.any():
            text = "which has no form as a mantissa of 13 bits and an exponent of 3"
            raise RunError(f"`{name}` has the bias {bias[odd][0]}, {text}")
        mantissa, exponent = np.where(wide, mantissa >> 1, mantissa), exponent + wide
    return mantissa.astype(np.int32), exponent.astype(np.int32)


def build_netx(
    ours: Any, network: dict[str, Any], arrays: dict[str, Any], timesteps: int, inputs: list[Any]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """The network that netx makes of network.net: what its layers send by name, as ports (W, H, C) or (size,), and our
    source with its model; netx's own processes have netx's."""
    from lava.lib.dl.netx.hdf5 import Network

    (spec,), (data,) = network["inputs"], inputs
    # netx counts the first step as 1 and adds 1 for each layer: so each starts afresh when a sample reaches it.
    resets = {"reset_interval": timesteps, "reset_offset": 1}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        net = Network(net_config=str(HERE / "network.net"), input_message_bits=spec["message_bits"], **resets)
    if "WARNING" in said.getvalue():  # that it clips weights
        raise ValueError(f"netx says: {said.getvalue()}")
    if len(net.layers) != len(network["populations"]):
        raise RunError(f"network.net has {len(net.layers)} layers, network.json {len(network['populations'])}")
    source = ours.Source(data=data, shape=tuple(spec["shape"]), timesteps=timesteps)
    swap(source.s_out).connect(net.inp)
    names = [population["name"] for population in network["populations"]]
    return {name: layer.out for name, layer in zip(names, net.layers, strict=True)}, {source: ours.SourceModel}


if __name__ == "__main__":
    sys.exit(main())

"""The command line. It answers at once: everything that takes long to import is imported by the command that needs it.

Exit status: 0 done; 1 no: a network that does not fit, a file that cannot be read, a vendor's tool that refuses;
2 wrong usage: a command, option, name or value that there is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snncc.compilation import Compilation
    from snncc.compiled import CompiledModel
    from snncc.ir import Diagnostic
    from snncc.ir.types import Array


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    parser, commands = _parser()
    given = list(sys.argv[1:] if arguments is None else map(str, arguments))
    name = next((word for word in given if not word.startswith("-")), None)
    if name is not None and name not in commands:
        parser.error(_no_such("command", name, list(commands)))
    options, strange = parser.parse_known_args(given)
    if strange:
        sub = commands.get(name or "", parser)
        sub.error(_no_such("option", strange[0], [word for action in sub._actions for word in action.option_strings]))
    if options.command is None:
        parser.print_help()
        return 2
    from snncc.ir.diagnostics import SnnccError, input_error

    try:
        return int(options.command(options))
    except SnnccError as raised:
        error = raised
    except BrokenPipeError:  # who read our output (`| head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as raised:  # a folder or file that cannot be written: what is read has messages of its own
        error = input_error("SNN075", str(raised))
    if options.json:
        _say({"ok": False, "diagnostics": [d.to_json() for d in error.diagnostics]})
    else:
        from snncc.console import console, print_diagnostics

        print_diagnostics(error.diagnostics, console(stderr=True))
    return _status(error.diagnostics)


def _status(found: Iterable[Diagnostic]) -> int:
    """The exit status for what was found."""
    from snncc.ir.diagnostics import errors

    codes = {d.code for d in errors(found)}
    return 0 if not codes else 2 if codes <= USAGE else 1


class _Version(argparse.Action):
    """Read only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"snncc {version('snncc')}")
        parser.exit()


def _no_such(what: str, word: str, known: Sequence[str]) -> str:
    """What wrong usage is told, with what was probably meant."""
    from difflib import get_close_matches

    near = get_close_matches(word.partition("=")[0], known, 1)
    return f"there is no {what} {word!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command by its name."""
    from snncc.sdk import ENVIRONMENTS

    parser = argparse.ArgumentParser(
        prog="snncc",
        description="Compiles trained PyTorch networks for neuromorphic hardware.",
        epilog="exit status: 0 done, 1 the compiler, a file or a vendor's tool says no, 2 wrong usage",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Any, summary: str, takes: str = "MODEL") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=summary, usage=f"snncc {name} [OPTIONS] {takes}".strip()
        )
        sub.set_defaults(command=run)
        sub.add_argument("--json", action="store_true", help="answer as JSON on standard output")
        return sub

    sub = command("compile", _compile, "Compile a network and write the folder for a target.")
    _model_arguments(sub)
    sub.add_argument("-o", "--output", type=Path, required=True, help="the folder to write")
    sub.add_argument("--no-explorer", action="store_true", help="without explorer.html, which holds your source's text")
    sub = command("check", _check, "Say everything that stands in the way of a target; write nothing.")
    _model_arguments(sub)
    sub = command("targets", _targets, "List the targets, or one target's limits.", "[TARGET]")
    sub.add_argument("target", nargs="?", help="a target, for its limits")
    sub = command("simulate", _simulate, "Run a written folder in the target's arithmetic.", "FOLDER --input FILE")
    sub.add_argument("folder", type=Path, help="what `snncc compile` wrote")
    sub.add_argument("--input", type=Path, required=True, help=".npy or .npz, (N, *shape)")
    sub.add_argument("--labels", type=Path, help=".npy or .npz with classes (N,): prints the accuracy")
    sub.add_argument("--timesteps", type=int, help="default: what the network was compiled for")
    sub.add_argument("--order", help="event by event, on chips that work so: depth-first or breadth-first")
    sub.add_argument("-o", "--output", type=Path, help=".npz to write: `output` (N, classes), and spike counts")
    words = "Validate a written folder with the vendor's runtime or, with --input, run it there or on a board."
    sub = command("run", _run, words, "FOLDER")
    sub.add_argument("folder", type=Path, help="what `snncc compile` wrote")
    sub.add_argument("--input", type=Path, help=".npy or .npz, (N, *shape): run")
    sub.add_argument("--timesteps", type=int, help="default: what the network was compiled for")
    sub.add_argument("--timestep-us", type=int, help="length of a time step on the board (1000)")
    sub.add_argument("--device", help="the board, in the vendor's words")
    sub.add_argument("--executor", help="of Lynxi's: lynpy or onnxruntime")
    sub.add_argument("--model", type=Path, help="of Lynxi's: the folder that its compiler wrote")
    sub.add_argument("--record", help="keep the spikes of these neurons (names with commas between), or `spikes`: all")
    sub.add_argument(
        "--hardware", action="store_true", default=None, help="not the vendor's simulation, where it has one"
    )
    sub.add_argument(
        "-o", "--output", type=Path, help=".npz to write: `output` (N, classes), `spikes/NAME` (T, N, ...)"
    )
    sub.add_argument("--python", type=Path, help=f"an interpreter with the SDK ({', '.join(ENVIRONMENTS)})")
    sub = command("dump", _dump, "Print the stages of a compile, or of a written folder, as MLIR.")
    _model_arguments(sub, folder=True)
    sub.add_argument("--after", metavar="PASS", help="the graph after this pass only (default: the last)")
    sub.add_argument("--print-after-all", action="store_true", help="the graph after every pass")
    sub.add_argument("--diff", action="store_true", help="what each pass changed, not the whole graph")
    sub.add_argument("--only-changed", action="store_true", help="skip passes that changed nothing")
    sub.add_argument("--no-loc", action="store_true", help="without source locations")
    sub.add_argument(
        "--format", choices=("mlir", "dot", "model-explorer"), default="mlir", help="what is printed (mlir)"
    )
    sub = command("explore", _explore, "Show a compile, or a written folder, as a page from source to chip.")
    _model_arguments(sub, folder=True)
    sub.add_argument("-o", "--output", type=Path, help="the page to write; default: NETWORK-TARGET.html")
    sub.add_argument(
        "--watch", action="store_true", help="serve the page to this machine, and compile anew when anything changes"
    )
    sub.add_argument("--port", type=int, default=0, help="of --watch; default: any that is free")
    sub.add_argument("--no-open", action="store_true", help="do not open the page in a browser")
    return parser, commands.choices


def _model_arguments(sub: argparse.ArgumentParser, folder: bool = False) -> None:
    other = ", or a written folder" if folder else ""
    sub.add_argument("model", help=f"package.module:name or file.py:name, an nn.Module or what makes one{other}")
    sub.add_argument("--target", default="reference", help="see `snncc targets` (reference)")
    sub.add_argument("--weights", type=Path, help=".safetensors with the model's state_dict")
    sub.add_argument("--input-shape", metavar="C,H,W", help="without the batch axis; default: the calibration data's")
    sub.add_argument("--calibration", type=Path, help=".npy or .npz of typical inputs (N, *shape)")
    sub.add_argument("--timesteps", type=int, help="T that the result is meant for (32)")
    sub.add_argument("--bias", help="error, warn (default), keep or strip")
    sub.add_argument("--encoding", help="constant, rate, bernoulli or spikes; default: the target's")
    sub.add_argument("--reset", help="subtract (default) or zero")
    sub.add_argument("--threshold", help="mse (default), percentile or max")
    sub.add_argument("--percentile", type=float, help="of --threshold percentile (99.9)")
    sub.add_argument("--per", help="thresholds per channel (default) or layer")
    sub.add_argument("--v0", type=float, help="initial potential in thresholds; default: the target's")
    sub.add_argument("--neuron", help="if (default) or sigma-delta, where a target has both")
    sub.add_argument("--form", help="of the emitted program, where a target has several; default: what fits")
    sub.add_argument("--weight-bits", type=int, help="width of weights; default: the target's")
    sub.add_argument("--seed", type=int, help="of --encoding bernoulli (0)")
    sub.add_argument("--monitor", type=_names, help="layers whose spikes the chip reports, names with commas between")
    sub.add_argument("--cores", type=_numbers, help="cores that may be taken, numbers with commas between")
    sub.add_argument("--sensor", help="the chip's pixels as the input: auto, or words such as `pooling=2 mirror-x`")
    sub.add_argument("--batch", type=int, help="samples that the emitted program takes at once, where it can")
    sub.add_argument(
        "--no-selfcheck",
        dest="selfcheck",
        action="store_false",
        default=None,
        help="do not run the result on calibration samples to see what it loses",
    )
    sub.add_argument("--readout", action="store_true", default=None, help="outputs go to the chip's readout block")
    sub.add_argument(
        "--oversize",
        action="store_true",
        default=None,
        help="write more than the hardware holds, with a warning",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from None


# What is wrong is how it was called: options, names and values.
USAGE = {
    "SNN070", "SNN078", "SNN079", "SNN082", "SNN083", "SNN084", "SNN085", "SNN086", "SNN087", "SNN089", "SNN100",
}  # fmt: skip
OPTIONS = (
    "timesteps", "bias", "encoding", "reset", "threshold", "percentile", "per", "v0", "neuron", "form",
    "weight_bits", "seed", "monitor", "cores", "sensor", "readout", "batch", "oversize", "selfcheck",
)  # fmt: skip


# --- commands -------------------------------------------------------------------------------------------------------


def _compile(options: argparse.Namespace) -> int:
    from snncc.console import console, core_table, print_diagnostics, report_table

    compiled = _compiled(options)
    found = (*options.notes, *compiled.diagnostics)
    folder = compiled.save(options.output, explorer=not options.no_explorer)
    if options.json:
        said = [d.to_json() for d in found]
        _say({"ok": True, "folder": str(folder), "diagnostics": said, "report": compiled.report})
        return 0
    print_diagnostics(found, console(stderr=True))
    out = console()
    out.print()
    out.print(report_table(compiled.report, out.width))
    cores = core_table(compiled, out.width)
    if cores is not None:
        out.print()
        out.print(cores)
    out.print(f"written: {folder}", markup=False)
    return 0


def _check(options: argparse.Namespace) -> int:
    from snncc.api import check
    from snncc.console import console, fits_table, print_diagnostics
    from snncc.targets import find

    model, arguments = _model(options)
    found = check(model, options.target, **arguments)
    failed = _status(found)
    found[:0] = () if failed else options.notes
    if options.json:
        _say({"ok": not failed, "diagnostics": [d.to_json() for d in found], "layers": found.layers})
        return failed
    if found.layers:  # before the errors, which are to be seen
        out = console()
        out.print(fits_table(found.layers, find(options.target), out.width))
        out.print()
        sys.stdout.flush()
    print_diagnostics(found, console(stderr=True))
    if not failed:
        more = "" if options.calibration else " (as far as that can be told without calibration data)"
        print(f"nothing stands in the way of {options.target}{more}")
    return failed


def _targets(options: argparse.Namespace) -> int:
    from snncc.targets import all_targets, find

    chosen = [find(options.target)] if options.target else list(all_targets().values())
    if options.json:
        _say([{"name": t.name, "summary": t.summary, "limits": t.limits()} for t in chosen])
        return 0
    from snncc.console import console, limits_view, targets_table

    console().print(limits_view(chosen[0]) if options.target else targets_table(chosen))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from snncc.api import shown
    from snncc.compiled import load

    compiled = load(options.folder)
    x = _array(options.input)
    labels = _array(options.labels) if options.labels else None
    n = x.shape[x.ndim > len(compiled.graph.inputs[0].type.shape) + 1] if x.ndim else 0  # (T, N, ...) of spikes
    if labels is not None and labels.shape != (n,):
        from snncc.ir.diagnostics import input_error

        raise input_error("SNN074", f"labels must have shape ({n},), one for each sample, got {labels.shape}")
    record = "spikes" if options.order else None  # for the comparison
    done = compiled.simulate(x, options.timesteps, record=record, progress=shown(None), order=options.order)
    answer: dict[str, Any] = {
        "samples": len(done.output),
        "timesteps": done.timesteps,
        "rates": done.rates,
        "synops_per_sample": {name: float(v.mean()) for name, v in done.synops.items()},
    }
    if labels is not None:
        answer["accuracy"] = float((done.output.argmax(axis=1) == labels).mean())
    if options.order:
        answer["step_by_step"] = apart = compiled.compare_events(x, options.timesteps, options.order, events=done)
        if not options.json:
            from snncc.console import apart_table, console, power_table

            console().print(apart_table(apart), power_table(apart["power"]))
            del answer["step_by_step"]
    return _output(options, answer, done.output)


def _run(options: argparse.Namespace) -> int:
    from snncc.compiled import load

    compiled = load(options.folder)
    if options.input is None:
        answer = compiled.validate(options.python)
        if options.json:
            _say({"ok": answer.valid, "message": answer.message, "version": answer.version})
        else:
            said = "valid" if answer.valid else f"NOT VALID: {answer.message}"
            print(f"{options.folder}: {said} ({answer.version})")
        return int(not answer.valid)
    names = ("device", "timestep_us", "record", "hardware", "executor", "model")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    done = compiled.run(_array(options.input), options.timesteps, python=options.python, **asked)
    found: dict[str, Any] = {"samples": len(done.output), "timesteps": done.timesteps}
    return _output(options, found, done.output, {f"spikes/{name}": s for name, s in done.spikes.items()})


def _output(
    options: argparse.Namespace, answer: dict[str, Any], output: Array, more: dict[str, Array] | None = None
) -> int:
    if options.output:
        import numpy as np

        np.savez(options.output, output=output, **(more or {}))  # type: ignore[arg-type]
        answer["written"] = str(options.output)
    if options.json:
        _say({"ok": True, **answer, "classes": output.argmax(axis=1).tolist()})
        return 0
    if "rates" in answer:
        from snncc.console import console, simulation_table

        console().print(simulation_table(answer.pop("rates"), answer.pop("synops_per_sample")))
    for name, value in answer.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    return 0


def _dump(options: argparse.Namespace) -> int:
    from snncc.compiled import load
    from snncc.console import console, mlir_text
    from snncc.explore import differences, graphviz, model_explorer
    from snncc.ir.diagnostics import input_error, unknown
    from snncc.ir.text import print_banner, print_graph

    records = (load(Path(options.model)) if Path(options.model).is_dir() else _compiled(options)).records
    chosen = list(range(len(records)))
    if options.after:
        names = [r.label.partition("{")[0] for r in records]
        if options.after not in names:
            raise unknown("SNN085", "pass", options.after, dict.fromkeys(names))
        chosen = [i for i in chosen if names[i] == options.after][-1:]
    elif not options.print_after_all and not options.diff:
        chosen = chosen[-1:]
    locations = not options.no_loc
    if options.format != "mlir" and (options.json or options.diff or options.no_loc):
        raise input_error("SNN083", f"--format {options.format} takes no --json, --diff or --no-loc")
    if options.format == "model-explorer":
        if options.after:
            raise input_error("SNN083", "--format model-explorer is of every stage", "leave out --after")
        _say(model_explorer(records))
        return 0
    chosen = [i for i in chosen if records[i].changed or not options.only_changed]
    diffs = {
        i: differences(records[i - 1].graph, records[i].graph, locations) if i else [] for i in chosen if options.diff
    }
    if options.json:
        _say(
            [
                {"label": records[i].label, "text": print_graph(records[i].graph, locations)}
                | ({"diff": diffs[i]} if i in diffs else {})
                for i in chosen
            ]
        )
        return 0
    if options.format == "dot":
        print("".join(graphviz(records[i].graph) for i in chosen), end="")
        return 0
    out = console()
    for i in chosen:
        text = print_graph(records[i].graph, locations, banner=records[i].label)
        if i in diffs and i:  # the first stage has nothing before it
            text = "\n".join([print_banner(records[i].label), *(diffs[i] or ["// (no change)"]), ""])
        out.print(mlir_text(text), soft_wrap=True)
    return 0


def _explore(options: argparse.Namespace) -> int:
    if options.watch:
        return _watch(options)
    import webbrowser

    from snncc.compiled import load
    from snncc.console import console, print_diagnostics
    from snncc.ir import CompileError

    done: Compilation
    ok = True
    try:
        done = load(Path(options.model)) if Path(options.model).is_dir() else _compiled(options)
    except CompileError as error:
        done, ok = error.compilation, False
    page = done.explore(options.output or _page_name(done))
    if options.json:
        _say({"ok": ok, "page": str(page), "diagnostics": [d.to_json() for d in done.diagnostics]})
        return int(not ok)
    print_diagnostics(done.diagnostics, console(stderr=True))
    console().print(f"written: {page}", markup=False)
    if _opens(options):
        webbrowser.open(page.absolute().as_uri())
    return int(not ok)


def _watch(options: argparse.Namespace) -> int:
    """Serve the page and compile at every change, until Ctrl-C or SIGTERM."""
    import signal
    import threading
    import time
    import webbrowser
    from contextlib import suppress
    from functools import partial

    from rich.text import Text

    from snncc.console import console
    from snncc.ir.diagnostics import input_error
    from snncc.live import Live

    if options.output is not None:
        raise input_error("SNN083", "-o means nothing with --watch, which writes no page", "leave one of them out")
    _input_shape(options)  # what is wrong here, no change of a file can mend
    read = [path for path in (options.calibration, options.weights) if path is not None]
    asked = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    out, said = console(), 0

    def watched(live: Live) -> None:
        nonlocal said
        if len(live.files) != said:
            said = len(live.files)
            out.print(f"watching {said} file{'s' if said > 1 else ''}; Ctrl-C ends")

    def after(live: Live) -> None:
        done = live.summary()
        if options.json:
            print(json.dumps(done), flush=True)
            return
        n, style = done["errors"], "bold green" if done["ok"] else "bold red"
        words = "ok" if done["ok"] else f"{n} error{'s' if n > 1 else ''}"
        out.print(Text.assemble((time.strftime("%H:%M:%S  "), "dim"), (words, style), f" in {done['seconds']:.2f} s"))
        watched(live)

    live = Live(
        partial(_rebuilt, options), _model_file(options.model), options.target, asked,
        files=read, port=options.port, after=after, quiet=options.json,
    )  # fmt: skip

    def end(*_: Any) -> None:
        live.stop()
        if live.starting:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if options.json:
            print(json.dumps({"url": live.url}), flush=True)
        else:
            out.print(live.url, soft_wrap=True)
            watched(live)
        if _opens(options):  # beside this: a browser of the terminal ends only with the person
            threading.Thread(target=webbrowser.open, args=(live.url,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            live.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _rebuilt(options: argparse.Namespace, target: str, asked: Mapping[str, Any]) -> CompiledModel:
    """The model, compiled for another target and with other options than those given."""
    plain = dict.fromkeys(OPTIONS)
    return _compiled(argparse.Namespace(**{**vars(options), **plain, **asked, "target": target}), progress=False)


def _page_name(done: Compilation) -> Path:
    """A file for a compile's page in the current folder, whatever the network's class is called."""
    import re

    network = done.records[0].graph.name[:100] if done.records else "network"
    return Path(re.sub(r"[^\w.-]+", "_", f"{network}-{done.target.name}").lstrip(".") + ".html")


def _opens(options: argparse.Namespace) -> bool:
    """Whether to open the page in a browser: where a person reads what this prints."""
    return not options.no_open and not options.json and sys.stdout.isatty()


# --- what users name --------------------------------------------------------------------------------------------------


def _compiled(options: argparse.Namespace, progress: bool | None = None) -> CompiledModel:
    from snncc.api import compile

    model, arguments = _model(options)
    return compile(model, options.target, progress=progress, **arguments)


def _model(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model, and the arguments of compile and check. What there is to say of it is in ``options.notes``."""
    import numpy as np

    from snncc.ir import Diagnostic, Severity

    loaded = list[Any]()
    model = _import(options.model, loaded)
    options.notes = ()
    if options.weights is not None:
        _load_weights(model, options.weights)
    elif not loaded:
        text = f"the weights are those that {options.model} was made with: no --weights were given, and it loads none"
        options.notes = (Diagnostic("SNN102", text, severity=Severity.NOTE, hint="pass --weights FILE.safetensors"),)
    arguments: dict[str, Any] = {n: getattr(options, n) for n in OPTIONS if getattr(options, n) is not None}
    if options.calibration is not None:
        arguments["calibration"] = _array(options.calibration)
    shape = _input_shape(options)
    if shape is not None:
        # Random, not zero: the traced graph is held against the model on it.
        arguments["example_input"] = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    return model, arguments


def _input_shape(options: argparse.Namespace) -> tuple[int, ...] | None:
    """What ``--input-shape`` says; without it, there must be calibration data."""
    from snncc.ir.diagnostics import input_error, wrong_value

    if options.input_shape is None:
        if options.calibration is None:
            raise input_error("SNN100", "neither --input-shape nor --calibration was given")
        return None
    try:
        shape = tuple(int(n) for n in options.input_shape.split(","))
    except ValueError:
        raise wrong_value("--input-shape", options.input_shape, "is no shape", hint="write it as 1,28,28") from None
    if min(shape) < 1:
        raise wrong_value("--input-shape", options.input_shape, "has an empty axis")
    return shape


def _place_and_name(spec: str) -> tuple[str, str]:
    """The parts of ``package.module:name`` or ``file.py:name``."""
    from snncc.ir.diagnostics import wrong_value

    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise wrong_value("model", spec, "names no model", hint="write it as package.module:name or file.py:name")
    return place, name


def _model_file(spec: str) -> Path:
    """The file of ``package.module:name`` or ``file.py:name``, found without running any of the user's code."""
    import importlib.util
    from importlib.machinery import PathFinder

    from snncc.ir.diagnostics import input_error

    if Path(spec).is_dir():
        raise input_error("SNN083", f"{spec} is a written folder, which nothing is compiled from", "leave out --watch")
    place, _ = _place_and_name(spec)
    file: str | None = None
    if place.endswith(".py"):
        file = place if Path(place).is_file() else None
    else:
        sys.path.insert(0, str(Path.cwd()))
        parts = place.split(".")
        try:
            found = importlib.util.find_spec(parts[0])
        except ValueError:  # no name
            found = None
        for i in range(1, len(parts)):
            within = found.submodule_search_locations if found else None
            found = PathFinder.find_spec(".".join(parts[: i + 1]), within) if within is not None else None
        file = found.origin if found and found.has_location else None
    if file is None:
        raise input_error("SNN071", f"there is no {'file' if place.endswith('.py') else 'module'} {place}")
    return Path(file).absolute()


def _import(spec: str, loaded: list[Any] | None = None) -> Any:
    """The nn.Module that ``package.module:name`` or ``file.py:name`` names or makes. What it loads weights into on its
    way is put into ``loaded``; so is a module that is named itself, whose weights are its own."""
    import importlib
    import importlib.util

    import torch

    from snncc.ir.diagnostics import input_error, unknown

    loads = [] if loaded is None else loaded
    place, name = _place_and_name(spec)
    if place.endswith(".py"):
        path = Path(place).absolute()
        if not path.is_file():
            raise input_error("SNN071", f"there is no file {place}")
        # A name of its own: the user's types.py must not become everyone's `types`.
        title = path.stem if path.stem not in sys.modules else f"{path.stem} of snncc"
        found = importlib.util.spec_from_file_location(title, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[title] = module
        sys.path.insert(0, str(path.parent))
        _users(found.loader.exec_module, module, what=place)
    else:
        sys.path.insert(0, str(Path.cwd()))
        module = _users(importlib.import_module, place, what=place)
    if not hasattr(module, name):
        raise unknown("SNN087", "model", name, _models(module), f"in {place}")
    value = getattr(module, name)
    if isinstance(value, torch.nn.Module) or not callable(value):
        model = value
        loads.append(value)
    else:
        with _loads(loads):
            model = _users(value, what=spec)
    if not isinstance(model, torch.nn.Module):
        raise input_error("SNN089", f"{spec} is a {type(model).__name__}, not a torch.nn.Module")
    return model


@contextmanager
def _loads(loaded: list[Any]) -> Iterator[None]:
    """Notes the modules whose weights are loaded meanwhile."""
    import torch

    load = torch.nn.Module.load_state_dict

    def noted(module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        loaded.append(module)
        return load(module, *arguments, **options)

    torch.nn.Module.load_state_dict = noted  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _models(module: Any) -> list[str]:
    """What a module itself defines that may be, or make, a network."""
    import torch

    own = {n: v for n, v in vars(module).items() if not n.startswith("_")}
    made = {n for n, v in own.items() if callable(v) and getattr(v, "__module__", "") == module.__name__}
    return [name for name, value in own.items() if name in made or isinstance(value, torch.nn.Module)]


def _users(function: Any, *arguments: Any, what: str) -> Any:
    """Call the user's code and remember its lines that make modules; what it raises becomes a diagnostic with the line
    that did."""
    import traceback

    from snncc.frontend import constructed
    from snncc.ir import Diagnostic, InputError, Loc, Source

    try:
        with constructed():
            return function(*arguments)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # without this function's
        ours = [f for f in frames if not f.filename.startswith("<frozen importlib")]
        places = [(f.filename, f.lineno or 0) for f in ours]
        if isinstance(error, SyntaxError) and error.filename:
            places.append((error.filename, error.lineno or 0))
        # The user's own frames; of what they called, only the error. Deepest first, as that is where it happened.
        users = [p for p in places if "site-packages" not in p[0] and not p[0].startswith(sys.base_prefix)]
        sources = tuple(Source("", *p) for p in dict.fromkeys(reversed(users[-3:])))
        reason = error.msg if isinstance(error, SyntaxError) else error
        message = f"{what} cannot be used: {type(error).__name__}: {reason}".rstrip(": ")
        raise InputError([Diagnostic("SNN071", message, Loc(sources))]) from error


def _load_weights(model: Any, path: Path) -> None:
    """A state_dict out of a safetensors file. Pickled files are refused: to read one is to run it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from snncc.ir.diagnostics import input_error

    if path.suffix != ".safetensors":
        raise input_error(
            "SNN071",
            f"weights {path}: only .safetensors are read",
            "convert once, where you trust the file: safetensors.torch.save_file(model.state_dict(), 'w.safetensors')",
        )
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise input_error("SNN071", f"weights {path} cannot be read: {error}") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = str(error).expandtabs(2)
        raise input_error("SNN071", f"weights {path} do not fit the model: {said}") from None


def _array(path: Path) -> Array:
    """A .npy file, or the only array (or the one called ``x``) of a .npz."""
    import zipfile
    import zlib

    import numpy as np

    from snncc.ir.diagnostics import input_error

    try:
        data = np.load(path, allow_pickle=False)
        if isinstance(data, np.lib.npyio.NpzFile):
            with data:
                name = "x" if "x" in data.files else data.files[0] if len(data.files) == 1 else None
                if name is None:
                    names = ", ".join(data.files) or "none"
                    raise input_error("SNN071", f"{path} has the arrays {names}", "call the one to read `x`")
                return np.asarray(data[name])
        return np.asarray(data)
    except OSError as error:
        raise input_error("SNN071", f"{path} cannot be read: {error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise input_error(
            "SNN071",
            f"{path} is no .npy or .npz file of numbers: {error}",
            "numpy.save(path, array) writes one; pickled objects are not read, as to read them is to run them",
        ) from None


def _say(data: Any) -> None:
    print(json.dumps(data, indent=1))


if __name__ == "__main__":
    sys.exit(main())

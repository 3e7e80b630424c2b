"""Runs the network beside this file: on a Lynxi board through lynpy, or its ONNX step in onnxruntime.

    python run.py --input input.npz --output output.npz [--timesteps 32] [--executor auto] [--model lynxi_out/Net_0]

The input file holds `x0`, `x1` and so on, whole numbers: (T, N, *shape) of spikes, or (N, *shape) of an input that is
the same in every step. The output file gets

- `scores0` and so on: of each output the mean over time of its real value (N, *shape);
- `counts0` and so on: its sum over time, spikes, or of an output without neurons the compiler's integers;
- `spikes/NAME`: (T, N, *shape) of neurons that were monitored when the network was compiled.

Stands alone: it needs numpy and network.json, network.npz of this folder, and

- `--executor lynpy`: lynpy and pylynchipsdk, Lynxi's runtime, and --model, the folder that compile_lynxi.py made;
- `--executor onnxruntime`: onnxruntime and step.onnx of this folder. It computes in float32; the chip in fp16.

Exit status: 0 done, 2 could not be done.

Honest limits: Lynxi's runtime is on no registry, and THIS HAS NEVER BEEN RUN ON A BOARD. The calls are those of its
published users: lynpy of LynxiTechnology/Lynxi-model-zoo (common/libs/lynpy.py), and for the states, which are to be
forgotten before a sample's first step, LynxiTech/BIDL (lynadapter/lyn_sdk_model.py).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional
from zipfile import BadZipFile

FOLDER = Path(__file__).resolve().parent
NO_FILE = (OSError, EOFError, ValueError, KeyError, BadZipFile)  # what reading one that is no JSON or npz raises


class RunError(Exception):
    """It could not be done; the message says why."""


def main(arguments: Optional[List[str]] = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", help="npz with `x0`, ...: whole numbers")
    parser.add_argument("--output", help="npz to write: `counts0`, ...")
    parser.add_argument("--timesteps", type=int, help="how many; by default what it was compiled for")
    parser.add_argument("--executor", choices=("auto", "lynpy", "onnxruntime"), default="auto")
    parser.add_argument("--model", help="the folder Net_0 that lyngor wrote")
    parser.add_argument("--device", type=int, default=0, help="the number of the Lynxi device")
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    parser.add_argument("--validate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.validate:
            raise RunError("Lynxi publishes no validator: its compiler is it, which compile_lynxi.py calls")
        if not options.input or not options.output:
            raise RunError("--input and --output are needed")
        executor = run(options)
    except RunError as error:
        print(json.dumps({"message": str(error)}) if options.json else f"error: {error}")
        return 2
    print(json.dumps({"executor": executor}) if options.json else f"done by {executor}: {options.output}")
    return 0


def run(options: argparse.Namespace) -> str:
    """Read, run, write. The executor's name."""
    import numpy as np

    try:
        network = json.loads((FOLDER / "network.json").read_text(encoding="utf-8"))
        arrays = read_npz(str(FOLDER / "network.npz"))
        if not isinstance(network, dict) or network.get("format") != 1:
            raise ValueError("network.json has not format 1")
    except NO_FILE as error:
        raise RunError(f"the network cannot be read: {error}") from None
    steps = network["timesteps"] if options.timesteps is None else options.timesteps
    if steps < 1:
        raise RunError("--timesteps must be at least 1")
    xs = read_inputs(options.input, network, steps)
    executor: str = options.executor
    if executor == "auto":
        executor = "lynpy" if options.model else "onnxruntime"
    try:
        outputs = EXECUTORS[executor](network, xs, steps, options)
    except ImportError as error:
        raise RunError(f"{executor} is not in this Python: {error}") from None
    except AssertionError as error:  # how lynpy says everything
        raise RunError(f"{executor} failed: {str(error) or 'an assertion of its own'}") from error
    results = {}
    for i, (entry, y) in enumerate(zip(network["outputs"], outputs)):
        scale, worth = (per_channel(entry, what, arrays) for what in ("scale", "worth"))
        integers = y.reshape(*y.shape[:2], *entry["shape"]).astype(np.float64) / scale
        if i < network["scores"]:
            results[f"counts{i}"] = integers.sum(axis=0)
            results[f"scores{i}"] = integers.mean(axis=0) * scale * worth
        else:
            results["spikes/{}".format(entry["value"])] = integers.round().astype(np.int32)
    try:
        np.savez(options.output, **results)
    except OSError as error:
        raise RunError(f"the output cannot be written: {error}") from None
    return executor


def per_channel(entry: Dict[str, Any], what: str, arrays: Dict[str, Any]) -> Any:
    """A number of an output; or one for each channel, such that it broadcasts over (T, N, *shape)."""
    value = entry[what]
    if not isinstance(value, str):
        return value
    return arrays[value].astype("float64").reshape(-1, *[1] * (len(entry["shape"]) - 1))


def read_npz(path: str) -> Dict[str, Any]:
    """All arrays of an npz file."""
    import numpy as np

    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        raise ValueError(f"{path} holds one array, it is no npz")
    with found as file:
        return {name: file[name] for name in file.files}


def read_inputs(path: str, network: Dict[str, Any], steps: int) -> List[Any]:
    """The inputs in the order of the network's, float32: (T, N, *shape) each, or (1, N, *shape) of a constant one."""
    import numpy as np

    xs = []
    try:
        arrays = read_npz(path)
        for i, entry in enumerate(network["inputs"]):
            if f"x{i}" not in arrays:
                raise RunError(f"the input cannot be read: it has no x{i}")
            x = arrays[f"x{i}"]
            x = x[None] if entry["constant"] else x
            if x.shape[2:] != tuple(entry["shape"]) or (not entry["constant"] and len(x) != steps):
                shape = ("N",) if entry["constant"] else (str(steps), "N")
                want = ", ".join(shape + tuple(str(n) for n in entry["shape"]))
                raise RunError("x{} must have shape ({}), it has {}".format(i, want, arrays[f"x{i}"].shape))
            xs.append(x.astype(np.float32))
    except NO_FILE as error:
        raise RunError(f"the input cannot be read: {error}") from None
    if len({x.shape[1] for x in xs}) != 1 or not xs[0].shape[1]:
        raise RunError("the inputs do not hold the same number of samples")
    return xs


def by_onnxruntime(network: Dict[str, Any], xs: List[Any], steps: int, options: argparse.Namespace) -> List[Any]:
    """Outputs (T, N, *shape) of the ONNX step."""
    import numpy as np
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(FOLDER / "step.onnx"), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (classes of its own)
        raise RunError(f"step.onnx cannot be read: {error}") from None
    n = xs[0].shape[1]
    names = [output.name for output in session.get_outputs()]
    feeds = {
        given.name: np.zeros((n, *given.shape[1:]), np.float32)
        for given in session.get_inputs()
        if given.name.endswith(".state")
    }
    rows: List[List[Any]] = [[] for _ in network["outputs"]]
    for t in range(steps):
        for entry, x in zip(network["inputs"], xs):
            feeds[entry["name"]] = x[t if len(x) > 1 else 0]
        results = dict(zip(names, session.run(None, feeds)))
        for row, entry in zip(rows, network["outputs"]):
            row.append(results[entry["value"] + ".output"])
        feeds.update({name[: -len(".next")] + ".state": y for name, y in results.items() if name.endswith(".next")})
    return [np.stack(row) for row in rows]


def by_lynpy(network: Dict[str, Any], xs: List[Any], steps: int, options: argparse.Namespace) -> List[Any]:
    """Outputs (T, N, *shape) of the compiled network on a Lynxi device."""
    import lynpy
    import numpy as np
    import pylynchipsdk as sdk

    if not options.model:
        raise RunError("--model is needed, the folder Net_0 that compile_lynxi.py made")
    unrolled = network["form"] == "unrolled"
    if unrolled and steps != network["timesteps"]:
        raise RunError("the network is unrolled to {} time steps, and takes no others".format(network["timesteps"]))
    model = lynpy.Model(dev_id=options.device, path=options.model)
    batch, n = network["batch"], xs[0].shape[1]
    rows: List[List[Any]] = [[] for _ in network["outputs"]]
    for at in range(0, n, batch):
        chosen = [min(i, n - 1) for i in range(at, at + batch)]  # the last batch is filled up
        samples = [x[:, chosen].astype(np.float16) for x in xs]
        if unrolled:
            found = step(model, [x.reshape(-1, *x.shape[2:]) for x in samples], whole=True)
            found = [y.reshape(steps, batch, *e["shape"]) for y, e in zip(found, network["outputs"])]
        else:
            sdk.lyn_set_current_context(model.context)
            if sdk.lyn_model_reset_async(model.stream, model.model) != 0:
                raise RunError("Lynxi's runtime could not reset the states")
            answers = [step(model, [x[t if len(x) > 1 else 0] for x in samples]) for t in range(steps)]
            found = [np.stack([answer[i] for answer in answers]) for i in range(len(rows))]
        for row, y in zip(rows, found):
            row.append(y[:, : n - at])
    return [np.concatenate(row, axis=1) for row in rows]


def step(model: Any, xs: List[Any], whole: bool = False) -> List[Any]:
    """One call of the compiled network: the outputs, each (batch, ...). It takes and gives a batch sample by sample,
    unless its batch is folded into its shapes (``whole``)."""
    import numpy as np

    parts = xs if whole else [x[i : i + 1] for i in range(len(xs[0])) for x in xs]
    data = [np.ascontiguousarray(part) for part in parts]
    model(model.input_tensor().from_numpy(data[0] if len(data) == 1 else data).apu())
    found = [[tensor.cpu().numpy().copy() for tensor in sample] for sample in model.output_list()]
    if whole:
        return [np.concatenate([sample[i].ravel() for sample in found]) for i in range(len(found[0]))]
    return [np.concatenate([sample[i][None] for sample in found]) for i in range(len(found[0]))]


EXECUTORS = {"lynpy": by_lynpy, "onnxruntime": by_onnxruntime}

if __name__ == "__main__":
    sys.exit(main())

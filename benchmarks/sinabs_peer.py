"""What sinabs 3 answers, in the environment `sinabs` of peers.py: how long it compiles, what becomes of a network.

    PEER=$(python benchmarks/peers.py sinabs | cut -d' ' -f2)
    echo chain5 | $PEER benchmarks/sinabs_peer.py time    # a line of JSON for each line that names a network
    $PEER benchmarks/sinabs_peer.py coverage "a + b"      # one line of JSON
    $PEER benchmarks/sinabs_peer.py validate FOLDER       # the same validator's answer to a folder that snncc wrote

sinabs 3.1.3 knows two chips, speck2e and speck2f, whose modules are in newer samna only, and that is not to be had.
What stands in for both is samna 0.7.1.0's own `speck2`: the same nine cores with the same memories, real configuration
objects, the real validator. Two differences are made up for, both in sinabs' favour: 0.7.1.0 also wants lists of kill
bits, which are filled in off the clock; and it knows no two sources of the same channels and no readout as a
destination, as those two chips do: such a configuration is judged with the first source alone, and without the latter.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

DEVICE = "speck2fdevkit:0"


class Validator:
    """`validate_configuration` of the modules that stand in."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.seconds = 0.0  # spent on the kill bits, which newer samna does not ask for
        self.message = ""
        self.adds = False

    def __call__(self, config: Any) -> tuple[bool, str]:
        begin = time.perf_counter()
        for core in config.cnn_layers:
            (into, out), k = (core.dimensions.input_shape, core.dimensions.output_shape), core.dimensions.kernel_size
            core.weights_kill_bit = _no(out.feature_count, into.feature_count, k, k)
            core.biases_kill_bit = _no(out.feature_count)
            core.neurons_value_kill_bit = _no(out.feature_count, out.size.x, out.size.y)
        self.seconds += time.perf_counter() - begin
        with _without_later(config) as self.adds:
            valid, message = self.real.validate_configuration(config)
        self.message = "; ".join(line.strip(" ^\t") for line in message.splitlines() if line.strip(" ^\t"))
        return bool(valid), self.message


@contextlib.contextmanager
def _without_later(config: Any) -> Iterator[bool]:
    """The configuration without what came after samna 0.7.1.0: the readout as a destination, which crashes it, and
    further sources of channels that have one. Gives whether there are such."""
    fed: set[tuple[int, int]] = set()
    off, adds = [], False
    for core in config.cnn_layers:
        for to in core.destinations:
            first, count = to.feature_shift, core.dimensions.output_shape.feature_count
            channels = {(to.layer, channel) for channel in range(first, first + count)}
            again = to.enable and not fed.isdisjoint(channels)
            if again or (to.enable and to.layer >= len(config.cnn_layers)):
                off.append((to, to.layer))
                to.layer, to.enable = 0, False
            elif to.enable:
                fed |= channels
            adds |= again
    yield adds
    for to, layer in off:
        to.layer, to.enable = layer, True


def _no(*shape: int) -> list[Any]:
    import numpy as np

    return np.zeros(shape, bool).tolist()


def stand_in() -> Validator:
    """Put the modules in place that sinabs imports; before sinabs, after this samna is known to be a real one."""
    if version("samna") != "0.7.1.0":
        raise SystemExit(f"samna {version('samna')} is no real package, and is not imported: 0.7.1.0 is the last one")
    import samna

    validator = Validator(samna.speck2)
    for name in ("speck2e", "speck2f"):
        module: Any = ModuleType(f"samna.{name}")
        module.configuration, module.event = samna.speck2.configuration, samna.speck2.event
        module.validate_configuration = validator
        setattr(samna, name, module)
        sys.modules |= {f"samna.{name}": module, f"samna.{name}.configuration": module.configuration}
    sys.modules["samnagui"] = ModuleType("samnagui")  # windows; sinabs imports it and uses it when asked for one
    return validator


def measure(name: str, validator: Validator) -> dict[str, Any]:
    """One compile: the seconds of each step, and what the validator said."""
    from dynapcnn_networks import build, digest
    from sinabs.backend.dynapcnn import DynapcnnNetwork
    from sinabs.from_torch import from_model

    net, shape = build(name)
    gc.collect()  # off the clock, on either side: a whole collection takes longer than the rest of a small network
    validator.seconds, times = 0.0, [time.perf_counter()]
    snn = from_model(net, input_shape=shape, batch_size=1)  # min_v_mem is -1 by default
    times.append(time.perf_counter())
    chip = DynapcnnNetwork(snn, input_shape=shape, discretize=True)
    times.append(time.perf_counter())
    try:
        chip.make_config(device=DEVICE)
    except ValueError as error:
        validator.message = validator.message or str(error)
    times.append(time.perf_counter())
    steps = [after - before for before, after in pairwise(times)]
    return {
        "version": version("sinabs"),
        "digest": digest(net),
        "convert_seconds": steps[0],
        "network_seconds": steps[1],
        "config_seconds": steps[2] - validator.seconds,
        "message": validator.message,
        "cores": chip.layer2core_map,
    }


def coverage(name: str, validator: Validator) -> dict[str, Any]:
    """What becomes of one network, by what sinabs says and by its own simulation of what it would deploy."""
    import sinabs.layers as sl
    import torch
    from dynapcnn_networks import SAMPLES, TIMESTEPS, Add, build, inputs, relative_error
    from sinabs.backend.dynapcnn import DynapcnnNetwork
    from sinabs.conversion import replace_module
    from sinabs.from_torch import from_model
    from torch import nn

    net, shape = build(name)
    try:
        if name == "iaf-defaults":
            snn = replace_module(net, nn.ReLU, lambda _: sl.IAFSqueeze(batch_size=1))
        else:
            snn = from_model(net, batch_size=1).spiking_model
        snn = replace_module(snn, Add, lambda _: sl.Merge())
        chip = DynapcnnNetwork(snn, input_shape=shape, discretize=True)
        chip.make_config(device=DEVICE)
    except Exception as error:  # noqa: BLE001 (a library's; what it raises is what is asked for here)
        said = re.sub(r"\s+", " ", str(error))
        said = f"{said[:160]}{' ...' if len(said) > 160 else ''}"
        return {"valid": False, "said": f"{type(error).__name__}: {said}", "samna": validator.message}
    layers = chip.dynapcnn_layers
    answer: dict[str, Any] = {"valid": True, "adds": validator.adds, "exits": len(chip.exit_layer_ids)}
    answer["edges"] = sum(d >= 0 for where in chip.layer_destination_map.values() for d in where)
    zero = [str(i) for i, layer in layers.items() if not layer.conv_layer.weight.any()]
    answer["zero_layers"] = zero
    if answer["exits"] == 1:
        rates = []
        x = inputs(shape, SAMPLES)
        for sample in x:
            for layer in layers.values():
                layer.spk_layer.reset_states()
            with torch.no_grad():
                rates.append(chip(sample.expand(TIMESTEPS, *shape)).mean(0))
        answer["error"] = relative_error(torch.stack(rates), net, x)
    return answer


def validate(folder: Path, validator: Validator) -> dict[str, Any]:
    """A configuration for speck2e or speck2f out of snncc, read by its own runner, judged as sinabs' are."""
    import samna

    spec = importlib.util.spec_from_file_location("emitted", folder / "run.py")
    assert spec is not None and spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    _, config = runner.load(samna, runner.read(folder / "config.json"))
    valid, message = validator(config)
    return {"valid": valid, "said": message, "adds": validator.adds}


def main() -> None:
    """Answer in lines of JSON; all else that is printed, samna's greeting say, goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["time", "coverage", "validate"])
    parser.add_argument("which", nargs="?", help="coverage: a network; validate: a folder")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    validator = stand_in()
    functions = {"coverage": coverage, "validate": lambda folder, _: validate(Path(folder), validator)}
    asked = (line.strip() for line in sys.stdin) if options.what == "time" else [options.which]
    for which in asked:
        with contextlib.redirect_stdout(io.StringIO()):
            answer = functions.get(options.what, measure)(which, validator)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

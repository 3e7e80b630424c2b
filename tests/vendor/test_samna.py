"""Real samna on our configurations: it takes them, reads in them what we wrote, and agrees on the limits."""

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from snncc.targets.dynapcnn import config as config_module
from snncc.targets.dynapcnn import run
from snncc.targets.dynapcnn.chips import CHIPS, Chip
from snncc.targets.dynapcnn.config import Config, CoreConfig, Destination, Readout, problems, to_json

pytestmark = pytest.mark.vendor
VALIDATED = [chip for chip in CHIPS.values() if chip.validated]
RUN = Path(run.__file__)

# Prints of each configuration samna's own text of what it read, and each memory write that it would send to the chip.
READ_BACK = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import run, samna
for path in sys.argv[2:]:
    data = json.loads(Path(path).read_text())
    module, configuration = run.load(samna, data)
    names = [n for n in dir(module.event) if n.endswith(("config_to_event", "configuration_to_event"))]
    kinds = {"WriteWeightValue": "weight", "WriteBiasValue": "bias", "WriteNeuronValue": "neuron_state"}
    def writes(events):
        found = [(type(e).__name__, e) for e in events]
        return [(n, e.layer, e.address, getattr(e, kinds[n])) for n, e in found if n in kinds]
    print("\\n" + run.MARK + json.dumps({
        "text": json.loads(configuration.to_json()),
        "writes": writes(getattr(module.event, names[0])(configuration)),
        "reset": writes(run.initial_states(module, data)),
    }))
"""


@pytest.fixture
def samna(sdk_python: Callable[[str], Path], tmp_path: Path) -> "Samna":
    return Samna(sdk_python("samna"), tmp_path)


@dataclasses.dataclass(frozen=True)
class Samna:
    """The samna environment, and where to put the files that it reads."""

    python: Path
    folder: Path

    def write(self, texts: Iterable[str]) -> list[Path]:
        paths = []
        for i, text in enumerate(texts):
            paths.append(self.folder / f"{i}.json")
            paths[-1].write_text(text, encoding="utf-8")
        return paths

    def judge(self, texts: Iterable[str]) -> list[dict[str, object]]:
        """What the emitted runner says of each configuration, all in one process."""
        line = [self.python, RUN, "--validate", "--json", *self.write(texts)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        answers = [json.loads(answer) for answer in done.stdout.splitlines()]
        assert done.returncode == (2 if answers[0]["valid"] is None else not all(a["valid"] for a in answers)), done
        return answers

    def read_back(self, texts: Iterable[str]) -> list[dict[str, list[list[object]]]]:
        line = [self.python, "-c", READ_BACK, RUN.parent, *self.write(texts)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        return [json.loads(out[len(run.MARK) :]) for out in done.stdout.splitlines() if out.startswith(run.MARK)]


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
    output_shape = (channels, max(height, 0), max(width, 0))
    initial = rng.integers(-(2**15), 2**15, output_shape).astype(np.int16) if rng.random() < 0.5 else None
    return CoreConfig(
        index=index,
        name=f"layer{index}",
        input_shape=input_shape,
        output_shape=output_shape,
        kernel=kernel,
        stride=stride,
        padding=padding,
        weights=rng.integers(-128, 128, (channels, input_shape[0], kernel, kernel)).astype(np.int8),
        threshold_high=int(rng.integers(1, 2**15)),
        threshold_low=-int(rng.integers(1, 2**15 + 1)),
        biases=rng.integers(-(2**15), 2**15, channels).astype(np.int16) if rng.random() < 0.5 else None,
        initial=initial,
        return_to_zero=bool(rng.random() < 0.5),
        destinations=destinations,
        monitor=not destinations or bool(rng.random() < 0.3),
    )


def chain(chip: Chip, rng: np.random.Generator) -> Config:
    """One to five cores in a row, in any places, with parameters over their whole legal ranges."""
    shape = (int(rng.integers(1, 9)), int(rng.integers(1, 129)), int(rng.integers(1, 129)))
    places = [int(index) for index in rng.permutation(len(chip.cores))[: rng.integers(1, 6)]]
    first, cores, pooling = shape, list[CoreConfig](), 1
    for index in places:
        for _ in range(300):
            core = layer(
                rng,
                index,
                shape,
                channels=int(2 ** rng.uniform(0, 8)),
                kernel=int(rng.integers(1, 17)),
                stride=tuple(int(s) for s in rng.choice(chip.strides, 2)),
                padding=tuple(int(p) for p in rng.integers(0, 8, 2)),
            )
            if not problems(Config(chip, (core,), (index,), (Readout(index),))):
                break
        else:
            break
        if cores:
            cores[-1] = dataclasses.replace(
                cores[-1], destinations=(Destination(index, pooling),), monitor=bool(rng.random() < 0.3)
            )
        cores.append(core)
        pooling = int(rng.choice([p for p in chip.poolings if p <= min(core.output_shape[1:])]))
        shape = (core.output_shape[0], *(n // pooling for n in core.output_shape[1:]))
    assert cores, f"nothing fits core {places[0]} with the input {first}"
    return Config(chip, tuple(cores), (cores[0].index,), (Readout(cores[-1].index),))


def diamond(chip: Chip, rng: np.random.Generator) -> Config:
    """Two input cores side by side; both, and a third that one of them feeds, are concatenated into the last."""
    pooling, (a, b, c) = int(rng.choice([1, 2])), (int(n) for n in rng.integers(1, 9, 3))
    into = (2, *(int(n) * 2 for n in rng.integers(2, 9, 2)))
    pooled = tuple(n // pooling for n in into[1:])
    cores = (
        layer(
            rng,
            2,
            into,
            a,
            kernel=3,
            padding=(1, 1),
            destinations=(Destination(7, pooling, 0), Destination(4, pooling)),
        ),
        layer(rng, 0, into, b, kernel=5, padding=(2, 2), destinations=(Destination(7, pooling, a + c),)),
        layer(rng, 4, (a, *pooled), c, destinations=(Destination(7, 1, a),)),
        layer(rng, 7, (a + b + c, *pooled), 5, kernel=1),
    )
    return Config(chip, cores, (2, 0), (Readout(7),))


@pytest.mark.parametrize("chip", VALIDATED, ids=lambda chip: chip.name)
def test_samna_takes_what_has_no_problems(samna: Samna, chip: Chip) -> None:
    rng = np.random.default_rng(sum(chip.name.encode()))
    configs = [chain(chip, rng) for _ in range(40)] + [diamond(chip, rng) for _ in range(10)]
    assert [problem for config in configs for problem in problems(config)] == []
    answers = samna.judge(map(to_json, configs))
    assert [(a["valid"], a["message"], a["chip"], a["version"]) for a in answers] == [
        (True, "", chip.name, "samna 0.7.1.0")
    ] * 50
    cores = [core for config in configs for core in config.cores]  # the generator is worth its name:
    assert {core.index for core in cores} == set(range(9))
    assert {core.kernel for core in cores} == set(chip.kernel_sizes)
    assert {core.stride[0] for core in cores} == set(chip.strides)
    assert {core.padding[1] for core in cores} == set(chip.paddings)
    assert {destination.pooling for core in cores for destination in core.destinations} == set(chip.poolings)


@pytest.mark.parametrize("chip", VALIDATED, ids=lambda chip: chip.name)
def test_samna_reads_what_was_written(samna: Samna, chip: Chip) -> None:
    """Its own text is ours, and the memory writes that it makes are our integers at the documented addresses."""
    rng = np.random.default_rng(7)
    configs = [chain(chip, rng) for _ in range(4)] + [diamond(chip, rng)]
    texts = [to_json(config) for config in configs]
    for config, text, read in zip(configs, texts, samna.read_back(texts), strict=True):
        assert read["text"]["value0"] == json.loads(text)["value0"]
        written = {(kind, core, address): value for kind, core, address, value in read["writes"]}
        reset = {(kind, core, address): value for kind, core, address, value in read["reset"]}
        used = {core.index for core in config.cores}
        neurons = {
            where: value for where, value in written.items() if where[0] == "WriteNeuronValue" and where[1] in used
        }
        assert reset == neurons
        for core in config.cores:
            expected = {("WriteWeightValue", core.index, at): value for at, value in weights_by_address(core).items()}
            biases = np.zeros(core.output_shape[0], int) if core.biases is None else core.biases
            expected |= {("WriteBiasValue", core.index, i): int(bias) for i, bias in enumerate(biases)}
            expected |= {
                ("WriteNeuronValue", core.index, at): value for at, value in neurons_by_address(chip, core).items()
            }
            assert expected == {where: value for where, value in written.items() if where[1] == core.index}


def bits(n: int) -> int:
    return int(np.ceil(np.log2(n)))


def weights_by_address(core: CoreConfig) -> dict[int, int]:
    channels_out, channels_in, k, _ = core.weights.shape
    c_bits, f_bits = bits(channels_in), bits(channels_out)
    return {
        (y * k + x) << (c_bits + f_bits) | f << c_bits | c: int(weight)
        for (f, c, y, x), weight in np.ndenumerate(core.weights)
    }


def neurons_by_address(chip: Chip, core: CoreConfig) -> dict[int, int]:
    initial = np.zeros(core.output_shape, int) if core.initial is None else core.initial
    f_bits, y_bits, x_bits = (bits(n) for n in core.output_shape)
    shift_y, shift_x = (f_bits, f_bits + y_bits) if chip.neuron_major == "x" else (f_bits + x_bits, f_bits)
    return {y << shift_y | x << shift_x | f: int(value) for (f, y, x), value in np.ndenumerate(initial)}


@pytest.mark.parametrize("chip", [CHIPS["dynapcnn"], CHIPS["speck2b"]], ids=lambda chip: chip.name)
def test_samna_agrees_on_the_limits(samna: Samna, chip: Chip, monkeypatch: pytest.MonkeyPatch) -> None:
    """On either side of each limit we and samna say the same, but where we say more on purpose."""
    rng = np.random.default_rng(1)

    def one(index: int, *args: object, **changes: object) -> Config:
        core = dataclasses.replace(layer(rng, index, *args), **changes)
        return Config(chip, (core,), (index,), (Readout(index),))

    def two(input_shape: tuple[int, int, int], size: tuple[int, int] = (5, 4), **destination: int) -> Config:
        first = layer(rng, 0, (1, *size), 2, destinations=(Destination(1, **destination),))
        return Config(chip, (first, layer(rng, 1, input_shape, 1)), (0,), (Readout(1),))

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
    }
    ours_alone = {
        "threshold_high 0": one(0, (1, 4, 4), 2, threshold_high=0),
        "threshold_low 0": one(0, (1, 4, 4), 2, threshold_low=0),
        "all zero": one(0, (1, 4, 4), 2, weights=np.zeros((2, 1, 1, 1), np.int8)),
        "feeds itself": one(0, (1, 4, 4), 1, destinations=(Destination(0),)),
        "pooling 8": two((2, 1, 1), (8, 8), pooling=8),
    }
    cases = {**legal, **illegal, **ours_alone}
    assert {name for name, config in cases.items() if not problems(config)} == set(legal)
    monkeypatch.setattr(config_module, "problems", lambda config: [])  # to_json writes what it would refuse
    answers = samna.judge(map(to_json, cases.values()))
    taken = {name for name, answer in zip(cases, answers, strict=True) if answer["valid"]}
    assert taken == set(legal) | set(ours_alone)


def test_a_crash_is_an_answer(samna: Samna) -> None:
    good = to_json(chain(CHIPS["speck2b"], np.random.default_rng(0)))
    crash = good.replace('"enable":false,"featureShift":0,"pooling":1', '"enable":true,"featureShift":0,"pooling":0')
    missing = good.replace('"thresholdHigh"', '"threshold"')
    answers = samna.judge([good, crash, missing, good])
    assert [answer["valid"] for answer in answers] == [True, False, False, True]
    assert answers[1]["message"] == "samna's validator crashed with signal 8 (SIGFPE)"
    assert "thresholdHigh" in str(answers[2]["message"])


def test_a_chip_that_this_samna_lacks(samna: Samna) -> None:
    text = to_json(dataclasses.replace(chain(CHIPS["speck2b"], np.random.default_rng(0)), chip=CHIPS["speck2f"]))
    (answer,) = samna.judge([text])
    assert answer["valid"] is None
    assert "samna 0.7.1.0 has no module speck2f" in str(answer["message"])


def test_a_part_is_laid_over_the_defaults(samna: Samna) -> None:
    """The way of the chips that samna 0.7.1.0 lacks, on one that it has: other spelling, and only our fields."""
    data = json.loads(to_json(chain(CHIPS["speck2b"], np.random.default_rng(0))))
    whole = json.loads(json.dumps(data))
    data["snncc"]["whole"] = False
    data["value0"] = {"cnn_layers": data["value0"]["cnnLayers"], "dvs_layer": {"pass_sensor_events": False}}
    (read,) = samna.read_back([json.dumps(data)])
    assert read["text"]["value0"] == whole["value0"]


def test_deployment_without_a_board(samna: Samna) -> None:
    config = chain(CHIPS["speck2b"], np.random.default_rng(0))
    (path,) = samna.write([to_json(config)])
    np.savez(samna.folder / "events.npz", x0=np.ones((2, 1, *config.cores[0].input_shape), np.int64))
    files = ["--input", samna.folder / "events.npz", "--output", samna.folder / "counts.npz"]
    line = [samna.python, RUN, *files, "--timestep-us", "1000", path]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert "error: no board found: looked for Speck2bTestboard" in done.stdout

"""Lava's own processes on seeded random cases: our operations equal them in every spike, message and state, in the
interpreter and in the engine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snncc.engine.neurons import NEURONS
from snncc.engine.rules import Params
from snncc.ir import Domain, Store, Type, loihi, ops
from snncc.ir.types import Array

pytestmark = pytest.mark.vendor

STEPS, SIZE = 30, 8  # of every case: time steps, neurons
CASES = {"LIF": 240, "ATRLIF": 120, "Delta": 60, "SigmaDelta": 120, "Sigma": 30}
IN_RUNTIME = 16  # so many of them once more in Lava's runtime
VARIABLES = {  # the states, in the order in which ours have them
    "LIF": ("u", "v"),
    "ATRLIF": ("v", "r"),
    "Delta": ("act", "residue"),
    "SigmaDelta": ("sigma", "act", "residue"),
    "Sigma": ("sigma",),
}

# Drives source -> (Dense or DelayDense) -> neuron, and answers with what each neuron sent and its states.
# `direct` has Lava compile each process and build its model as the runtime would, but with ports that read and write
# lists: milliseconds a case, and the states of every step. `runtime` runs all that hangs together, each process one of
# the operating system; a sink that all neurons send to ties the cases. It tells the last states.
PROGRAM = """
import json, sys
import numpy as np
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.atrlif.process import ATRLIF
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source
from lava.proc.lif.process import LIF
from lava.proc.sdn.process import Delta, Sigma, SigmaDelta
from lava.utils.weightutils import SignMode

CONFIG = Loihi2SimCfg(select_tag="fixed_pt")

def processes(case):
    arrays = lambda given: {k: np.array(v) if isinstance(v, list) else v for k, v in given.items()}
    neuron = globals()[case["process"]](shape=(case["size"],), **arrays(case["arguments"]))
    if not case["connection"]:
        return [neuron]
    kind = DelayDense if "delays" in case["connection"] else Dense
    return [kind(sign_mode=SignMode.MIXED, **arrays(case["connection"])), neuron]

class Channel:
    def __init__(self, port, rows=()):
        self.name, self.rows, self.sent = port.name, iter(rows), []
    def recv(self):
        return next(self.rows)
    def send(self, row):
        self.sent.append(np.array(row, np.int32))

def direct(case):
    rows, states = np.array(case["source"], np.int32), []
    chain = processes(case)
    for process in chain:
        (to,), (of,) = process.in_ports, process.out_ports
        to, of = Channel(to, rows), Channel(of)
        builder = process.compile(CONFIG).proc_builders[process]
        builder.set_csp_ports([to, of])
        model = builder.build()
        for _ in range(len(rows)):
            model.run_spk()
            if process is chain[-1]:
                states.append([np.array(getattr(model, name)).tolist() for name in case["variables"]])
        rows = of.sent
    return {"sent": np.array(rows).tolist(), "states": states}

def runtime(cases):
    built, joint = [], Sink(shape=(cases[0]["size"],), buffer=1)
    for case in cases:
        chain = processes(case)
        source = Source(data=np.array(case["source"]).T)
        sink = Sink(shape=(case["size"],), buffer=len(case["source"]))
        for before, after in zip([source, *chain, chain[-1]], [*chain, sink, joint]):
            (of,), (to,) = before.out_ports, after.in_ports
            of.connect(to)
        built.append((chain[-1], sink))
    joint.run(condition=RunSteps(len(cases[0]["source"])), run_cfg=CONFIG)
    answers = []
    for case, (neuron, sink) in zip(cases, built):
        state = [getattr(neuron, name).get().tolist() for name in case["variables"]]
        answers.append({"sent": sink.data.get().T.tolist(), "states": [state]})
    joint.stop()
    return answers

cases = json.load(open(sys.argv[1]))
json.dump([direct(case) for case in cases] + runtime(cases[:: len(cases) // int(sys.argv[2])]), open(sys.argv[3], "w"))
"""


@dataclass(frozen=True)
class Case:
    """A neuron operation, its process in Lava, and what drives both: a source (T, M), straight or through weights."""

    op: ops.Stateful
    process: str
    arguments: dict[str, Any]
    source: Array
    connection: dict[str, Any]
    store: Store
    unit: int = 1  # one of our states in Lava's

    def text(self) -> dict[str, Any]:
        """What PROGRAM takes."""
        given = {name: getattr(self, name) for name in ("process", "arguments", "connection")}
        return {**given, "source": self.source.tolist(), "size": SIZE, "variables": VARIABLES[self.process]}

    def drive(self) -> Array:
        """What arrives at the neurons, (T, N): through a connection a step later, and later still by its delays."""
        if not self.connection:
            return self.source
        delays = self.connection.get("delays", np.zeros((1, self.source.shape[1]), np.int64))
        late, _ = steps(loihi.Delay(self.store.put("delays", np.array(delays)[0] + 1)), self.source, self.store)
        return np.asarray(late @ np.array(self.connection["weights"]).T)


def kind(size: int) -> Type:
    return Type((size,), "i32", Domain.CURRENT)


def steps(op: ops.Stateful, x: Array, store: Store) -> tuple[Array, Array]:
    """The interpreter's steps on (T, N): (what is sent (T, N), the states after each step (T, variables, N))."""
    type = kind(x.shape[1])
    op.infer((type,), store)
    state, sent, states = op.start(1, type, store), [], []
    for now in x:
        state, y = op.step(state, now[None].astype(np.float64), type, store)
        sent.append(y[0])
        states.append(state.reshape(-1, x.shape[1]))
    return np.array(sent), np.array(states)


def engine(op: ops.Stateful, x: Array, store: Store) -> tuple[Array, Array]:
    """The same of the engine, which has the last states only."""
    given = torch.from_numpy(x[:, None].astype(np.float64))
    sent, state = NEURONS[type(op)](op, given, len(x), kind(x.shape[1]), Params(store, "cpu"))
    return sent[:, 0].numpy(), state.reshape(1, -1, x.shape[1]).numpy()


# --- random cases ----------------------------------------------------------------------------------------------------


def log_uniform(rng: np.random.Generator, most: int) -> int:
    """A whole number from 0 to ``most``, small or large."""
    return int(2 ** rng.uniform(0, np.log2(most + 1)) - 1)


def spread(rng: np.random.Generator, most: int) -> Array:
    """A whole number per neuron, all of up to some size below ``most``."""
    size = log_uniform(rng, most - 1)
    return rng.integers(-size, size + 1, SIZE)


def source(rng: np.random.Generator, size: int, most: int) -> Array:
    """Numbers of up to ``most`` in size: of one sign or both, always or at times, new in each step or constant; among
    large ones, some where a current begins to wrap."""
    x = rng.integers(-most, most + 1, (STEPS, size)) * (rng.random((STEPS, size)) < rng.choice([0.3, 1.0]))
    edge = loihi.STATE >> loihi.SHIFT
    if most > edge:
        edges = rng.choice([-1, 1], x.shape) * (edge + rng.integers(-1, 2, x.shape))
        x = np.where(rng.random(x.shape) < 0.1, edges, x)
    x = np.abs(x) if rng.random() < 0.5 else x
    return np.asarray(np.where(rng.random(size) < 0.2, x[0], x))


def random_case(rng: np.random.Generator, process: str) -> Case:
    store = Store()
    mantissa, exponent, v0 = spread(rng, 2**12), int(rng.integers(0, 8)), spread(rng, 2**17)
    bias, start = store.put("bias", mantissa << exponent), store.put("v0", v0)
    membrane = {"bias_mant": mantissa.tolist(), "bias_exp": exponent, "v": (v0 << loihi.SHIFT).tolist()}
    spike_exp, state_exp, threshold = int(rng.integers(0, 7)), int(rng.integers(0, 8)), log_uniform(rng, 2**10)
    exponents = {"vth": threshold, "spike_exp": spike_exp, "state_exp": state_exp}
    unit, largest = 1, loihi.STATE - 1
    op: ops.Stateful
    arguments: dict[str, Any]
    if process == "LIF":
        decay_u, decay_v = (int(rng.choice([0, 1, 4095, 4096, *rng.integers([4097, 99])])) for _ in range(2))
        threshold = log_uniform(rng, 2**17 - 1)
        op = loihi.CubaLif(threshold, bias, decay_u, decay_v, start)
        arguments = {"vth": threshold, "du": decay_u - 1, "dv": decay_v, **membrane}
        # What a current can add up to is refused from loihi.SUM on.
        rise = min(STEPS, loihi.UNITY / max(decay_u, 1))
        largest = min(largest, int(loihi.SUM / 2**loihi.SHIFT / rise) - 1)
    elif process == "ATRLIF":
        theta = 1 + log_uniform(rng, 2**17 - 1)
        op = loihi.AtrLif(theta, bias, start)
        decays = {"delta_i": 4095 / 4096, "delta_v": 0, "delta_theta": 0, "delta_r": 0}
        arguments = {"theta": theta, "theta_0": theta, "theta_step": 0, **decays, **membrane}
    elif process == "Delta":
        op, arguments = loihi.Delta(threshold, 1 << spike_exp), exponents
        unit, largest = 1 << (spike_exp + state_exp), 2**15  # Lava shifts by both exponents, in 32 bits
    elif process == "SigmaDelta":
        scale, relu = spike_exp + state_exp, int(rng.integers(2))
        scaled = store.put("bias", mantissa << scale)
        op = loihi.SigmaDelta(scaled, threshold << scale, state_exp, "relu" if relu else "none")
        arguments = {"bias": mantissa.tolist(), "act_mode": relu, **exponents}
    else:
        op, arguments = loihi.Sigma(), {}
    size, connection = SIZE, {}
    if rng.random() < 0.4:
        size, largest = int(rng.integers(1, 12)), 255
        # Lava's weights of mixed sign are even.
        weights = 2 * rng.integers(-128, 128, (SIZE, size))
        connection = {"weights": weights.tolist(), "num_message_bits": 8}
        if rng.random() < 0.5:
            delays = rng.integers(0, rng.integers(1, 64), size)
            connection["delays"] = np.broadcast_to(delays, weights.shape).tolist()
    return Case(op, process, arguments, source(rng, size, log_uniform(rng, largest)), connection, store, unit)


def test_every_spike_message_and_state_is_lavas(sdk_python: Callable[[str], Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = [random_case(rng, process) for process, count in CASES.items() for _ in range(count)]
    path, result = tmp_path / "cases.json", tmp_path / "answers.json"
    path.write_text(json.dumps([case.text() for case in cases]), encoding="utf-8")
    subprocess.run([sdk_python("lava-nc"), "-c", PROGRAM, path, str(IN_RUNTIME), result], check=True, timeout=300)
    answers = json.loads(result.read_text(encoding="utf-8"))
    again = cases[:: len(cases) // IN_RUNTIME]
    compared, different, failed = dict.fromkeys(CASES, 0), dict.fromkeys(CASES, 0), []
    wrapped = saturated = 0
    for case, answer in zip([*cases, *again], answers, strict=True):
        sent, states = np.array(answer["sent"]), np.array(answer["states"])
        x = case.drive()
        for run in (steps, engine):
            our_sent, our_states = run(case.op, x, case.store)
            last = min(len(states), len(our_states))  # all states, or the last of all
            wrong = (our_sent != sent).sum() + (our_states[-last:] * case.unit != states[-last:]).sum()
            compared[case.process] += our_sent.size + our_states[-last:].size
            different[case.process] += wrong
            failed += [(run.__name__, case)] if wrong else []
        wrapped += int((np.abs(x) > loihi.STATE >> loihi.SHIFT).sum()) if case.process in ("LIF", "ATRLIF") else 0
        saturated += int((np.abs(states) == loihi.STATE - 1).sum())
    print(f"{len(cases)} cases, {len(again)} of them also in Lava's runtime; {wrapped} wraps, {saturated} saturated")
    for process in CASES:
        print(f"{process}: {compared[process]} values compared, {different[process]} different")
    assert not failed, failed[0]
    assert min(wrapped, saturated) > 1000

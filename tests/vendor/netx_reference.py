"""Runs `.net` files in real Lava (netx on the CPU simulation) and keeps every layer's output: `netx_reference.py JOBS`.

For the `lava` environment: Lava, numpy and the standard library. JOBS is a JSON list. A job has ``net`` (the file),
``steps``, ``input`` (.npy, see `run`), ``output`` (the .npz to write) and ``options`` of netx's Network. Written are
``layer_0``, ``layer_1`` ... of netx's blocks, (T, *shape) in Lava's order of axes, and the last block's final state by
its variables' names. Or a job has ``weights`` (.npz) and ``output``, see `products`. Prints a JSON list: per job "", or
why Lava did not run it.

Copy this file into a folder of its own first: Lava executes all .py files beside one that defines a Process.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from lava.lib.dl.netx import hdf5
from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.dense.models import PyDenseModelBitAcc
from lava.proc.io.source import RingBuffer
from lava.proc.sdn.process import Delta


class Probe(AbstractProcess):
    """Writes what it gets in all steps to a file, in one piece: Lava's own sink hands over element by element."""

    def __init__(self, shape, steps, path):
        super().__init__(shape=shape, steps=steps, path=path)
        self.a_in = InPort(shape=shape)


@implements(proc=Probe, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyProbe(PyLoihiProcessModel):
    """Probe on the CPU."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.rows = []

    def run_spk(self):
        self.rows.append(self.a_in.recv())
        if self.time_step == self.proc_params["steps"]:
            np.save(self.proc_params["path"], np.stack(self.rows))


def run(job, folder):
    """Run one job; ``folder`` is for the probes' files."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in job["options"].items()}
    net = hdf5.Network(job["net"], **options)
    data, steps = np.load(job["input"]), job["steps"]
    first = net.in_layer
    if not hasattr(first, "transform"):  # no input block: spikes (T, *shape)
        RingBuffer(data=np.moveaxis(data, 0, -1)).s_out.connect(net.inp)
    elif isinstance(first.neuron, Delta):  # what the neuron gets in every step, (*shape)
        RingBuffer(data=data[..., None]).s_out.connect(first.neuron.a_in)
    else:  # the neuron's bias, (*shape)
        first.neuron.bias_mant.init = data
    paths = {f"layer_{i}": str(Path(folder, f"{i}.npy")) for i in range(len(net.layers))}
    for layer, path in zip(net.layers, paths.values(), strict=True):
        layer.out.connect(Probe(layer.out.shape, steps, path).a_in)
    try:
        net.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        neuron = net.layers[-1].neuron
        names = [name for name in ("u", "v", "sigma", "act", "residue") if hasattr(neuron, name)]
        state = {name: getattr(neuron, name).get() for name in names}
    finally:
        net.stop()
    np.savez(job["output"], **{name: np.load(path) for name, path in paths.items()}, **state)


class Port:
    """Stands in for both ports of a model that runs without Lava's runtime."""

    def recv(self):
        return self.messages

    def send(self, sums):
        self.sums = sums


def products(job):
    """For weights (O, I), what Lava's model of a dense layer sends: for a message of 1 from each input alone, and last
    for messages of 2 from all, (I + 1, O). An array of size 0 where netx fails on them."""
    results = {}
    for name, weight in np.load(job["weights"]).items():
        try:
            scaled, bits, exponent, _ = optimize_weight_bits(weight)
        except OverflowError:
            results[name] = np.zeros(0)
            continue
        model = PyDenseModelBitAcc({"weight_exp": exponent, "num_weight_bits": bits})
        model.weights, model.num_message_bits, model.a_buff = scaled.astype(np.int32), np.ones(1), None
        model.s_in = model.a_out = port = Port()
        rows = []
        for messages in [*np.eye(weight.shape[1], dtype=np.int32), np.full(weight.shape[1], 2)]:
            port.messages = messages
            model.run_spk()  # sends what the last one summed up
            rows.append(model.a_buff)
        results[name] = np.stack(rows)
    np.savez(job["output"], **results)


def main():
    """Run all jobs of the file that the command line names."""
    answers = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(job, folder) if "net" in job else products(job)
                answers.append("")
            except Exception as error:  # noqa: BLE001 (what Lava may raise is what the caller asks)
                answers.append(f"{type(error).__name__}: {error}")
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main()

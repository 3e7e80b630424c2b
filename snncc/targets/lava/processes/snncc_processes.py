"""What the runner adds to Lava: a source, a sink, and Lava's neurons set back when a sample begins.

The neurons' and connections' arithmetic is lava-nc 0.10.0's own; the subclasses here only set state back, widen an
integer type and keep a matrix. In a folder of its own, since Lava imports every .py file beside a Process.
"""

# mypy: disable-error-code="misc"
# (Lava has no types, so its classes are Any)

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.atrlif.models import PyATRLIFModelFixed
from lava.proc.conv.models import PyConvModelFixed
from lava.proc.lif.models import PyLifModelBitAcc
from lava.proc.sdn.models import PyDeltaModelFixed, PySigmaDeltaModelFixed, PySigmaModelFixed
from lava.proc.sparse.models import PyDelaySparseModelBitAcc


class Source(AbstractProcess):
    """Sends samples one after the other, `timesteps` steps each, and then begins again.

    `data` has integers: (N, *shape), sent in every step of the sample, or (T, N, *shape), row t in its step t.
    """

    def __init__(self, *, data: Any, shape: tuple[int, ...], timesteps: int) -> None:
        super().__init__(data=data, shape=shape, timesteps=timesteps)
        self.s_out = OutPort(shape=shape)


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class SourceModel(PyLoihiProcessModel):
    """Lava's time steps count from 1."""

    s_out = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def run_spk(self) -> None:
        data, shape = self.proc_params["data"], self.proc_params["shape"]
        sample, step = divmod(self.time_step - 1, self.proc_params["timesteps"])
        timed = data.ndim > len(shape) + 1
        self.s_out.send((data[step] if timed else data)[sample % data.shape[-1 - len(shape)]].astype(np.int32))


class Sink(AbstractProcess):
    """Writes what comes into the rows of a .npy file at `path` (rows, size) that is there, the first at time `start`.

    Lava's own sink hands its data over one element at a time.
    """

    def __init__(self, *, path: str, size: int, start: int) -> None:
        super().__init__(path=path, size=size, start=start)
        self.a_in = InPort(shape=(size,))


@implements(proc=Sink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class SinkModel(PyLoihiProcessModel):
    """The file is shared memory: what is written can be read at once."""

    a_in = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.rows = np.load(proc_params["path"], mmap_mode="r+", allow_pickle=False)

    def run_spk(self) -> None:
        data, row = self.a_in.recv(), self.time_step - 1 - self.proc_params["start"]
        if 0 <= row < len(self.rows):
            self.rows[row] = data


class _SetBack:
    """Sets `state` back to what it was at first, at the start of each window of `window` = (timesteps, depth): at the
    times n * timesteps + depth."""

    state: tuple[str, ...]

    def run_spk(self: Any) -> None:
        timesteps, depth = self.proc_params["window"]
        if self.time_step == 1:
            self.initial = {name: getattr(self, name).copy() for name in self.state}
        if (self.time_step - 1 - depth) % timesteps == 0:
            for name, value in self.initial.items():
                setattr(self, name, value.copy())
        super().run_spk()


class CubaLif(_SetBack, PyLifModelBitAcc):
    """Lava's LIF."""

    state = ("u", "v")


class AtrLif(_SetBack, PyATRLIFModelFixed):
    """Lava's ATRLIF. Its threshold is no state: its step is 0."""

    state = ("i", "v", "r")


class Delta(_SetBack, PyDeltaModelFixed):
    """Lava's."""

    state = ("act", "residue")


class SigmaDelta(_SetBack, PySigmaDeltaModelFixed):
    """Lava's."""

    state = ("sigma", "act", "residue")


class Sigma(_SetBack, PySigmaModelFixed):
    """Lava's."""

    state = ("sigma",)


class Conv(PyConvModelFixed):
    """Lava's, whose 8 bits for these numbers do not hold 128 groups."""

    kernel_size = stride = padding = dilation = groups = LavaPyType(np.ndarray, np.int32)


class DelaySparse(PyDelaySparseModelBitAcc):
    """Lava's, which builds this matrix anew in every step."""

    matrix = None

    def get_delay_wgts_mat(self, weights: Any, delays: Any, max_delay: int) -> Any:
        if self.matrix is None:
            self.matrix = super().get_delay_wgts_mat(weights, delays, max_delay).tocsr()
        return self.matrix

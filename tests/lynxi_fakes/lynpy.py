"""A fake of lynpy as LynxiTechnology/Lynxi-model-zoo publishes it (common/libs/lynpy.py): a tensor is what the host has
and what the device has of it, sizes are checked, a batch goes in and comes out sample by sample, and the listed outputs
are the same arrays after every call. The model that it runs is the module of the working folder, in float32: of what
fp16 changes it says nothing."""

import sys
from pathlib import Path

import numpy as np
import pylynchipsdk
import torch
from lyngor import log


class Tensor:
    def __init__(self, dev_id=0, size=0):
        self.data_size, self.devptr, self._host = size, np.zeros(size, np.uint8), None

    def from_numpy(self, data):
        parts = data if isinstance(data, list) else [data]
        total = sum(d.size * d.itemsize for d in parts)
        assert self.data_size == total, f"required {self.data_size}, input {total}"
        found = [[d.dtype.name, *d.shape] for d in parts]
        log("from_numpy", *(found if isinstance(data, list) else found[0]))
        self._host = data
        return self

    def view_as(self, shape, dtype="float32"):
        assert self._host is None
        self._host = np.empty(shape, dtype)
        assert self.data_size == self._host.nbytes
        return self

    def apu(self):
        log("apu")
        parts = self._host if isinstance(self._host, list) else [self._host]
        self.devptr[:] = np.concatenate([np.frombuffer(d.tobytes(), np.uint8) for d in parts])
        return self

    def cpu(self):
        log("cpu")
        self._host[...] = self.devptr.view(self._host.dtype).reshape(self._host.shape)
        return self

    def numpy(self):
        return self._host

    def _split(self, sizes):
        parts = []
        for at, size in zip(np.cumsum([0, *sizes])[:-1], sizes, strict=True):
            parts.append(Tensor(size=size))
            parts[-1].devptr = self.devptr[at : at + size]
        return parts


class Model:
    def __init__(self, dev_id=0, path=None):
        log("Model", dev_id, path)
        assert Path(path).name == "Net_0" and Path(path).is_dir()
        sys.path.insert(0, str(Path.cwd()))
        import model

        self.context, self.stream, self.model = "context", "stream", "model"
        network, arrays = model.read(Path.cwd())
        self._module = model.build(network, arrays)
        pylynchipsdk.STATES = model.STATES  # which nothing but its reset may clear
        outer = network["form"] == "outer-loop"
        self.batch_size = network["batch"] if outer else 1
        rows = 1 if outer else network["timesteps"] * network["batch"]
        self._takes = [tuple(x.shape) for x in model.example(network)]
        self._gives = [(rows, *entry["shape"]) for entry in network["outputs"]]
        self._input = Tensor(size=self.batch_size * sum(2 * int(np.prod(s)) for s in self._takes))
        self._output = Tensor(size=self.batch_size * sum(4 * int(np.prod(s)) for s in self._gives))
        self._output_list = None

    def input_tensor(self):
        return self._input

    def __call__(self, input):
        log("infer")
        assert input.data_size == self._input.data_size
        samples = input.devptr.view(np.float16).astype(np.float32).reshape(self.batch_size, -1)
        parts = np.split(samples, np.cumsum([np.prod(s) for s in self._takes])[:-1], axis=1)
        xs = [torch.from_numpy(x.reshape(-1, *s[1:])) for x, s in zip(parts, self._takes, strict=True)]
        with torch.no_grad():
            y = self._module(*xs)
        ys = [part.numpy().reshape(self.batch_size, -1) for part in (y if isinstance(y, tuple) else (y,))]
        self._output.devptr.view(np.float32)[:] = np.concatenate(ys, axis=1).ravel()
        return self._output

    def output_list(self):
        if self._output_list is None:
            sizes = [4 * int(np.prod(s)) for s in self._gives]
            samples = self._output._split([sum(sizes)] * self.batch_size)
            self._output_list = [
                [t.view_as(s) for t, s in zip(part._split(sizes), self._gives, strict=True)] for part in samples
            ]
        return self._output_list

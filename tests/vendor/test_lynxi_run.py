"""`compiled.run`: the written folder's ONNX step in onnxruntime, in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lynxi_executors import neurons
from lynxinets import spiking_network
from torch import nn
from zoo import ZOO, build, example_input

import snncc

pytestmark = pytest.mark.vendor


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet_a", {"encoding": "rate", "reset": "zero"}),
        ("densenet", {"form": "unrolled"}),
        ("mobilenet", {"batch": 4}),
    ],
)
def test_onnxruntime_gives_the_simulations_spikes(
    sdk_python: Callable[[str], Path], name: str, options: dict[str, Any]
) -> None:
    python = sdk_python("onnxruntime")
    x = np.abs(example_input(ZOO[name].input_shape, 3, seed=1).numpy())
    first = snncc.compile(build(name), "lynxi", calibration=x, timesteps=6, **options)
    compiled = snncc.compile(build(name), "lynxi", calibration=x, timesteps=6, monitor=neurons(first)[:2], **options)
    done, wanted = compiled.run(x, python=python), compiled.simulate(x, record=compiled.options.monitor)
    np.testing.assert_allclose(done.output, wanted.output, rtol=1e-12, atol=1e-12)
    assert done.spikes.keys() == wanted.spikes.keys()
    for key, spikes in wanted.spikes.items():
        np.testing.assert_array_equal(done.spikes[key], spikes)


def test_a_network_of_spiking_neurons(sdk_python: Callable[[str], Path], tmp_path: Path) -> None:
    network, shape = spiking_network(np.random.default_rng(3))
    x = example_input(shape, 3, seed=1).numpy()
    compiled = snncc.compile(network, "lynxi", calibration=x, timesteps=6)
    loaded = snncc.load(compiled.save(tmp_path / "net"))
    done = loaded.run(x, 9, python=sdk_python("onnxruntime"), executor="onnxruntime")
    np.testing.assert_allclose(done.output, compiled.simulate(x, 9).output, rtol=1e-12, atol=1e-12)
    with pytest.raises(snncc.InputError, match="lynpy is not in this Python"):
        loaded.run(x, python=sdk_python("onnxruntime"), executor="lynpy", model=tmp_path)
    with pytest.raises(snncc.InputError, match="Lynxi publishes no validator"):
        loaded.validate(sdk_python("onnxruntime"))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.relu(self.c(torch.relu(self.a(x) + self.b(y))))
        return self.d(z), z


@pytest.mark.parametrize("encoding", ["constant", "rate"])
@pytest.mark.parametrize("form", ["outer-loop", "unrolled"])
def test_two_inputs_and_what_was_monitored(sdk_python: Callable[[str], Path], form: str, encoding: str) -> None:
    python = sdk_python("onnxruntime")
    torch.manual_seed(0)
    xs = tuple(np.random.default_rng(i).random((5, n), dtype=np.float32) for i, n in enumerate((6, 4)))
    options: dict[str, Any] = {"form": form, "encoding": encoding, "timesteps": 6}
    inner, _ = neurons(snncc.compile(Two(), "lynxi", calibration=[xs], **options))
    compiled = snncc.compile(Two(), "lynxi", calibration=[xs], monitor=(inner,), **options)
    done, wanted = compiled.run(xs, python=python), compiled.simulate(xs, record=[inner])
    for found, output in zip(done.outputs, wanted.outputs, strict=True):
        np.testing.assert_allclose(found, output, rtol=1e-12, atol=1e-12)
    assert done.spikes.keys() == {inner}
    np.testing.assert_array_equal(done.spikes[inner], wanted.spikes[inner])

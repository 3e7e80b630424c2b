"""`compiled.run`: the written folder's ONNX step in onnxruntime, in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lynxi_executors import neurons
from lynxinets import spiking_network
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

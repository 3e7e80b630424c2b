"""The fast simulator, in torch: equal to the reference interpreter in every spike."""

from snncc.engine.simulate import Simulation, TorchEngine, recorded

__all__ = ["Simulation", "TorchEngine", "recorded"]

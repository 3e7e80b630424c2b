"""The target without hardware: no limits, every operation of the IR. For tests and experiments, and the example to copy
when a new target is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snncc.passes.base import Pass
from snncc.passes.calibrate import Calibrate
from snncc.passes.calibrate_reset import CalibrateReset
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.check_bias import CheckBias
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.lower_activations import LowerActivations
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.quantize import Quantize
from snncc.targets.base import Options, Target


@dataclass(frozen=True, repr=False)
class Reference(Target):
    """Integer arithmetic like the chips', of any size and shape; runs on the fast engine alone."""

    name: str = "reference"
    summary: str = "no hardware limits; simulated"

    def passes(self, options: Options) -> list[Pass]:
        """From the traced graph to the stage ``int``."""
        hard = options.reset == "zero"
        v0 = options.v0 if options.v0 is not None else 0.0 if hard else 0.5
        bits = options.weight_bits or 8
        wide = min(32, max(16, 2 * bits))  # a threshold holds products of weights and what they read
        return [
            Canonicalize(),
            FoldBatchNorm(),
            CheckBias(options.bias, cost=False),
            Calibrate(options.threshold, options.percentile, options.per),
            LowerActivations(options.encoding or "constant", options.reset, v0, seed=options.seed),
            LowerPooling(),
            *([CalibrateReset()] if hard else []),
            Quantize(bits, bias_bits=max(24, wide), threshold_bits=wide, scale_bits=max(16, bits)),
        ]

    def limits(self) -> dict[str, Any]:
        """None."""
        return {}

"""The target: passes, limits and files for every chip of the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from snncc.ir import CompileError, Diagnostic, Graph
from snncc.ir.diagnostics import input_error
from snncc.passes.base import Pass
from snncc.passes.calibrate import Calibrate
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.check_bias import CheckBias
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.lower_activations import LowerActivations, SpikingOutput
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.quantize import Quantize
from snncc.targets.base import Options, Target
from snncc.targets.dynapcnn.chips import Chip
from snncc.targets.dynapcnn.config import problems, to_json
from snncc.targets.dynapcnn.lower import CheckLimits, PlaceOnCores, Reader, to_config


@dataclass(frozen=True)
class Dynapcnn(Target):
    """A chip of SynSense's DYNAP-CNN family. Weights 8 bits, biases 16; inputs and outputs are spikes."""

    chip: Chip
    takes: ClassVar[Mapping[str, Sequence[Any]]] = {  # spikes, not a constant current
        **Target.takes,
        "encoding": (None, "rate", "bernoulli", "spikes"),
    }
    run_flags: ClassVar[Mapping[str, str]] = {"device": "--device", "timestep_us": "--timestep-us"}

    @property
    def name(self) -> str:  # type: ignore[override]
        """The chip's."""
        return self.chip.name

    @property
    def summary(self) -> str:  # type: ignore[override]
        """One line for listings."""
        proof = "validated by samna 0.7.1.0" if self.chip.validated else "no validator on the registry"
        return f"{len(self.chip.cores)} cores (SynSense); {proof}"

    def passes(self, options: Options) -> list[Pass]:
        """From the traced graph to cores."""
        bits = options.weight_bits or 8
        if bits > 8:
            raise input_error("SNN070", f"weight_bits={bits}: the chip's weights have 8 bits")
        bias, fold = CheckBias(options.bias), options.bias == "fold"
        v0 = 0.5 if options.v0 is None else options.v0
        return [
            Canonicalize(),
            FoldBatchNorm(),
            CheckLimits(self.chip),
            SpikingOutput(),
            *([] if fold else [bias]),
            Calibrate(options.threshold, options.percentile, options.per),
            LowerActivations(options.encoding or "rate", options.reset, v0, seed=options.seed),
            *([bias] if fold else []),
            LowerPooling(),  # what the chip cannot pool, check-limits has said
            # Thresholds stay within 14 bits and a sign, so that a potential (below threshold plus one weight between
            # events) keeps away from the undocumented saturation at 2^15 - 1.
            Quantize(bits, bias_bits=16, threshold_bits=15, v_min=self.chip.thresholds_low[0]),
            PlaceOnCores(self.chip),
        ]

    def environments(self, graph: Graph, options: Options) -> tuple[str, ...]:
        """Samna's."""
        return ("samna",)

    def files(self, graph: Graph, options: Options) -> dict[str, str | bytes]:
        """The configuration for samna and the runner that validates and deploys it.

        Raises:
            CompileError: what the chip cannot do and no pass has said; nothing that samna would wrap gets out.
        """
        config = to_config(graph, self.chip)
        found = problems(config)
        if found:
            locs = {layer.name: layer.weighted.loc for layer in Reader(graph, self.chip).layers}
            raise CompileError([Diagnostic("SNN066", p.text, locs.get(p.core_name, Diagnostic.loc)) for p in found])
        runner = Path(__file__).with_name("run.py").read_text(encoding="utf-8")
        return {"config.json": to_json(config), "run.py": runner}

    def limits(self) -> dict[str, Any]:
        """The chip's cores and legal values: lists, or ranges as their smallest and largest value."""
        data = asdict(self.chip)
        return {
            name: {"min": value.start, "max": value[-1]} if isinstance(value, range) else value
            for name, value in data.items()
            if name not in ("name", "samna_module", "samna_configuration", "key_style", "neuron_major")
        }

    def usage(self, graph: Graph) -> dict[str, dict[str, Any]]:
        """Per layer: its core, and the words of each memory it uses and leaves free."""
        table: dict[str, dict[str, Any]] = {}
        for layer in Reader(graph, self.chip).layers:
            core = self.chip.cores[layer.core]
            sizes = dict(zip(("kernel", "neuron", "bias"), core.words, strict=True))
            row: dict[str, Any] = {"core": layer.core}
            for (what, size), used in zip(sizes.items(), layer.memory(graph), strict=True):
                row |= {f"{what}_used": used, f"{what}_free": size - used}
            table[layer.name] = row
        return table

"""Cases from a seed: equal seeds give equal cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fuzz.network import Case, Draft, Step

from snncc.targets.dynapcnn.chips import CHIPS

TARGETS = ("reference", "lava", "lynxi", "speck2f", "speck2b", "dynapcnn")
MOST = 400  # numbers of a value, for one sample

# Of what stands behind a layer of weights. {0} is the operand.
RELUS = (
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.Hardtanh(0, 1)", "nn.Threshold(0, 0)",
    "nn.Hardtanh(0, 0.2)",
)  # fmt: skip
RELU_CALLS = (
    "torch.relu({0})", "{0}.relu()", "F.relu({0})", "F.relu({0}, inplace=True)", "{0}.relu_()", "{0}.clamp(min=0)",
    "{0}.clamp(0, 2)", "torch.clamp({0}, 0.0, 1.0)", "F.relu6({0})", "F.hardtanh({0}, 0, 4)",
    "torch.clamp_min({0}, 0)", "{0}.clamp_(0, 3)", "F.threshold({0}, 0, 0)", "{0}.clamp(0, 1e-3)",
)  # fmt: skip
# Activations that a target may refuse.
ODD = (
    "{0}.clamp(-1, 1)", "{0}.clamp(0.25, 1)", "{0}.clamp(max=0.5)", "F.hardtanh({0})", "torch.floor({0})",
    "-torch.relu(-{0})", "torch.clamp(torch.floor({0} * 4 / 2 + 0.5), 0, 4) * 2 / 4", "torch.relu({0} - 0.1) + 0.1",
    "1 - torch.relu({0})", "torch.relu({0}).clamp_max(0.7)", "torch.sigmoid({0})", "F.leaky_relu({0})",
    "torch.relu({0}) * torch.relu({0})",
)  # fmt: skip
ARITHMETIC = (
    "{0} * 2", "{0} * 0.1", "0.5 * {0} + 0.25", "{0} - 0.5", "1 - {0}", "-{0}", "{0} / 3", "{0} + 1", "{0} * 0",
    "{0} / 1e-3", "({0} - 0.1307) / 0.3081", "torch.add({0}, {0}, alpha=2)", "{0} - {0}", "{0} + {0}",
    "torch.sub({0}, 0.2, alpha=0.5)", "torch.mul({0}, 1.5)", "torch.div({0}, 2)", "torch.rsub({0}, 1)", "{0}.neg()",
    "{0}.add(0.1).mul_(2)", "{0} * 1e4",
)  # fmt: skip
# With what the network keeps: one number for each channel, or other shapes.
KEPT = (
    ("{0} + {m}", "per channel"), ("{0} * {m}", "per channel"), ("({0} - {m}) / 0.5", "per channel"),
    ("{m} - {0}", "per channel"), ("{0} * {m}", "torch.tensor(0.7)"), ("{0} + {m}", "torch.zeros(1)"),
    ("{0} + {m}", "nn.Parameter(torch.rand({s[1]}))"), ("{0} + {m}", "torch.rand(1, *{s}[1:])"),
    ("{0} * {m}", "nn.Parameter(torch.zeros(()))"), ("{0} / {m}", "torch.tensor([2.0])"),
)  # fmt: skip
THROUGH = (
    "{0}.clone()", "{0}.contiguous()", "{0}.detach()", "{0}.float()", "{0}.to({0}.dtype)",
    "F.dropout({0}, 0.5, training=self.training)", "{0}.reshape({0}.shape)", "{0}.view({0}.size(0), *{0}.shape[1:])",
    "{0}.unsqueeze(1).squeeze(1)", "{0}.requires_grad_(False)",
)  # fmt: skip
THROUGH_MODULES = (
    "nn.Identity()", "nn.Dropout(0.3)", "nn.Dropout2d(0.2)", "nn.AlphaDropout(0.1)",
    "nn.Sequential(nn.Identity(), nn.Dropout())",
)  # fmt: skip
POOLS = (
    "nn.AvgPool2d(2)", "nn.AvgPool2d(2)", "nn.AvgPool2d(3, 1, 1)", "nn.AvgPool2d((1, 2))",
    "nn.AvgPool2d(3, 2, 1, ceil_mode=True)", "nn.AvgPool2d(3, 2, 1, count_include_pad=False)",
    "nn.AvgPool2d(2, divisor_override=3)", "nn.AvgPool2d(4)", "nn.MaxPool2d(2)", "nn.MaxPool2d(3, 2, 1)",
    "nn.MaxPool2d(2, 1, dilation=2)", "nn.MaxPool2d((1, 2), 2, ceil_mode=True)", "nn.MaxPool2d(3, 1, 1)",
    "nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveAvgPool2d((2, 3))", "nn.AdaptiveAvgPool2d((None, 1))",
    "nn.AdaptiveAvgPool2d(3)",
)  # fmt: skip
POOL_CALLS = (
    "F.avg_pool2d({0}, 2)", "F.max_pool2d({0}, 2)", "F.adaptive_avg_pool2d({0}, 1)",
    "F.avg_pool2d({0}, {0}.shape[2:])", "{0}.mean((2, 3))", "{0}.mean((2, 3), keepdim=True)", "{0}.mean(3)",
    "{0}.mean(-2, keepdim=True)", "torch.mean({0}, [-1, -2])",
)  # fmt: skip
PADS = (
    "nn.ZeroPad2d(1)", "nn.ZeroPad2d((1, 0, 2, 1))", "nn.ConstantPad2d(1, 0.5)", "nn.ReflectionPad2d(1)",
    "nn.ReplicationPad2d((0, 1, 1, 0))", "nn.ZeroPad2d(-1)", "nn.ConstantPad2d((1, 1, 0, 0), -1.0)",
)  # fmt: skip
PAD_CALLS = (
    "F.pad({0}, (1, 1))", "F.pad({0}, (0, 1, 1, 0))", "F.pad({0}, (0, 0, 0, 0, 0, 1))", "F.pad({0}, (1, -1))",
    "F.pad({0}, (1, 1, 1, 1), mode='reflect')", "F.pad({0}, (1, 0, 1, 0), 'constant', 0.25)",
    "F.pad({0}, (0, 2), 'replicate')",
)  # fmt: skip
CUTS = (
    "{0}.chunk(2, 1)[0]", "{0}.chunk(2, 1)[1]", "torch.split({0}, 1, 1)[-1]", "{0}.split(2, dim=1)[0]", "{0}[:, ::2]",
    "{0}[:, 1:]", "{0}[:, -1:]", "{0}[..., 1:]", "{0}[..., ::2]", "{0}[:, :, ::2]", "{0}[:, :, 1:-1]", "{0}[:, 0]",
    "{0}[:, 1]", "{0}[..., -1]", "{0}[:, :, :, 0]", "{0}[:, None]", "torch.chunk({0}, 3, dim=-1)[0]",
)  # fmt: skip
SHAPES = (
    "{0}.flatten(1)", "torch.flatten({0}, 1)", "{0}.view({0}.size(0), -1)", "{0}.reshape({0}.size(0), -1)",
    "{0}.reshape(-1, {s[1]}, 1, 1)", "{0}.reshape(len({0}), -1)", "{0}.unflatten(1, (1, -1))",
    "{0}.unflatten(1, (-1, 2))", "{0}.flatten(2)", "{0}.flatten(1, 2)", "{0}.unsqueeze(-1)", "{0}.unsqueeze(2)",
    "{0}.squeeze(-1)", "torch.squeeze({0}, 2)", "{0}.view({0}.shape[0], 1, -1)", "{0}.unsqueeze(-1).unsqueeze(-1)",
    "{0}.view(-1, 2, 2, 1)",
)  # fmt: skip
JOINS = (
    "{0} + {1}", "torch.add({0}, {1})", "{0} - {1}", "{0}.add({1}, alpha=0.5)", "torch.cat([{0}, {1}], 1)",
    "torch.cat(({0}, {1}), dim=1)", "torch.cat([{0}, {0} + {1}], 1)", "torch.cat([{1}, {0}, {1}], 1)",
    "torch.cat([{0}, {1}], -1)", "torch.relu({0}) + torch.relu({1})", "torch.cat([torch.relu({0}), {1}], 1)",
    "0.5 * ({0} + {1})",
)  # fmt: skip
NORMS = {
    2: ("nn.BatchNorm1d({s[1]})", "nn.BatchNorm1d({s[1]}, affine=False)"), 3: ("nn.BatchNorm1d({s[1]})",),
    4: ("nn.BatchNorm2d({s[1]})", "nn.BatchNorm2d({s[1]}, affine=False)", "nn.BatchNorm2d({s[1]}, eps=1e-3)"),
}  # fmt: skip
NEURONS = (
    "IFNode()", "IFNode(v_reset=None)", "LIFNode(tau=2.0)", "LIFNode(tau=3.0, decay_input=False, v_reset=None)",
    "IFNode(0.5)", "LIFNode(tau=1.25, v_threshold=0.75, v_reset=-0.5)",
    "LIFNode(v_threshold=torch.rand({s[1]}) + 0.5)",
)  # fmt: skip
# Statements on a module or tensor that has weights.
EDITS = (
    "{}.weight.zero_()", "{}.weight[0].zero_()", "{}.weight.mul_(1e-30)", "{}.weight.mul_(1e6)",
    "{}.weight.mul_(1e-4)", "{}.weight.fill_(1.0)", "{}.weight.fill_(1.0)[0].add_(1e-7)", "{}.weight.abs_()",
    "{}.weight.neg_()", "{}.weight.abs_().neg_()", "{}.weight[-1].mul_(1e4)", "{}.weight.mul_(8).round_().div_(8)",
    "{}.weight.mul_(10)",
)  # fmt: skip
BIAS_EDITS = ("{}.bias.zero_()", "{}.bias.fill_(-5.0)", "{}.bias.mul_(1e6)", "{}.bias.add_(3.0)", "{}.bias.mul_(1e-30)")
NORM_EDITS = (
    "{}.running_var.zero_()", "{}.running_mean.add_(50)", "{}.running_var.fill_(1e-12)", "{}.weight.zero_()",
    "{}.weight.neg_()", "{}.bias.fill_(2)",
)  # fmt: skip
DATA = ("rng.random(shape)", "rng.standard_normal(shape)")
ODD_DATA = (
    "np.zeros(shape)", "np.ones(shape)", "-rng.random(shape)", "rng.random(shape) * 255", "rng.random(shape) * 1e-6",
    "rng.random(shape) * 1e6", "rng.random(shape) < 0.2", "np.round(rng.random(shape) * 4)",
    "rng.standard_cauchy(shape)", "rng.random(shape) < 0.02",
)  # fmt: skip
# Of any target, and of one.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "bias": ("keep", "keep", "strip", "keep", "error"),
    "reset": ("zero",),
    "threshold": ("max", "percentile"),
    "per": ("layer",),
    "v0": (0.0, 0.25),
}
BITS, ENCODINGS = (2, 4, 6, 12, 16), ("rate", "bernoulli", "spikes", "constant")
TARGET_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "reference": {"weight_bits": BITS, "encoding": ENCODINGS},
    "lava": {"weight_bits": BITS[:3], "encoding": ENCODINGS, "neuron": ("sigma-delta",), "form": ("netx", "process")},
    "lynxi": {"weight_bits": BITS, "encoding": ENCODINGS, "form": ("outer-loop", "unrolled"), "batch": (2, 4, 7)},
    "chip": {"weight_bits": BITS[:3], "encoding": ENCODINGS[:3], "readout": (True,), "monitor": ("conv0",)},
}

Make = Callable[[int], int | None]  # from a value to a new one, or None where the step does not fit


class Writer:
    """Writes a case, trying each step before it is taken."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.wild = float(self.rng.choice([0.0, 0.1, 0.4]))  # how often something odd is chosen
        self.own_neurons = self.coin(0.08)
        self.inputs = tuple(self.shape() for _ in range(self.pick([1] * 8 + [2, 3])))
        self.draft = Draft(self.inputs, seed)
        self.steps: list[Step] = []

    def coin(self, p: float = 0.5) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def odd(self) -> bool:
        return self.coin(self.wild)

    def shape(self) -> tuple[int, ...]:
        kind = self.rng.random()
        if kind < 0.2:
            return (self.pick([1, 2, 3, 4, 7, 10, 17]),)
        if kind < 0.2 + 0.2 * self.wild:
            return (self.pick([1, 2, 3, 5]), self.pick([1, 2, 4, 7, 11]))
        height = self.pick([1, 2, 3, 4, 5, 6, 7, 8, 8, 11, 12])
        return (self.pick([1, 1, 2, 2, 3, 4]), height, self.pick([1, 2, 3, 5, 7, 8, 12]) if self.coin(0.3) else height)

    # --- steps: each gives the new value, or None where it does not fit ---

    def add(self, text: str, *args: int, own: str = "", name: str = "") -> int | None:
        name = f"{name}{len(self.steps)}" if own and not name[-1:].isdigit() else name
        step = Step(text, args, own, name)
        try:
            value = self.draft.add(step)
        except Exception:  # noqa: BLE001 (torch says in many ways that shapes do not fit)
            return None
        if value[0].numel() > MOST or not value.numel() or len(value.shape) > 5:
            self.draft.values.pop()
            if own and all(step.name != name for step in self.steps):
                del self.draft.modules[name], self.draft.owned[name]
            return None
        self.steps.append(step)
        return len(self.draft.values) - 1

    def sizes(self, x: int) -> tuple[int, ...]:
        return tuple(self.draft.values[x].shape)

    def layer(self, x: int) -> int | None:
        """A layer of weights, or one that is there already."""
        owners = [
            step for step in self.steps if step.own.startswith(("nn.Conv2d", "nn.Linear", "nn.Sequential(nn.Conv2d"))
        ]
        if owners and self.coin(0.1):
            shared = self.pick(owners)
            return self.add(shared.text, x, own=shared.own, name=shared.name)
        if len(self.sizes(x)) == 4 and not (self.odd() and self.coin(0.2)):
            return self.convolution(x)
        out, bias = self.pick([1, 2, 3, 5, 8]), "" if self.coin(0.6) else ", bias=False"
        if self.odd():
            call = self.pick(["F.linear({0}, {m})", "{0} @ {m}.t()", "torch.matmul({0}, {m}.t())"])
            weight = f"torch.randn({out}, {self.sizes(x)[-1]}) / {self.sizes(x)[-1] ** 0.5:.2f}"
            return self.add(call, x, own=f"nn.Parameter({weight})" if self.coin() else weight, name="weight")
        axis = len(self.sizes(x)) - 1
        return self.add("{m}({0})", x, own=f"nn.Linear({{s[{axis}]}}, {out}{bias})", name="fc")

    def convolution(self, x: int) -> int | None:
        size = self.sizes(x)[2:]
        kernel: Any = self.pick([1, 2, 3, 3, 3, 5])
        if self.odd():
            kernel = (self.pick([1, 2, 3]), self.pick([1, 2, 3, 4]))
        options = "" if self.coin(0.6) else ", bias=False"
        if self.coin(0.5):
            options += f", padding={self.pick([1, 1, 2, (0, 1), (2, 1), chr(39) + 'same' + chr(39)])}"
        if self.coin(0.2):
            options += f", stride={self.pick([2, 2, (1, 2), 4, 3])}"
        if self.coin(0.15 * (1 + 2 * self.wild)):
            options += f", dilation={self.pick([2, (1, 2), 3])}"
        if "padding" in options and self.odd():
            options += f", padding_mode={self.pick(['replicate', 'reflect', 'circular'])!r}"
        out = str(self.pick([1, 2, 3, 4, 6]))
        if self.coin(0.2):
            out, options = self.pick(
                [("{s[1]}", ", groups={s[1]}"), ("2 * {s[1]}", ", groups={s[1]}"), ("4", ", groups=2")]
            )
        own = f"nn.Conv2d({{s[1]}}, {out}, {kernel}{options})"
        if self.coin(0.1):
            own = f"nn.Sequential({own}, nn.BatchNorm2d({out}), nn.ReLU())"
        made = self.add("{m}({0})", x, own=own, name="conv")
        if made is None and min(size) < 5:  # what fits any map
            made = self.add("{m}({0})", x, own=f"nn.Conv2d({{s[1]}}, {self.pick([1, 2, 4])}, 1)", name="conv")
        return made

    def norm(self, x: int) -> int | None:
        known = NORMS.get(len(self.sizes(x)))
        return self.add("{m}({0})", x, own=self.pick(known), name="bn") if known else None

    def activation(self, x: int) -> int | None:
        if self.own_neurons:
            return self.add("{m}({0})", x, own=self.pick(NEURONS), name="neuron")
        if self.odd() and self.coin():
            return self.add(self.pick(ODD), x)
        if self.coin(0.35):
            shared = [step for step in self.steps if step.own.startswith("nn.ReLU")]
            if shared and self.coin(0.4):
                return self.add("{m}({0})", x, own=shared[0].own, name=shared[0].name)
            return self.add("{m}({0})", x, own=self.pick(RELUS) if self.coin(0.6) else "nn.ReLU()", name="act")
        return self.add(self.pick(RELU_CALLS) if self.coin(0.7) else "torch.relu({0})", x)

    def block(self, x: int) -> int | None:
        y = self.norm(x) if self.odd() and self.coin(0.2) else x
        y = self.layer(x if y is None else y)
        if y is None:
            return None
        if self.coin(0.3):
            y = self.norm(y) or y
        if not (self.odd() and self.coin(0.3)):
            y = self.activation(y) or y
        return y

    def residual(self, x: int) -> int | None:
        """A sum with what a layer makes of it, where the shapes agree."""
        sizes = self.sizes(x)
        if len(sizes) == 4:
            kernel = self.pick([1, 3])
            own = (
                f"nn.Conv2d({{s[1]}}, {{s[1]}}, {kernel}, padding={kernel // 2}{'' if self.coin() else ', bias=False'})"
            )
        else:
            own = f"nn.Linear({{s[{len(sizes) - 1}]}}, {{s[{len(sizes) - 1}]}})"
        y = self.add("{m}({0})", x, own=own, name="branch")
        if y is None:
            return None
        if self.coin(0.3):
            y = self.norm(y) or y
        if self.coin(0.3):
            y = self.activation(y) or y
        y = self.add(self.pick(["{0} + {1}", "{1} + {0}", "torch.add({0}, {1})", "{0}.add_({1})"]), y, x)
        return None if y is None else (self.activation(y) or y)

    def join(self, x: int) -> int | None:
        others = [i for i in range(len(self.draft.values)) if i != x and self.sizes(i)[2:] == self.sizes(x)[2:]]
        other = self.pick(others) if others else self.block(x)
        return None if other is None else self.add(self.pick(JOINS), x, other)

    def branches(self, x: int) -> int | None:
        """Two layers on one value, concatenated."""
        a = self.block(x)
        b = x if self.coin(0.3) else self.block(x)
        return None if a is None or b is None else self.add(self.pick(JOINS), a, b)

    def pool(self, x: int) -> int | None:
        if self.odd() or self.coin(0.2):
            return self.add(self.pick(POOL_CALLS), x)
        return self.add("{m}({0})", x, own=self.pick(POOLS), name="pool")

    def pad(self, x: int) -> int | None:
        return (
            self.add(self.pick(PAD_CALLS), x)
            if self.coin()
            else self.add("{m}({0})", x, own=self.pick(PADS), name="pad")
        )

    def cut(self, x: int) -> int | None:
        return self.add(self.pick(CUTS), x)

    def reshape(self, x: int) -> int | None:
        return self.add(self.pick(SHAPES), x)

    def arithmetic(self, x: int) -> int | None:
        if self.coin(0.7):
            return self.add(self.pick(ARITHMETIC), x)
        text, own = self.pick(KEPT)
        if own == "per channel":
            own = f"torch.rand({{s[1]}}{', 1' * (len(self.sizes(x)) - 2)})"
            own = f"nn.Parameter({own})" if self.coin(0.3) else own
        return self.add(text, x, own=own, name="constant")

    def through(self, x: int) -> int | None:
        if self.coin():
            return self.add(self.pick(THROUGH), x)
        return self.add("{m}({0})", x, own=self.pick(THROUGH_MODULES), name="same")

    def head(self, x: int) -> int | None:
        y = self.add(self.pick(SHAPES[:4]), x) if len(self.sizes(x)) > 2 else x
        return (
            None
            if y is None
            else self.add("{m}({0})", y, own=f"nn.Linear({{s[1]}}, {self.pick([1, 2, 3, 5])})", name="head")
        )

    # --- the whole ---

    def write(self) -> Case:
        usual: list[Make] = [self.block, self.block, self.block, self.residual, self.branches, self.pool]
        rare: list[Make] = [self.pad, self.cut, self.cut, self.reshape, self.arithmetic, self.through]
        rare += [self.join, self.norm, self.layer, self.activation]
        x = 0
        for other in range(1, len(self.inputs)):  # several inputs meet soon
            self.add("torch.relu({0})", other)
        for _ in range(self.pick([1, 2, 3, 3, 4, 5, 7])):
            kinds = rare if self.coin(self.wild or 0.04) else usual
            from_here = x if self.coin(0.85) else int(self.rng.integers(len(self.draft.values)))
            x = self.pick(kinds)(from_here) or x
        if not self.steps:
            x = self.block(x) or self.activation(x) or x
        if self.coin(0.6):
            x = self.head(x) or x
        outputs = (x,) if self.coin(0.85) else (x, self.pick(range(len(self.inputs), len(self.draft.values)) or [x]))
        data = self.pick(ODD_DATA) if self.odd() and self.coin() else DATA[0] if self.coin(0.8) else DATA[1]
        precision = self.pick(["double", "half"]) if self.coin(0.06) else "float"
        samples = self.pick([1, 2, 3, 8, 8, 8, 16])
        case = Case(self.inputs, tuple(self.steps), outputs, self.edits(), precision, data, samples, seed=self.seed)
        return case

    def edits(self) -> tuple[str, ...]:
        found = list[str]()
        for step in {step.name: step for step in self.steps}.values():
            if not self.coin(0.02 + 0.3 * self.wild**2):
                continue
            if step.own.startswith(("nn.Conv2d", "nn.Linear")):
                found.append(self.pick(BIAS_EDITS if "bias=False" not in step.own and self.coin(0.3) else EDITS))
            elif step.own.startswith("nn.BatchNorm") and "affine=False" not in step.own:
                found.append(self.pick(NORM_EDITS))
            else:
                continue
            found[-1] = found[-1].format(f"model.{step.name}")
        return tuple(found)

    def options(self, target: str) -> tuple[tuple[str, Any], ...]:
        """Mostly what users leave as it is."""
        found: dict[str, Any] = {"timesteps": self.pick([1, 2, 4, 4, 6, 8, 8, 16, 32])}
        choices = {**OPTIONS, **TARGET_OPTIONS["chip" if target in CHIPS else target]}
        for name, known in choices.items():
            if self.coin(0.08) and not (self.own_neurons and name in OPTIONS):
                found[name] = self.pick(known)
        if target in CHIPS and self.coin(0.3):
            found["bias"] = "keep"
        if found.get("neuron") == "sigma-delta":
            found = {
                name: value for name, value in found.items() if name in ("timesteps", "neuron", "bias", "weight_bits")
            }
        return tuple(found.items())


def generate(seed: int, target: str | None = None) -> Case:
    """The case of a seed, for a target, or for the one that the seed draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        writer = Writer(seed)
        case = writer.write()
    drawn = "lynxi" if writer.own_neurons and writer.coin(0.8) else writer.pick(TARGETS)
    chosen = target or drawn
    return replace(case, target=chosen, options=writer.options(chosen))

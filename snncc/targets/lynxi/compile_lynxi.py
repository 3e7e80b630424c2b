"""Compiles the network beside this file with Lynxi's lyngor, to a folder that run.py takes.

    python compile_lynxi.py [--out lynxi_out] [--custom-ops libcustom_ops.so] [--profiler]

Stands alone: it needs lyngor and the torch that came with it, numpy, and model.py, network.json and network.npz of this
folder; Python 3.6 is enough. Where torch is too old to be taught operations in Python (before 2.0), --custom-ops names
the library that LynxiTech/BIDL builds (lynadapter/custom_op_in_pytorch).

Honest limits: lyngor is on no registry, and THIS HAS NEVER BEEN RUN WITH IT. It makes the calls that its users publish:
LynxiTech/BIDL (lynadapter/model_operate.py, custom_op_in_lyn/custom_op_my_lif.py) for one time step, the "outer loop",
and spikingjelly (activation_based/lynxi_exchange.py) for the unrolled network.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

FOLDER = Path(__file__).resolve().parent


def register(lyngor: Any) -> None:
    """Tell lyngor what the custom operations are on the chip, as BIDL's custom_op_my_lif.py does: `pfit` computes
    const0 + const1 * x between th0 and th1, and else0 elsewhere."""

    def resetwithdecay(inputs: Sequence[Any], input_types: Any) -> Any:
        x, theta, v_0, alpha, beta = inputs[:5]
        return lyngor.apu.pfit(
            data=x, th0=-100.0, th1=theta, cfg=12, const0=beta, const1=alpha, const2=0, const3=0,
            else0=v_0 * alpha + beta, else1=0,
        )  # fmt: skip

    def cmpandfire(inputs: Sequence[Any], input_types: Any) -> Any:
        x, theta = inputs[:2]
        return lyngor.apu.pfit(
            data=x, th0=theta, th1=0x7C00, cfg=12, const0=1, const1=0, const2=0, const3=0, else0=0, else1=0
        )

    def load(inputs: Sequence[Any], input_types: Any) -> Any:
        names = (
            "data", "flag", "is_initial", "shape", "dtype", "offset", "step", "uselookup", "mode", "group_id",
        )  # fmt: skip
        return lyngor.apu.load(**dict(zip(names, inputs)))

    def save(inputs: Sequence[Any], input_types: Any) -> Any:
        return lyngor.apu.save(*inputs[:8])

    for function in (resetwithdecay, cmpandfire, load, save):
        lyngor.pytorch_convert_map.update({"custom::" + function.__name__: function})


def build(
    lyngor: Any, module: Any, network: Dict[str, Any], inputs: Sequence[Any], out: str, profiler: bool = False
) -> Path:
    """Call lyngor. The folder with the compiled network, which it names Net_0."""
    shapes = {entry["argument"]: tuple(x.shape) for entry, x in zip(network["inputs"], inputs)}
    model = lyngor.DLModel()
    if network["form"] == "unrolled":
        model.load(module, model_type="Pytorch", in_type="float16", out_type="float16", inputs_dict=shapes)
        builder = lyngor.Builder(target="apu", is_map=True)
        path = builder.build(model.graph, model.params, out_path=out, apu_only=True)
    else:
        lyngor.op_graph_batch_limit = 25
        register(lyngor)
        model.load(module, "Pytorch", inputs_dict=shapes, in_type="float16")
        builder = lyngor.Builder(target="apu", is_map=True)
        batch = network["batch"]
        options = {"version": 0} if batch == 1 else {"version": 1, "run_batch": batch}
        path = builder.build(model.mod, model.params, 3, out_path=out, profiler=profiler, **options)
    return Path(path) / "Net_0"


def main(arguments: Optional[List[str]] = None) -> int:
    """The command line. Returns the exit status: 0 compiled, 2 could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default=str(FOLDER / "lynxi_out"), help="the folder to write")
    parser.add_argument("--custom-ops", help="BIDL's libcustom_ops.so, for a torch before 2.0")
    parser.add_argument("--profiler", action="store_true", help="lyngor's own profile of the network")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(FOLDER))
    try:
        import lyngor
        import model as snncc_model
    except ImportError as error:
        print(f"error: {error}: lyngor, torch and numpy must be in this Python")
        return 2
    network, arrays = snncc_model.read(FOLDER)
    try:
        snncc_model.register(options.custom_ops)
    except (AttributeError, TypeError, OSError) as error:
        print(f"error: the custom operations are not to be had, see --custom-ops: {error}")
        return 2
    module = snncc_model.build(network, arrays, precision="float16")
    path = build(lyngor, module, network, snncc_model.example(network), options.out, options.profiler)
    print(f"compiled to {path}; now: python run.py --model {path} --input input.npz --output output.npz")
    return 0


if __name__ == "__main__":
    sys.exit(main())

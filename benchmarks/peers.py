"""The environments of the libraries that the benchmarks compare with: one venv each, built once, outside the checkout.

    python benchmarks/peers.py               # build them all, print their interpreters
    python benchmarks/peers.py spikingjelly

A peer gets exactly what the part of it that we measure imports, so that nothing large or unrelated is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """What an environment is made of; its folder's name has the hash of it, so a change here builds a new one."""

    name: str
    python: str  # major.minor
    install: tuple[str, ...]  # one `pip install` line each
    check: str  # a statement that must run: the imports that the benchmarks use


PEERS = {
    peer.name: peer
    for peer in [
        Peer(
            "spikingjelly",
            python="3.11",
            install=(
                "torch==2.13.0 numpy==2.4.6",
                # What `ann2snn` imports. The package also asks for torchvision, torchaudio, tensorboard, h5py, scipy
                # and matplotlib, for its data sets, examples and plots; the converter runs unchanged without them.
                "loguru==0.7.3 requests tqdm",
                "--no-deps spikingjelly==2.0.0",
                # For snncc itself, which lynxi_parity.py runs here, on spikingjelly's own modules.
                "networkx rich==15.0.0 safetensors==0.8.0 onnx==1.23.2",
            ),
            check="import spikingjelly.activation_based.lynxi_exchange, onnx, rich, safetensors\n"
            "from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe",
        ),
        Peer(
            "sinabs",
            python="3.10",  # the only one that samna 0.7.1.0, the last real package of it, is for
            install=(
                # Our own torch's version, so that the two differ in nothing else. There is no build without CUDA for
                # this Python on the registry: 4.8 GB, in less than a minute where the network is good.
                "torch==2.13.0 numpy==1.26.4",
                # What sinabs imports. It asks for samna>=0.33, all of which are shells; sinabs_peer.py makes up for it.
                "samna==0.7.1.0 nir==1.0.4 nirtorch==2.0.2 matplotlib==3.10.9 pbr==7.1.3",
                "--no-deps sinabs==3.1.3",
            ),
            check="import nirtorch, samna, sinabs.from_torch",
        ),
    ]
}


def interpreter(name: str) -> Path:
    """The Python of peer `name`; builds its environment where it is missing."""
    peer = PEERS[name]
    digest = hashlib.sha256(repr(peer).encode()).hexdigest()[:8]
    folder = cache() / "peers" / f"{name}-{digest}"
    python = folder / "bin" / "python"
    ready = folder / "ready"  # written last: a build that was cut off is built again
    if not ready.exists():
        print(f"building {folder}", file=sys.stderr)
        _run(find_python(peer.python), "-m", "venv", "--clear", folder)
        for line in peer.install:
            _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *line.split())
        _run(python, "-c", peer.check)
        ready.touch()
    return python


def cache() -> Path:
    """SNNCC_CACHE, or `snncc` in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("SNNCC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snncc"


def find_python(version: str) -> Path:
    """An interpreter of `version` (major.minor): this one, on the PATH, or pyenv's."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in _candidates(version):
        # A shim of pyenv is on the PATH even where the version behind it is not chosen: only running it tells.
        answer = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:
            return candidate
    raise SystemExit(f"no Python {version} found: put python{version} on the PATH")


def _candidates(version: str) -> Iterator[Path]:
    yield Path(sys.executable)
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted((pyenv / "versions").glob(f"{version}.*/bin/python"), reverse=True)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    for peer_name in sys.argv[1:] or PEERS:
        print(peer_name, interpreter(peer_name))

"""Real samna, in the Python of its own environment, asked about configurations: what vendor tests share."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snncc.targets.dynapcnn import run
from snncc.targets.dynapcnn.chips import Chip

RUN = Path(run.__file__)

# Prints of each configuration samna's own text of what it read, and each memory write that it would send to the chip.
READ_BACK = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import run, samna
for path in sys.argv[2:]:
    data = json.loads(Path(path).read_text())
    module, configuration = run.load(samna, data)
    names = [n for n in dir(module.event) if n.endswith(("config_to_event", "configuration_to_event"))]
    kinds = {"WriteWeightValue": "weight", "WriteBiasValue": "bias", "WriteNeuronValue": "neuron_state"}
    def writes(events):
        found = [(type(e).__name__, e) for e in events]
        return [(n, e.layer, e.address, getattr(e, kinds[n])) for n, e in found if n in kinds]
    print("\\n" + run.MARK + json.dumps({
        "text": json.loads(configuration.to_json()),
        "writes": writes(getattr(module.event, names[0])(configuration)),
        "reset": writes(run.initial_states(module, data)),
    }))
"""

# Validates the lines of a file. Samna is imported once; a fork asks on and on, and where one dies, which is an answer,
# the next goes on behind.
ASK = """
import json, os, signal, sys
import samna

def ask(line):
    module, name, text = line.split(" ", 2)
    module = getattr(samna, module)
    configuration = getattr(module.configuration, name)()
    try:
        configuration.from_json(text)
        valid, message = module.validate_configuration(configuration)
    except RuntimeError as error:
        valid, message = False, f"cannot be read: {error}"
    return bool(valid), message

starts = [0]  # of the lines, and the end
with open(sys.argv[1], "rb") as file:
    for line in file:
        starts.append(starts[-1] + len(line))
answers = []
while len(answers) < len(starts) - 1:
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        with open(sys.argv[1], "rb") as file, os.fdopen(into, "w", buffering=1) as pipe:
            file.seek(starts[len(answers)])
            for line in file:
                pipe.write(json.dumps(ask(line.decode())) + "\\n")
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        answers += [json.loads(answer) for answer in pipe]
    status = os.waitpid(child, 0)[1]
    if len(answers) < len(starts) - 1:
        died = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
        answers.append((False, f"crash: {died}"))
with open(sys.argv[2], "w") as file:
    json.dump(answers, file)
"""


@dataclass(frozen=True)
class Samna:
    """The samna environment, and where to put the files that it reads."""

    python: Path
    folder: Path

    def write(self, texts: Iterable[str]) -> list[Path]:
        paths = []
        for i, text in enumerate(texts):
            paths.append(self.folder / f"{i}.json")
            paths[-1].write_text(text, encoding="utf-8")
        return paths

    def judge(self, texts: Iterable[str]) -> list[dict[str, object]]:
        """What the emitted runner says of each configuration, all in one process."""
        line = [self.python, RUN, "--validate", "--json", *self.write(texts)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        answers = [json.loads(answer) for answer in done.stdout.splitlines()]
        assert done.returncode == (2 if answers[0]["valid"] is None else not all(a["valid"] for a in answers)), done
        return answers

    def ask(self, chips: Iterable[Chip], texts: Iterable[str]) -> list[tuple[bool, str]]:
        """The same for thousands, whose texts may be anything: whether each is valid, and what is not."""
        asked, answered = self.folder / "asked", self.folder / "answered"
        with asked.open("w", encoding="utf-8") as file:
            for chip, text in zip(chips, texts, strict=True):
                file.write(f"{chip.samna_module} {chip.samna_configuration} {text}\n")
        subprocess.run([self.python, "-c", ASK, asked, answered], capture_output=True, text=True, check=True)
        asked.unlink()  # hundreds of MB
        return [(valid, message) for valid, message in json.loads(answered.read_text(encoding="utf-8"))]

    def read_back(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Of each configuration samna's own "text" of it, the memory "writes" (kind, core, address, value) that it
        makes of it, and the runner's "reset" of the neurons."""
        line = [self.python, "-c", READ_BACK, RUN.parent, *self.write(texts)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        found = [json.loads(out[len(run.MARK) :]) for out in done.stdout.splitlines() if out.startswith(run.MARK)]
        assert len(found) == len(texts)
        return found

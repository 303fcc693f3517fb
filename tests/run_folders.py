"""What tests on runs share: reading a run's folder, killing one in the middle, commands that must fail."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from pointadapt import cli
from pointadapt.run import Run

HERE = Path(__file__).parent
#: Where a process of its own finds the package and the helpers of the tests.
PATHS = [str(HERE), str(HERE.parent / "src")]

KILLED = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from tiny_objects import object_run
from tiny_runs import tiny_run
import pointadapt.checkpoint as checkpoint
from pointadapt.train import train

write = checkpoint.write_bytes
def write_and_tell(file, content):
    write(file, content)
    print("saved", flush=True)
checkpoint.write_bytes = write_and_tell
train({run})
"""


def rows(run: Run) -> list[dict]:
    """metrics.jsonl without the times."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def adapter(run: Run, which: str = "last") -> dict[str, torch.Tensor]:
    """The tensors of adapter/best or adapter/last."""
    return load_file(run.folder / "adapter" / which / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def train_and_kill(run: str, pause: float) -> None:
    """Train ``run``, an expression, in a process that gets SIGKILL ``pause`` seconds after its second state."""
    script = KILLED.format(paths=PATHS, run=run)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline() == b"saved\n"
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def refused(capsys, *arguments) -> str:
    """Run a command that must fail with exit code 2 and one line on stderr; returns the line."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("pointadapt:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def table(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, by heading."""
    with open(file) as stream:
        return list(csv.DictReader(stream))

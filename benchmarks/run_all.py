"""Run every benchmark program and write what they print into benchmarks/README.md.

python benchmarks/run_all.py [--quick] [further options, handed to every program: --threads 2 --repeats 5 --clock wall]
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
#: Program, and its options in a quick run.
PROGRAMS = {
    "sonata_forward.py": ["--voxels", "10000", "20000"],
    "official.py": ["--voxels", "10000"],
    "parts.py": ["--voxels", "10000"],
    "training_step.py": ["--voxels", "5000"],
    "adapters.py": ["--voxels", "10000"],
    "linear_probe.py": ["--voxels", "5000"],
    "points.py": ["--points", "50000"],
    "loader.py": ["--steps", "6"],
}


def main() -> None:
    further = [argument for argument in sys.argv[1:] if argument != "--quick"]
    quick = "--quick" in sys.argv[1:]
    intro = (HERE / "intro.md").read_text().rstrip()
    pages = [intro, f"Made {datetime.date.today()} by `python benchmarks/run_all.py {' '.join(sys.argv[1:])}`".rstrip()]
    for program, options in PROGRAMS.items():
        command = [sys.executable, str(HERE / program), *(options if quick else []), *further]
        print(program, file=sys.stderr)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and "needs spconv" in done.stderr:
            pages.append(f"`python benchmarks/{program}` was not run: spconv is not installed.")
            continue
        if done.returncode:
            sys.exit(f"{program} failed:\n{done.stderr}")
        pages.append(f"{done.stdout.strip()}\n\n`python benchmarks/{program}`")
    pages[1] += "."
    (HERE / "README.md").write_text("\n\n".join(pages) + "\n")


if __name__ == "__main__":
    main()

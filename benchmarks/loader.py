"""Whether the model ever waits for its data: training steps with 0 and 2 workers on a generated data set.

python benchmarks/loader.py [--points 20000] [--steps 12]

"waiting" is the time that the loop stands in ``next(loader)`` behind the first batches, which start the workers.
Meaningful on an idle machine only: workers need cores of their own, and the clock is always the wall's.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import arguments, machine, table

from pointadapt.data.synthetic import write_rooms
from pointadapt.domains.domain import open_domain
from pointadapt.domains.models import build_model
from pointadapt.run import Run
from pointadapt.train import Batches, make_accelerator


def main() -> None:
    args = arguments(__doc__, points=20_000, steps=12)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_rooms(data, 4, "b", seed=1000, val=1, test=1)
        run = Run(data, backbone="nano", method="gem", points=args.points, batch_size=1, steps=args.steps)
        model = build_model(open_domain(run)).train()
        task, rows = model.get_base_model(), []
        for workers in (0, 2):
            batches = Batches(open_domain(replace(run, num_workers=workers)), make_accelerator(run))
            loaded, waiting, total = iter(batches.loader(0)), 0.0, 0.0
            for step in range(args.steps):
                start = time.perf_counter()
                batch = next(loaded)
                ready = time.perf_counter()
                task.loss(model(batch["point"]), batch["segment"]).backward()
                model.zero_grad()
                if step >= 2:
                    waiting, total = waiting + ready - start, total + time.perf_counter() - start
            rows.append([workers, total / (args.steps - 2), waiting / total])
    print(f"## Loading data, the nano backbone\n\n{machine(args)}.\n")
    print(table(["workers", "seconds a step", "share spent waiting"], rows))


if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("file_system")
    main()

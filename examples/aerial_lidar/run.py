"""Adapt nano to four airborne tiles with every method, three seeds, and score two other tiles.

    python examples/aerial_lidar/run.py TILES --out runs/aerial        # TILES: folder with the six .laz files
    python examples/aerial_lidar/run.py TILES --out runs/aerial --methods gem --seeds 1

Finished cells are kept in OUT/results.json and not run again. There is no validation split: the last step counts, and
the test tiles choose nothing. Prints the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pointadapt as pa

#: Arm -> (method, weights of the backbone, settings that differ from RECIPE)
ARMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "linear probe, random weights": ("linear", "random", {}),
    "linear probe": ("linear", "default", {}),
    "LoRA": ("lora", "default", {}),
    "GEM": ("gem", "default", {}),
    "PointTPA": ("pointtpa", "default", {}),
    "full fine-tuning": ("full", "default", {"backbone_lr": 1e-3}),
}
RECIPE: dict[str, Any] = {"steps": 300, "batch_size": 2, "points": 8000, "lr": 3e-3, "head_lr": 3e-3}


def cell(tiles: Path, out: Path, arm: str, seed: int, threads: int) -> dict[str, Any]:
    """Train and score one arm with one seed."""
    method, weights, changes = ARMS[arm]
    folder = out / f"{arm.replace(',', '').replace(' ', '-')}-{seed}"
    settings = {**RECIPE, **changes, "eval_every": RECIPE["steps"], "threads": threads}
    run = pa.Run(tiles, folder, method=method, weights=weights, seed=seed, **settings)
    trained = pa.train(run, overwrite=True)
    scored = pa.evaluate(run, "test", checkpoint="last")
    return {
        **{key: scored[key] for key in ("miou", "macc", "allacc")},
        "iou": dict(zip(scored["classes"], scored["iou"], strict=True)),
        "parameters": trained["parameters"],
        "adapter_mb": sum(f.stat().st_size for f in (folder / "adapter" / "last").glob("*.safetensors")) / 1e6,
        "seconds": trained["seconds"],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in markdown."""
    classes = list(next(iter(results.values()))["iou"])
    head = ["method", "trained weights", "adapter MB", "mIoU", "OA", *classes, "s"]
    rows = [head, ["---"] * len(head)]
    for arm in ARMS:
        cells = [value for key, value in results.items() if key.rsplit("/", 1)[0] == arm]
        if not cells:
            continue

        def spread(values: list[float]) -> str:
            middle = f"{100 * statistics.mean(values):.1f}"
            return f"{middle} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else middle

        rows.append(
            [
                arm,
                f"{cells[0]['parameters']['trained']:,}",
                f"{cells[0]['adapter_mb']:.2f}",
                spread([c["miou"] for c in cells]),
                spread([c["allacc"] for c in cells]),
                *(f"{100 * statistics.mean(c['iou'][name] for c in cells):.1f}" for name in classes),
                f"{statistics.mean(c['seconds'] for c in cells):.0f}",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/aerial"))
    parser.add_argument("--methods", nargs="+", choices=[*{m for m, _, _ in ARMS.values()}], help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each run; 0 = torch's default")
    args = parser.parse_args()
    scans = args.out / "tiles"
    scans.mkdir(parents=True, exist_ok=True)
    for file in args.tiles.glob("test_data_770*.laz"):
        if not (scans / file.name).exists():
            shutil.copyfile(file, scans / file.name)
    shutil.copyfile(Path(__file__).with_name("dataset.yaml"), scans / "dataset.yaml")
    file = args.out / "results.json"
    for seed in range(args.seeds):
        for arm, (method, _, _) in ARMS.items():
            results = json.loads(file.read_text()) if file.is_file() else {}
            if f"{arm}/{seed}" in results or (args.methods and method not in args.methods):
                continue
            results[f"{arm}/{seed}"] = cell(scans, args.out, arm, seed, args.threads)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1) + "\n")
            part.replace(file)
    print(table(json.loads(file.read_text())))


if __name__ == "__main__":
    main()

"""GEM and its baselines on S3DIS, 6-fold: six runs, each tested on one area, and the scores of all points together.

pointadapt init data/s3dis --layout s3dis --variant 6fold
python recipes/s3dis_6fold_gem.py data/s3dis --method gem --resume
"""

from pathlib import Path

from gem_paper import FROM_SCANNET, GUESSED, METHODS, SETTINGS
from recipe import Recipe, begin, in_one_sentence, row

import pointadapt as pa

RECIPE = Recipe(
    "GEM on S3DIS 6-fold",
    "GEM, arXiv 2505.22444, table 1",
    "s3dis",
    {**SETTINGS, "points": 204_800, "epochs": 375},
    {
        "gem": row((77.9, 88.2, 92.1), **METHODS["gem"]),
        "linear": row((76.5, 87.4, 90.8), **METHODS["linear"]),
        "bitfit": row((76.1, 87.1, 91.0), **METHODS["bitfit"]),
        "adapter": row((76.4, 87.5, 91.4), **METHODS["adapter"]),
        "lora": row((77.4, 87.8, 91.2), **METHODS["lora"]),
        "prompt": row((73.7, 86.5, 90.5), **METHODS["prompt"]),
        "ft": row((79.5, 87.3, 92.3), **METHODS["ft"]),
        "full": row((82.3, 89.9, 93.3), **METHODS["full"], epochs=3_000),
    },
    (*GUESSED, FROM_SCANNET),
)
AREAS = [f"Area_{number}" for number in range(1, 7)]


def runs(name: str, data: Path | str, **changes) -> list[pa.Run]:
    """One run for each area; their folders lie in ``out``."""
    out = RECIPE.run(name, data, **changes).folder
    changes.pop("out", None)
    return [RECIPE.run(name, Path(data) / f"{area}.yaml", out=out / area, **changes) for area in AREAS]


if __name__ == "__main__":
    given, changes = begin(RECIPE, __doc__)
    with in_one_sentence():
        made = runs(given.method, given.data, **changes)
        for run in made:
            RECIPE.score(run, given.resume)
        print(RECIPE.told(given.method, pa.pool([run.folder for run in made])))

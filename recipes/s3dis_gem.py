"""GEM and its baselines on S3DIS, Area 5.

pointadapt init data/s3dis
python recipes/s3dis_gem.py data/s3dis
"""

from gem_paper import FROM_SCANNET, GUESSED, METHODS, SETTINGS
from recipe import Recipe, main, row

RECIPE = Recipe(
    "GEM on S3DIS Area 5",
    "GEM, arXiv 2505.22444, table 1",
    "s3dis",
    {**SETTINGS, "points": 204_800, "epochs": 375},
    {
        "gem": row((75.1, 83.0, 92.1), **METHODS["gem"]),
        "linear": row((72.3, 81.2, 90.9), **METHODS["linear"]),
        "bitfit": row((73.9, 82.0, 91.5), **METHODS["bitfit"]),
        "adapter": row((73.8, 82.9, 91.5), **METHODS["adapter"]),
        "lora": row((74.5, 83.2, 91.5), **METHODS["lora"]),
        "prompt": row((73.4, 82.5, 91.0), **METHODS["prompt"]),
        "ft": row((72.4, 79.0, 92.2), **METHODS["ft"]),
        "full": row((76.0, 81.6, 93.0), **METHODS["full"], epochs=3_000),
    },
    (*GUESSED, FROM_SCANNET),
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

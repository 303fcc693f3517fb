"""GEM and its baselines on ScanNet++, chunks of 6 m; the table's mIoU is taken to be that of the first label.

pointadapt init data/scannetpp
python recipes/scannetpp_gem.py data/scannetpp
"""

from gem_paper import FROM_SCANNET, GUESSED, METHODS, SETTINGS
from recipe import SCANNETPP_FULL, Recipe, main, row

RECIPE = Recipe(
    "GEM on ScanNet++",
    "GEM, arXiv 2505.22444, table 1",
    "scannetpp",
    {**SETTINGS, "points": 204_800},
    {
        "gem": row((46.6, 60.3, 86.3), **METHODS["gem"]),
        "linear": row((37.3, 50.9, 84.3), **METHODS["linear"]),
        "bitfit": row((42.4, 56.5, 85.7), **METHODS["bitfit"]),
        "adapter": row((42.6, 57.5, 85.6), **METHODS["adapter"]),
        "lora": row((44.2, 58.0, 86.5), **METHODS["lora"]),
        "prompt": row((41.2, 56.2, 84.8), **METHODS["prompt"]),
        "ft": row((49.8, 61.2, 87.6), **METHODS["ft"]),
        "full": row((43.7, 55.8, 86.6), **METHODS["full"], epochs=800),
    },
    (*GUESSED, FROM_SCANNET, SCANNETPP_FULL),
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

"""GEM and its baselines on ScanNet200; head, common and tail classes are told in evaluation.json.

pointadapt init data/scannet --layout scannet200
python recipes/scannet200_gem.py data/scannet
"""

from gem_paper import FROM_SCANNET, GUESSED, METHODS, SETTINGS
from recipe import Recipe, main, row

RECIPE = Recipe(
    "GEM on ScanNet200",
    "GEM, arXiv 2505.22444, table 1",
    "scannet200",
    SETTINGS,
    {
        "gem": row((35.6, 46.9, 83.3), **METHODS["gem"]),
        "linear": row((29.3, 41.6, 81.2), **METHODS["linear"]),
        "bitfit": row((32.5, 45.5, 82.0), **METHODS["bitfit"]),
        "adapter": row((33.6, 45.7, 82.5), **METHODS["adapter"]),
        "lora": row((33.6, 45.5, 82.7), **METHODS["lora"]),
        "prompt": row((31.4, 44.4, 81.6), **METHODS["prompt"]),
        "ft": row((37.3, 47.8, 83.7), **METHODS["ft"]),
        "full": row((36.8, 46.5, 84.4), **METHODS["full"], epochs=800),
    },
    (*GUESSED, FROM_SCANNET),
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

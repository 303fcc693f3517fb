"""GEM and its baselines on ScanNet, validation split: the published table beside a run of one's own.

pointadapt init data/scannet
python recipes/scannet_gem.py data/scannet --method gem
"""

from gem_paper import GUESSED, METHODS, SETTINGS
from recipe import Recipe, main, row

RECIPE = Recipe(
    "GEM on ScanNet",
    "GEM, arXiv 2505.22444, table 1",
    "scannet",
    SETTINGS,
    {
        "gem": row((78.3, 86.6, 92.3), **METHODS["gem"]),
        "linear": row((72.5, 83.1, 89.7), **METHODS["linear"]),
        "bitfit": row((74.7, 84.7, 90.8), **METHODS["bitfit"]),
        "adapter": row((77.0, 85.4, 91.8), **METHODS["adapter"]),
        "lora": row((76.7, 85.7, 91.7), **METHODS["lora"]),
        "prompt": row((74.3, 84.1, 90.5), **METHODS["prompt"]),
        "ft": row((78.3, 85.9, 92.3), **METHODS["ft"]),
        "full": row((79.4, 86.1, 92.5), **METHODS["full"], epochs=800),
    },
    GUESSED,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

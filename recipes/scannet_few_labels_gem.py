"""GEM and its baselines on ScanNet with few labels: 1 to 20 % of the scenes, or 20 to 200 labelled points of each.

    pointadapt init data/scannet
    python recipes/scannet_few_labels_gem.py data/scannet --method gem-1%
    python recipes/scannet_few_labels_gem.py data/scannet --method gem-20pts --labels data/efficient/points/points20

Without --labels the scenes or points are drawn by the seed; the paper's come from the benchmark's official lists.
"""

from gem_paper import GUESSED, METHODS, SETTINGS
from recipe import Recipe, main, row

LABELS = ("1%", "5%", "10%", "20%", "20pts", "50pts", "100pts", "200pts")
#: mIoU for each of LABELS.
MIOU = {
    "gem": (47.5, 65.6, 71.0, 73.3, 72.3, 74.7, 76.2, 76.6),
    "linear": (43.6, 62.5, 68.6, 69.8, 69.0, 70.5, 71.1, 71.5),
    "bitfit": (46.5, 64.9, 69.9, 71.7, 71.0, 72.3, 72.9, 73.6),
    "adapter": (46.4, 64.2, 70.1, 72.2, 71.8, 73.4, 74.7, 75.0),
    "lora": (46.6, 63.0, 70.1, 72.6, 72.1, 73.6, 75.2, 75.5),
    "prompt": (45.5, 62.6, 68.9, 71.1, 70.2, 71.5, 72.5, 72.8),
    "ft": (44.4, 63.2, 71.3, 72.3, 69.6, 72.6, 75.3, 76.2),
    "full": (45.3, 65.7, 72.4, 72.8, 70.5, 73.6, 76.0, 77.0),
}
RECIPE = Recipe(
    "GEM on ScanNet with few labels",
    "GEM, arXiv 2505.22444, table 2",
    "scannet",
    {**SETTINGS, "epochs": None, "steps": 5_004},
    {
        f"{name}-{labels}": row((miou,), **METHODS[name], labels=labels)
        for name, table in MIOU.items()
        for labels, miou in zip(LABELS, table, strict=True)
    },
    (*GUESSED, "steps are those of 100 epochs of all scenes: the paper does not say how long fewer scenes train"),
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

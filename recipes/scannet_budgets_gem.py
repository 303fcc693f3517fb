"""GEM and its baselines on ScanNet with very few trained weights: rank 1, 0.1 % and 1 % of the backbone's.

    pointadapt init data/scannet
    python recipes/scannet_budgets_gem.py data/scannet --method gem-0.1%

The paper's LoRA of rank 1 lies far below its linear probe: that run must have failed, do not expect to meet it.
"""

from gem_paper import GUESSED, SETTINGS
from recipe import Recipe, main, row


def settings(name: str, size: int) -> dict:
    """Run fields of a method, all of whose sizes are one number."""
    return {
        "gem": {"method": "gem", "options": {"rank": size}},
        "adapter": {"method": "adapter", "options": {"mid": size, "norm": False}},
        "lora": {"method": "lora", "options": {"r": size, "lora_alpha": 2 * size}},
        "prompt": {"method": "prefix", "options": {"n": size}},
    }[name]


BUDGETS = ("rank1", "0.1%", "1%")
#: For each of BUDGETS its size and (mIoU, mAcc, allAcc).
ROWS = {
    "gem": ((1, (75.2, 84.8, 91.1)), (2, (76.5, 85.5, 91.6)), (21, (78.2, 86.3, 92.2))),
    "adapter": ((1, (74.0, 84.1, 90.5)), (5, (75.1, 84.7, 91.1)), (74, (76.6, 85.3, 91.7))),
    "lora": ((1, (42.5, 55.4, 75.1)), (3, (75.0, 84.4, 91.1)), (37, (76.7, 85.6, 91.7))),
    "prompt": ((2, (72.9, 83.5, 90.0)), (6, (73.5, 83.9, 90.3)), (75, (73.8, 84.2, 90.4))),
}
RECIPE = Recipe(
    "GEM on ScanNet with tight budgets",
    "GEM, arXiv 2505.22444, table 10",
    "scannet",
    SETTINGS,
    {
        f"{name}-{budget}": row(paper, **settings(name, size))
        for name, table in ROWS.items()
        for budget, (size, paper) in zip(BUDGETS, table, strict=True)
    },
    (
        *GUESSED,
        "sizes are those that come nearest to the printed number or share of weights; Adapter is one bottleneck beside "
        "each feed-forward branch, without a norm, which its 0.05 M at rank 1 fit",
    ),
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

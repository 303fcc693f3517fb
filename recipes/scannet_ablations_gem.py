"""GEM on ScanNet without its parts, with more or fewer latents, and with latents that are not shared.

    pointadapt init data/scannet
    python recipes/scannet_ablations_gem.py data/scannet --method sa-only

"gem" stands for the row of each part of the table that has the defaults. With one latent the softmax over latents is 1,
so that the context adapter adds the same vector to all points of a scene.
"""

from gem_paper import GUESSED, METHODS, SETTINGS
from recipe import Recipe, Row, main, row


def variant(**options):
    return {"method": "gem", "options": options}


RECIPE = Recipe(
    "GEM ablations on ScanNet",
    "GEM, arXiv 2505.22444, table 6",
    "scannet",
    SETTINGS,
    {
        "gem": row((78.3, 86.6, 92.3), **METHODS["gem"]),
        "linear": row((72.5,), **METHODS["linear"]),
        "sa-only": row((77.2,), **variant(use_ca=False)),
        "ca-only": row((77.3,), **variant(use_sa=False)),
        "latents-1": row((78.1, 86.4, 92.1), **variant(num_latents=1)),
        "latents-8": row((78.2, 86.8, 92.3), **variant(num_latents=8)),
        # of these two rows the mean IoU is not known to us
        "latents-per-block": Row(variant(latent_sharing="block"), {"macc": 86.1, "allacc": 92.1}),
        "latents-per-stage": Row(variant(latent_sharing="stage"), {"macc": 86.1, "allacc": 92.0}),
    },
    GUESSED,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

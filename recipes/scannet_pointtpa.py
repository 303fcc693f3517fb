"""PointTPA and its rivals on ScanNet, validation split: the published table beside a run of one's own.

pointadapt init data/scannet
python recipes/scannet_pointtpa.py data/scannet --method pointtpa
"""

from pointtpa_paper import GUESSED, METHODS, SETTINGS
from recipe import Recipe, main, row

RECIPE = Recipe(
    "PointTPA on ScanNet",
    "PointTPA, arXiv 2604.04933, table 1",
    "scannet",
    {**SETTINGS, "steps": 240_200},
    {
        "pointtpa": row((78.4, 86.3, 92.3), **METHODS["pointtpa"]),
        "linear": row((72.2, 83.1, 89.7), **METHODS["linear"]),
        "adapter": row((76.8, 85.1, 91.7), **METHODS["adapter"]),
        "prefix": row((73.5, 84.2, 90.3), **METHODS["prefix"]),
        "bitfit": row((75.4, 85.4, 91.1), **METHODS["bitfit"]),
        "lora": row((76.3, 85.2, 91.6), **METHODS["lora"]),
        "vera": row((73.4, 84.0, 90.2), **METHODS["vera"]),
        "randlora": row((74.3, 84.3, 90.7), **METHODS["randlora"]),
        "idpt": row((72.6, 82.9, 89.8), **METHODS["idpt"]),
        "dapt": row((77.7, 86.5, 91.9), **METHODS["dapt"]),
        "pointgst": row((77.7, 85.8, 91.9), **METHODS["pointgst"]),
        "ft": row((78.9, 86.1, 92.3), **METHODS["ft"]),
        "ft-decoder": row((79.4, 86.1, 92.5), **METHODS["ft-decoder"]),
    },
    GUESSED,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

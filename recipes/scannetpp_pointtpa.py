"""PointTPA and its rivals on ScanNet++, chunks of 6 m; the table's mIoU is taken to be that of the first label.

pointadapt init data/scannetpp
python recipes/scannetpp_pointtpa.py data/scannetpp --method pointtpa
"""

from pointtpa_paper import GUESSED, METHODS, SETTINGS
from recipe import SCANNETPP_FULL, Recipe, main, row

RECIPE = Recipe(
    "PointTPA on ScanNet++",
    "PointTPA, arXiv 2604.04933, table 1",
    "scannetpp",
    {**SETTINGS, "points": 204_800, "epochs": 800},
    {
        "pointtpa": row((40.9, 52.9, 86.1), **METHODS["pointtpa"]),
        "linear": row((36.5, 49.4, 84.9), **METHODS["linear"]),
        "adapter": row((39.9, 52.9, 86.1), **METHODS["adapter"]),
        "prefix": row((36.8, 49.6, 84.2), **METHODS["prefix"]),
        "bitfit": row((38.0, 50.7, 84.5), **METHODS["bitfit"]),
        "lora": row((38.7, 51.4, 85.3), **METHODS["lora"]),
        "vera": row((36.9, 49.9, 83.9), **METHODS["vera"]),
        "randlora": row((37.2, 50.1, 84.1), **METHODS["randlora"]),
        "idpt": row((36.6, 50.0, 84.1), **METHODS["idpt"]),
        "dapt": row((39.6, 50.9, 85.2), **METHODS["dapt"]),
        "pointgst": row((40.0, 52.0, 85.9), **METHODS["pointgst"]),
        "ft": row((41.8, 50.7, 86.3), **METHODS["ft"]),
        "ft-decoder": row((43.7, 55.8, 86.6), **METHODS["ft-decoder"]),
    },
    (*GUESSED, SCANNETPP_FULL),
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

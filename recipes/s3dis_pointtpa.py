"""PointTPA and its rivals on S3DIS, Area 5: the published table beside a run of one's own.

pointadapt init data/s3dis
python recipes/s3dis_pointtpa.py data/s3dis --method pointtpa
"""

from pointtpa_paper import GUESSED, METHODS, SETTINGS
from recipe import Recipe, main, row

RECIPE = Recipe(
    "PointTPA on S3DIS Area 5",
    "PointTPA, arXiv 2604.04933, table 1",
    "s3dis",
    {**SETTINGS, "points": 204_800, "steps": 153_000},
    {
        "pointtpa": row((74.9, 81.7, 92.9), **METHODS["pointtpa"]),
        "linear": row((73.0, 80.9, 90.8), **METHODS["linear"]),
        "adapter": row((73.8, 81.7, 91.6), **METHODS["adapter"]),
        "prefix": row((73.0, 82.1, 91.0), **METHODS["prefix"]),
        "bitfit": row((73.8, 81.2, 92.2), **METHODS["bitfit"]),
        "lora": row((74.0, 81.1, 92.5), **METHODS["lora"]),
        "vera": row((72.9, 80.8, 91.0), **METHODS["vera"]),
        "randlora": row((73.0, 81.7, 91.2), **METHODS["randlora"]),
        "idpt": row((72.0, 81.2, 90.5), **METHODS["idpt"]),
        "dapt": row((74.6, 81.2, 92.7), **METHODS["dapt"]),
        "pointgst": row((75.0, 81.4, 92.9), **METHODS["pointgst"]),
        "ft": row((74.5, 80.3, 93.1), **METHODS["ft"]),
        "ft-decoder": row((76.0, 81.6, 93.0), **METHODS["ft-decoder"]),
    },
    GUESSED,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)

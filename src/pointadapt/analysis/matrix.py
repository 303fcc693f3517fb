"""The page docs/methods.md: every method on three backbones, counted and asked, not written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from pointadapt.backbones.backbone import Backbone
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.backbones.sparse_unet import SparseUNet, SparseUNetConfig
from pointadapt.backbones.weights import build_ptv3
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt
from pointadapt.methods.core import AdapterLayer
from pointadapt.tasks.classification import Classification
from pointadapt.tasks.segmentation import Segmentation

#: Heading -> a task on that backbone at its official size, without weights.
BACKBONES: dict[str, Callable[[], Any]] = {
    "Sonata-base": lambda: Segmentation(PTv3(PTv3Config()), 20),
    "Sonata-base with new decoder": lambda: Segmentation(build_ptv3(PTv3Config(), "clean", True, "Sonata-base"), 20),
    "Sparse U-Net": lambda: Segmentation(SparseUNet(SparseUNetConfig()), 20),
    "Point-MAE": lambda: Classification(cast(Backbone, PointViT(PointViTConfig())), 15),
}
ABOUT = """# Methods and backbones

Written by `python scripts/write_method_matrix.py`; a test holds it up to date.

Trained parameters of each method with its default options, without the head of the task (24,660 on Sonata-base for 20
classes, 1,940 on the sparse U-Net), with the class token that objects' backbones always train. Sonata-base stands for
all of the PTv3 family (`nano`, Concerto, Utonia, classic PTv3), Point-MAE for networks over groups of points. The
second column is Sonata-base with a decoder that no checkpoint filled (`decoder=True`, 16,331,520 parameters), which
every method trains in full, besides its adapters in the encoder. Options that make the controls of the papers:
`pointadapt methods NAME`.

*identity*: the adapted model computes exactly what the frozen one does until it is trained. *merges*: the trained
adapter can be added to the frozen weights, on the backbones named.
"""


def count(method: str, make: Callable[[], Any]) -> tuple[int, bool] | str:
    """(trained parameters without the head, whether it can be merged), or why the method cannot work."""
    with torch.device("meta"):
        try:
            model = adapt(make(), METHODS[method]())
        except UserError as error:
            return str(error)
    trained = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and ".head." not in n)
    layers = [m for m in model.modules() if isinstance(m, AdapterLayer)]
    merges = all(a.deltas(m.base_layer) is not None for m in layers for a in cast(Any, m.adapters.values()))
    return trained, merges


def matrix() -> str:
    """The page as Markdown."""
    rows, reasons = [], []
    for method, config in sorted(METHODS.items()):
        cells, merging = [], []
        refused: dict[str, list[str]] = {}
        for name, make in BACKBONES.items():
            found = count(method, make)
            if isinstance(found, str):
                cells.append("–")
                refused.setdefault(found, []).append(name)
            else:
                cells.append(f"{found[0]:,}")
                merging += [name] * found[1]
        whole = len(merging) == len(BACKBONES) - cells.count("–")
        merges = "yes" if whole else ", ".join(merging) or "no"
        identity = "yes" if getattr(config, "identity", True) else "no"
        paper = getattr(config, "paper", "") or "–"
        rows.append(f"| `{method}` | {linked(paper)} | {' | '.join(cells)} | {identity} | {merges} |")
        reasons += [f"- `{method}` on {' and '.join(names)}: {reason}" for reason, names in refused.items()]
    head = (
        f"| method | paper | {' | '.join(BACKBONES)} | identity | merges |\n|---|---|{'---:|' * len(BACKBONES)}---|---|"
    )
    return "\n".join([ABOUT, head, *rows, "", "## Where a method cannot work, and what it says", "", *reasons, ""])


def linked(paper: str) -> str:
    """The arXiv number in a reference as a link."""
    text, arxiv, number = paper.partition(" arXiv ")
    return f"{text} [{number}](https://arxiv.org/abs/{number})" if arxiv else paper

"""Stage 1 of PointATA within a run: align the embedder before training starts, keep it, and say what it did.

align.safetensors   weights of the aligned embedder, written when Stage 1 is done; a resumed run takes them
align.json          distance and 5-NN accuracy before and after
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointadapt.align import Align, align_model, source_features
from pointadapt.align_samples import Unit, place
from pointadapt.analysis.transport import balanced
from pointadapt.data.videos import VideoItems, collate_videos
from pointadapt.domains.domain import Domain, from_first
from pointadapt.errors import UserError
from pointadapt.files import read_json, write_bytes, write_text
from pointadapt.point import Point

WEIGHTS, LOG = "align.safetensors", "align.json"
#: Shapes that make up the source.
SOURCE = 1000
#: Most clips that are looked at, evenly over the classes, and bytes that what is seen of them may take.
CLIPS, MEMORY = 512, 1 << 30
#: Tokens of a clip that a step looks at; their mean stands for that of all.
TOKENS = 256
BATCH = 16
#: Samples of each class in a step: clips, frames, tokens (chosen here).
PER_CLASS = {"action": 4, "action_segmentation": 16, "video_segmentation": 32}
UNITS: dict[str, Unit] = {"action": "clip", "action_segmentation": "frame", "video_segmentation": "token"}


def wanted(model: Any) -> Any | None:
    """The config of a method that asks for Stage 1, or None."""
    config = getattr(model, "peft_config", {}).get("default")
    return config if getattr(config, "align", "none") != "none" else None


def first_stage(model: Any, domain: Domain, resume: bool, is_main: bool) -> dict[str, Any] | None:
    """Align the embedder of ``model`` in place, or put what an earlier call aligned; returns the content of align.json.

    None where the method asks for no Stage 1. Only clips of the training split are looked at, those that
    ``run.labels`` leaves. Every process does the same work, for none may wait as long as it takes; then all put in
    place what the first one found, to the bit, and ``is_main`` writes it.
    """
    out = domain.run.folder
    config = wanted(model)
    if config is None:
        return None
    if resume and (out / WEIGHTS).is_file():
        found = read_weights(out / WEIGHTS), read_json(out / LOG)
    else:
        found = stage_one(model, domain, config, is_main)
    state, told = from_first(found)
    place(model, state)
    return told


def stage_one(model: Any, domain: Domain, config: Any, is_main: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights of the aligned embedder, content of align.json), written by ``is_main``."""
    out, seed = domain.run.folder, domain.run.seed
    device = next(model.parameters()).device
    items: VideoItems = domain.items("train")
    source, names = source_features(model, config.align, SOURCE, seed=seed)
    rows = chosen(items, model, seed)
    how = Align(
        objective=config.align_objective, epochs=config.align_epochs, steps=config.align_steps, seed=seed,
        source_batch=min(256, len(names)), subset=min(400, len(names)), tokens=TOKENS,
        per_class=PER_CLASS[domain.kind.name], clusters=config.align_clusters or None,
    )  # fmt: skip

    def log(line: dict[str, Any]) -> None:
        if is_main:
            print(f"stage 1, epoch {line['epoch']}: distance {line['distance']:.4g}", file=sys.stderr)

    found = align_model(model, clips(items, rows, device), source, names, UNITS[domain.kind.name], how, log)
    told = {"source": config.align, "clips": len(rows), "objective": how.objective, "steps": how.steps}
    told |= found.as_dict()
    if is_main:
        from safetensors.torch import save

        print(in_words(told), file=sys.stderr)
        write_text(out / LOG, json.dumps(told, indent=2) + "\n")
        write_bytes(out / WEIGHTS, save({name: value.contiguous() for name, value in found.state.items()}))
    return found.state, told


def read_weights(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}): start again with --overwrite") from error


def in_words(told: dict[str, Any]) -> str:
    """A sentence for reports."""
    before, after = told["distance"][0], told["distance"][-1]
    near = [100 * value for value in told["neighbours"]]
    end = "; the classes were scrambled, so the alignment is of no use" if told["scrambled"] else ""
    origin = "procedural shapes" if told["source"] == "procedural" else told["source"]
    return (
        f"Stage 1: the distance of {told['clips']} training clips to {origin} went from {before:.4g} to {after:.4g} "
        f"in {told['epochs']} epochs of {told['steps']} steps ({told['seconds']:.0f} s), their 5-NN accuracy from "
        f"{near[0]:.1f} to {near[1]:.1f} %{end}."
    )


def chosen(items: VideoItems, model: Any, seed: int) -> np.ndarray:
    """Rows of ``items.clips`` that are aligned: as many as memory allows, evenly over the classes of actions."""
    backbone = model.get_base_model().backbone
    groups = getattr(backbone.config, "groups", 64)
    each = 12 * items.dataset.frames * groups * backbone.out_channels  # three observations of four bytes
    limit = max(min(MEMORY // each, CLIPS), 2 * len(items.dataset.classes))
    labels = [items.videos[clip.video].target or 0 for clip in items.clips]
    return balanced(labels, limit, seed)


def clips(items: VideoItems, rows: np.ndarray, device: torch.device) -> Iterator[tuple[Point, Tensor]]:
    """Batches of (clips, their labels), without augmentation."""
    key = {"action": "label", "action_segmentation": "frame_label", "video_segmentation": "segment"}[items.dataset.task]
    for first in range(0, len(rows), BATCH):
        batch = collate_videos([items.clip(int(row)) for row in rows[first : first + BATCH]])
        yield batch["point"].to(device), batch[key]

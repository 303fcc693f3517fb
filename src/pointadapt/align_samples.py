"""What Stage 1 of PointATA trains on: samples of labelled clips, as an embedder or a pyramid sees them.

A sample is a clip, a frame or a token (the paper does not say which; inferred for each task).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pointadapt.analysis.transport import balanced
from pointadapt.backbones.frame_pyramid import NEIGHBORS, anchors
from pointadapt.errors import UserError
from pointadapt.methods.core import AdapterLayer
from pointadapt.methods.pointata import ClipTokens
from pointadapt.ops.frames import PURITY, frames_in, group_labels, take_clouds
from pointadapt.point import Point, collate

Unit = Literal["clip", "frame", "token"]


class Observed:
    """Samples [S, m, ...] that :func:`observe` gave, whose features are the means over a PAE's m tokens.

    tokens  of each sample that a step looks at, drawn at random; None: all
    """

    def __init__(self, seen: Tensor, tokens: int | None = None) -> None:
        self.seen, self.tokens = seen, tokens

    def __len__(self) -> int:
        return len(self.seen)

    def draw(self, names: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Rows of a step's samples, class-balanced."""
        return balanced(names, count, seed)

    def features(self, pae: nn.Module, rows: Tensor, seed: int | None = None) -> Tensor:
        """[r, D] of the samples ``rows``; with a ``seed``, of some of their tokens."""
        if seed is not None and self.tokens is not None and self.tokens < self.seen.shape[1]:
            drawn = np.random.default_rng(seed).permutation(self.seen.shape[1])[: self.tokens]
            picked = self.seen[rows[:, None], torch.from_numpy(drawn)]
        else:
            picked = self.seen[rows]
        return pae(picked.to(next(pae.parameters()).device, torch.float32)).mean(1)


class PyramidTokens:
    """Tokens of clips that a :class:`~pointadapt.backbones.frame_pyramid.FramePyramid` makes anew at every step.

    clips   Points of one clip each;  place [S, 2]: each sample's clip and its place among that clip's tokens
    at_once clips of a step, drawn at random (inferred): its samples come from these alone
    """

    def __init__(self, clips: list[Point], place: Tensor, at_once: int = 8) -> None:
        self.clips, self.place, self.at_once = clips, place, at_once

    def __len__(self) -> int:
        return len(self.place)

    def draw(self, names: np.ndarray, count: int, seed: int) -> np.ndarray:
        chosen = np.random.default_rng(seed).permutation(np.unique(self.place[:, 0]))[: self.at_once]
        rows = np.flatnonzero(np.isin(self.place[:, 0], chosen))
        return rows[balanced(names[rows], count, seed)]

    def features(self, pae: nn.Module, rows: Tensor, seed: int | None = None) -> Tensor:
        clip, token = self.place[rows].unbind(1)
        device, found, order = next(pae.parameters()).device, [], []
        for run in clip.unique().split(self.at_once):
            parts = [self.clips[c].to(device) for c in run.tolist()]
            center = torch.cat([part.extra["anchors"] for part in parts])
            whole = collate(parts).but(extra={"frames": parts[0].extra["frames"], "anchors": center})
            made = pae(whole).extra["patches"].feat.unflatten(0, (len(run), -1)).flatten(1, 2)  # [clips, tokens, D]
            order.append(here := torch.isin(clip, run).nonzero()[:, 0])
            found.append(made[torch.searchsorted(run, clip[here]).to(device), token[here].to(device)])
        return torch.cat(found)[torch.cat(order).argsort().to(device)]


def place(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put aligned weights into the active PointATA adapter, held or trained alike, or into the task's pyramid."""
    pyramid = pyramid_of(model)
    if pyramid is not None:
        pyramid.load_state_dict(state)
        return
    adapter, _, _ = clip_tokens(model)
    assert adapter.pae is not None
    adapter.pae.load_state_dict(state)


def clip_tokens(model: nn.Module) -> tuple[ClipTokens, nn.Module, Any]:
    """The active adapter of a model's tokenizer, the frozen tokenizer and the method's config.

    Raises UserError where there is no PointATA adapter with a PAE.
    """
    configs = getattr(model, "peft_config", {})
    for layer in model.modules():
        if isinstance(layer, AdapterLayer):
            for name in layer.active_adapters:
                adapter = layer.adapters._modules.get(name)
                if isinstance(adapter, ClipTokens) and adapter.pae is not None:
                    return adapter, layer.base_layer, configs[name]
    raise UserError("there is nothing to align: adapt the model with PointATAConfig and a pae other than none")


def pyramid_of(model: nn.Module) -> nn.Module | None:
    """The trained pyramid that makes a model's tokens; None where its own tokenizer does."""
    for module in model.modules():
        found = module._modules.get("pyramid")
        if found is not None:
            copies = found._modules.get("modules_to_save")
            return found if copies is None else copies[found.active_adapters[0]]  # type: ignore[index]
    return None


@torch.no_grad()
def observe_pyramid(
    model: nn.Module, clips: Iterable[tuple[Point, Tensor]], purity: float = PURITY
) -> tuple[PyramidTokens, Tensor]:
    """Clips, whose points have labels [N], as tokens with a label each: that of most points around its anchor, as for
    unit "token" of :func:`observe`."""
    pyramid: Any = pyramid_of(model)
    assert pyramid is not None
    kept: list[Point] = []
    places, names = [], []
    for point, label in clips:
        count, size = frames_in(point, point.num_clouds), pyramid.sizes[-1]
        center = anchors(point, pyramid.sizes[0])
        found = group_labels(point, center[:, :size], NEIGHBORS, label.to(point.coord.device), purity)
        for first in range(0, point.num_clouds, count):
            own = found[first : first + count].flatten().cpu()
            known = (own >= 0).nonzero()[:, 0]
            places.append(torch.stack([torch.full_like(known, len(kept)), known], 1))
            names.append(own[known])
            rows = torch.arange(first, first + count, device=point.coord.device)
            clip = take_clouds(point, rows).but(extra={"frames": count, "anchors": center[rows]})
            kept.append(clip.to("cpu"))
    if not sum(map(len, names)):
        raise UserError("there are no labelled clips to align: check the training split")
    return PyramidTokens(kept, torch.cat(places)), torch.cat(names)


@torch.no_grad()
def observe(
    model: nn.Module, clips: Iterable[tuple[Point, Tensor]], unit: Unit = "clip", purity: float = PURITY
) -> tuple[Tensor, Tensor]:
    """What a PAE sees of clips, and the labels: [S, m, ...] float32 on the CPU, [S].

    unit  "clip": labels [B] of actions, a sample is a clip (m = T' G tokens);
          "frame": labels [B, T], a sample is a frame that has tokens (m = G);
          "token": labels [N] of points, a sample is a token (m = 1) whose group has one label in at least ``purity`` of
          its labelled points, and is labelled by half of them
    Labels below 0 are left out. A clip takes 12 T' G D bytes with the residual PAE: give a few thousand at most.
    """
    adapter, base, _ = clip_tokens(model)
    was_training = model.training
    model.eval()
    found, names = [], []
    try:
        for point, label in clips:
            out, seen, _ = adapter.observe(base, point)
            assert seen is not None
            frames = frames_in(out, len(out))
            label = label.to(seen.device)
            if unit == "clip":
                seen = seen.unflatten(0, (-1, frames)).flatten(1, 2)
            elif unit == "frame":
                label = label[:, :: adapter.stride].flatten()
            else:
                assert out.center is not None
                size = adapter.tokenizer[0].group_size
                label = group_labels(point, out.center, size, label, purity, adapter.stride).flatten()
                seen = seen.flatten(0, 1)[:, None]
            if len(label) != len(seen):
                raise UserError(f"unit {unit!r} has {len(seen)} samples here, but there are {len(label)} labels")
            kept = label >= 0
            found.append(seen[kept].float().cpu())
            names.append(label[kept].cpu())
    finally:
        model.train(was_training)
    if not sum(len(part) for part in found):
        raise UserError("there are no labelled clips to align: check the training split")
    return torch.cat(found), torch.cat(names)

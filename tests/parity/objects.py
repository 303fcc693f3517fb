"""What the object-level kinds share: weights of a fixture, ours filled with them, and the comparison.

A kind's module (``pointmae.py``, ``dapt.py``, ...) builds our model, says how official keys become ours and which of
our outputs stand for which stored tensor; :func:`compare` does the rest: outputs, logits, loss and gradient norms.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pointadapt.point import Point

Rules = Iterable[tuple[str, str]]
#: Relative error of forward tensors (of the largest entry) and of gradient norms.
FORWARD, GRADIENT = 1e-5, 1e-3
HALF_PROMPTS = re.compile(r"token|prompt_embeddings|prompt_cor|point_prompt\.points|prompt_list|prompt_pos")


@dataclass
class Fixture:
    """One stored run: ``data`` (in.*, mid.*, out.*), official ``state``, side-car ``notes``, ``config``."""

    path: Path
    data: dict[str, Tensor]
    state: dict[str, Tensor]
    notes: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Fixture:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no iterator)
        sidecar = path.with_suffix(".json")
        if not sidecar.is_file():
            raise SystemExit(f"{path}: its side-car {sidecar.name} is missing: put it beside the file")
        notes = json.loads(sidecar.read_text())
        state = {k.removeprefix("sd."): v.float() for k, v in tensors.items() if k.startswith("sd.")}
        if not state:
            state = generated(notes["keys"], int(meta["seed"]))
        data = {k: v for k, v in tensors.items() if not k.startswith("sd.")}
        return cls(path, data, state, notes, json.loads(meta.get("config", "{}")))

    @property
    def point(self) -> Point:
        """The stored clouds, packed."""
        points = self.data["in.points"].float()
        batch, count, _ = points.shape
        return Point(points.reshape(-1, 3), points.reshape(-1, 3), torch.arange(1, batch + 1) * count)


def generated(keys: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Weights of a ``*_full*`` fixture, drawn as the fixtures' README says."""
    state = {}
    for key, shape in keys.items():
        random = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
        z = random.standard_normal(tuple(shape) or (1,)).astype(np.float64)
        if key.endswith("running_var"):
            value = 1 + 0.3 * z.clip(-2, 2)
        elif key.endswith("num_batches_tracked"):
            value = 0 * z
        elif "gamma" in key or (z.ndim == 1 and key.endswith("weight")):
            value = 1 + 0.1 * z
        elif z.ndim <= 1:
            value = 0.1 * z
        elif HALF_PROMPTS.search(key) and "mlp" not in key and "embed." not in key or key.endswith("_pos"):
            value = 0.5 * z
        elif key.endswith(("LoRA_a", "LoRA_b")):
            value = z / np.sqrt(shape[0])
        else:
            value = z / np.sqrt(np.prod(shape[1:]))
        state[key] = torch.from_numpy(value).float().reshape(shape)
    return state


def rename(key: str, rules: Rules) -> str:
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


def own_names(adapted: nn.Module) -> dict[str, str]:
    """Name as in the plain model -> full name in the adapted one, of what is frozen and what is trained in full."""
    found = {}
    for key in adapted.state_dict():
        if "_adapter." not in key and "_shared." not in key and ".original_module." not in key:
            plain = key.replace(".base_layer", "").replace(".modules_to_save.default", "")
            found[plain.removeprefix("base_model.model.")] = key
    return found


def fill(
    model: nn.Module,
    state: dict[str, Tensor],
    name: Callable[[str], str | None],
    replaced: str = r"\.original_module\.",
) -> dict[str, str]:
    """Copy the official state into ``model``; returns official name -> ours.

    ``name`` gives our full parameter name, or None for a tensor that has no counterpart; our names in which
    ``replaced`` is found are of frozen parts that trained copies stand in for. Raises AssertionError when
    one of our parameters or floating buffers stays unfilled. 1x1 convolutions lose their last dimensions.
    """
    own = {k: v for k, v in model.state_dict(keep_vars=True).items() if not re.search(replaced, k)}
    names: dict[str, str] = {}
    for key, value in state.items():
        ours = name(key)
        if ours is None or key.endswith("num_batches_tracked"):
            continue
        assert ours in own, f"{key}: there is no {ours} here"
        with torch.no_grad():
            own[ours].copy_(value.reshape(own[ours].shape))
        names[key] = ours
    left = {k for k, v in own.items() if v.is_floating_point()} - set(names.values())
    assert not left, f"never filled: {sorted(left)[:5]}"
    return names


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float = FORWARD) -> tuple[str, float, float]:
    """(name, largest error, tolerance times the largest entry)."""
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} here, {tuple(theirs.shape)} there"
    return name, float((ours.detach() - theirs).abs().max()), tolerance * max(float(theirs.abs().max()), 1e-6)


def gradients(
    model: nn.Module, names: dict[str, str], notes: dict[str, Any], tolerance: float = GRADIENT
) -> list[tuple[str, float, float]]:
    """The worst relative error of the gradient norms in the side-car; call after ``backward``."""
    parameters = dict(model.named_parameters())
    worst, where = 0.0, ""
    largest = max(notes["grad_norms"].values())
    for key, norm in notes["grad_norms"].items():
        if key not in names:
            continue
        gradient = parameters[names[key]].grad
        assert gradient is not None, f"{names[key]} got no gradient"
        error = abs(float(gradient.norm()) - norm) / max(norm, 1e-4 * largest)
        if error >= worst:
            worst, where = error, key
    return [(f"grad norms ({where})", worst, tolerance)]

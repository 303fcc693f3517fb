"""What the heads of all tasks share: they know the backbone they were made for, and refuse another one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone, fingerprint
from pointadapt.errors import UserError


class OfBackbone(nn.Module):
    """Mixin for heads: carries the SHA-256 of the backbone's weights, so every adapter file does too.

    Loading a head made for other backbone weights, or of another shape, raises UserError.
    """

    fingerprint: Tensor

    def bind(self, backbone_hash: str) -> None:
        self.register_buffer("fingerprint", torch.tensor(list(bytes.fromhex(backbone_hash)), dtype=torch.uint8))

    def check_fingerprint(self, saved: Tensor) -> None:
        """Raises UserError where a saved head's fingerprint is that of other backbone weights."""
        if not saved.is_meta and not torch.equal(saved.cpu(), self.fingerprint.cpu()):
            raise UserError(
                f"this adapter was trained on other backbone weights (sha256 {hex_of(saved)[:12]}..., these are "
                f"{hex_of(self.fingerprint)[:12]}...): load the backbone named in its adapter_config.json or run.json"
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved = state_dict.get(prefix + "fingerprint")
        if saved is not None:
            self.check_fingerprint(saved)
        own = {k: v for k, v in self.state_dict().items() if isinstance(v, Tensor) and v.ndim == 2}
        for name, value in own.items():
            weight = state_dict.get(prefix + name)
            if weight is not None and weight.shape != value.shape:
                raise UserError(
                    f"this adapter's head has {weight.shape[0]} classes on {weight.shape[1]} channels, the model has "
                    f"{value.shape[0]} on {value.shape[1]}: build the model with the adapter's class list"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def hex_of(hash_bytes: Tensor) -> str:
    """The SHA-256 in a head's ``fingerprint`` as 64 hexadecimal digits."""
    return bytes(hash_bytes.cpu().tolist()).hex()


def backbone_fingerprint(backbone: Backbone) -> str:
    """SHA-256 of the weights a checkpoint filled; fresh parts are trained and travel with the adapter."""
    fresh = tuple(f"{part}." for part in backbone.fresh)
    return fingerprint({k: v for k, v in backbone.state_dict().items() if not k.startswith(fresh) and not v.is_meta})


def class_names(classes: int | Sequence[str]) -> list[str]:
    """Names in index order. Raises UserError for fewer than two."""
    names = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
    if len(names) < 2:
        raise UserError(f"classes must name at least two classes to tell apart, got {names}")
    return names


def check_untrained(head: nn.Module | None, own: type[nn.Module], parts: Sequence[str], read: Sequence[str]) -> None:
    """Raises UserError where an adapter has wrapped the task's ``own`` head, which reads other parts: it cannot be
    built anew."""
    if head is not None and not isinstance(head, own):
        raise UserError(
            f"this adapter's head reads {', '.join(parts)}, the adapters already there read "
            f"{', '.join(read)}: load it onto a model of its own"
        )

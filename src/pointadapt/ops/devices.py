"""Where modules lie, also those that have no values yet."""

from __future__ import annotations

import torch
from torch import nn


def device_of(*modules: nn.Module) -> torch.device:
    """Where the first of their parameters lies that has values (not meta), if there are any."""
    devices = [p.device for module in modules for p in module.parameters()]
    return next((d for d in devices if d.type != "meta"), devices[0] if devices else torch.device("cpu"))


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """To ``device``, unless the module is still without values (meta): peft fills those in later."""
    return module if any(p.is_meta for p in module.parameters()) else module.to(device)

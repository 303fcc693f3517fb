"""Where modules lie, also those that have no values yet; and what is said when memory does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pointadapt.errors import UserError


def device_of(*modules: nn.Module) -> torch.device:
    """Where the first of their parameters lies that has values (not meta), if there are any."""
    devices = [p.device for module in modules for p in module.parameters()]
    return next((d for d in devices if d.type != "meta"), devices[0] if devices else torch.device("cpu"))


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """To ``device``, unless the module is still without values (meta): peft fills those in later."""
    return module if any(p.is_meta for p in module.parameters()) else module.to(device)


@contextmanager
def enough_memory(cure: str) -> Iterator[None]:
    """Around a function, or in ``with``. Raises UserError with ``cure`` where memory, of a GPU or not, is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory is full: {cure}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):  # which has no class of its own
            raise
        raise UserError(f"this machine's memory does not suffice: {cure}") from error

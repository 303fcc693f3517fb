"""BatchNorm over rows, and the one loop that keeps that of frozen parts as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RowNorm(nn.BatchNorm1d):
    """BatchNorm over the last dimension of [..., C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


def settle(model: nn.Module, run: Callable[[], Any]) -> None:
    """Give BatchNorm in ``model`` the statistics that it sees while ``run`` is called once."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        run()
    for norm, (momentum, training) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.train(training)


def keep_still(model: nn.Module) -> None:
    """Put BatchNorm whose weights are all frozen into eval mode.

    Otherwise its running statistics drift during adaptation, are in no adapter file, and a reloaded adapter gives
    other numbers.
    """
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and not any(p.requires_grad for p in module.parameters()):
            module.eval()

"""Losses that methods bring themselves: what a forward pass leaves in ``extra["losses"]`` joins the task's own loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WithAuxiliary(nn.Module):
    """Mixin for tasks: ``forward`` ends in :meth:`keep_losses`, ``loss`` in :meth:`with_auxiliary`."""

    #: Sum of the losses of the last forward pass, until the task's loss has taken it in.
    auxiliary: Tensor | None = None

    def keep_losses(self, out: Any, result: Tensor) -> Tensor:
        """Keep the losses in ``extra`` of a backbone's output, and give back what is computed from it.

        They hang on the result with weight 0: DistributedDataParallel looks behind a model's output for the parameters
        in use, and fails when a gradient reaches others.
        """
        losses = out.extra.get("losses")
        self.auxiliary = sum(losses.values()) if losses and torch.is_grad_enabled() else None
        return result if self.auxiliary is None else result + 0 * self.auxiliary

    def with_auxiliary(self, loss: Tensor) -> Tensor:
        """``loss`` plus what the last forward pass left in ``extra["losses"]`` (name -> scalar)."""
        if self.auxiliary is not None:
            loss, self.auxiliary = loss + self.auxiliary, None
        return loss

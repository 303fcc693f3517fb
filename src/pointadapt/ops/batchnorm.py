"""BatchNorm of frozen parts stays as it is: the one loop that backbones and adapted models share."""

from __future__ import annotations

from torch import nn


def keep_still(model: nn.Module) -> None:
    """Put BatchNorm whose weights are all frozen into eval mode.

    Otherwise its running statistics drift during adaptation, are in no adapter file, and a reloaded adapter gives
    other numbers (specs, peft_integration 4.1).
    """
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and not any(p.requires_grad for p in module.parameters()):
            module.eval()

"""What a method's file builds on, free of peft: Adapter, the reference to what adapters share, checks of options."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pointadapt.errors import UserError


class Adapter(nn.Module):
    """What stands beside (or around) a frozen module.

    ``forward(base, *args)`` calls ``base(*args)``, the frozen module with any adapter below this one, and returns
    what should stand in for its result. State of one forward pass goes into ``Point.extra``, never on the module.
    """

    #: The adapter's name in the model ("default"), a key for state in ``Point.extra``; set when it is put in place.
    adapter_name: str = "default"

    def deltas(self, frozen: nn.Module) -> dict[str, Tensor] | None:
        """Parameter name of ``frozen`` -> what to add to it so that this adapter can go; None: cannot be merged."""
        return None


class Shared:
    """Reference to the module that all adapters of one name share.

    A plain object, so that the module is registered (and saved) once, on the tuner; deepcopy and pickle keep it.
    """

    def __init__(self, store: nn.ModuleDict, adapter_name: str) -> None:
        self.store, self.adapter_name = store, adapter_name

    def __call__(self) -> Any:
        return self.store[self.adapter_name]


def one_of(name: str, value: Any, allowed: tuple) -> None:
    """Raise UserError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def at_least(low: float, **values: float | None) -> None:
    """Raise UserError for a value below ``low``; None passes."""
    for name, value in values.items():
        if value is not None and value < low:
            raise UserError(f"{name} must be at least {low}, not {value!r}")


def check_dropouts(config: Any) -> None:
    """Raise UserError for a dropout of a method's config that is no probability below 1."""
    for name, value in vars(config).items():
        if name.endswith("dropout") and not 0 <= value < 1:
            raise UserError(f"{name} must be at least 0 and below 1, not {value!r}")


def hold(module: nn.Module) -> None:
    """Make buffers of all parameters, which peft would train otherwise; they still travel with the adapter."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                del part._parameters[name]
                part.register_buffer(name, value.detach())

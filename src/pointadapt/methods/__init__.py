"""Parameter-efficient methods, one file a paper. Importing this package makes them known to peft."""

from pointadapt.methods import (
    adapters,
    adaptformer,
    appt,
    dapt,
    gaprompt,
    gem,
    idpt,
    pointata,
    pointgst,
    pointlora,
    pointpeft,
    pointtpa,
    prompts,
    ssf,
    st_adapter,
)
from pointadapt.methods.core import METHODS, adapt, load_adapted, options

__all__ = [
    "METHODS",
    "adapt",
    "adapters",
    "adaptformer",
    "appt",
    "dapt",
    "gaprompt",
    "gem",
    "idpt",
    "load_adapted",
    "options",
    "pointata",
    "pointgst",
    "pointlora",
    "pointpeft",
    "pointtpa",
    "prompts",
    "ssf",
    "st_adapter",
]

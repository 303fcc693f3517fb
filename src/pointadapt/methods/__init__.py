"""Parameter-efficient methods, one file a paper. Importing this package makes them known to peft."""

from pointadapt.methods import adapters, appt, gaprompt, gem, pointgst, pointlora, pointpeft, pointtpa
from pointadapt.methods.core import METHODS, adapt, load_adapted, options

__all__ = [
    "METHODS",
    "adapt",
    "adapters",
    "appt",
    "gaprompt",
    "gem",
    "load_adapted",
    "options",
    "pointgst",
    "pointlora",
    "pointpeft",
    "pointtpa",
]

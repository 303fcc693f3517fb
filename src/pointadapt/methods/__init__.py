"""Parameter-efficient methods, one file a paper. Importing this package makes them known to peft."""

from pointadapt.methods import adapters, appt, gem, pointgst, pointlora, pointtpa
from pointadapt.methods.core import METHODS, adapt, load_adapted, options

__all__ = [
    "METHODS",
    "adapt",
    "adapters",
    "appt",
    "gem",
    "load_adapted",
    "options",
    "pointgst",
    "pointlora",
    "pointtpa",
]

"""Adapters: the fitted shortcut and its recipe, as a small folder in the Hub's layout."""

from surgery.adapters.files import (
    Adapter,
    BaseModelWarning,
    RoundedBaseWarning,
    UnprovenBaseWarning,
    read_adapter,
    record_calibration,
    save_adapter,
)
from surgery.adapters.hub import CardKeptWarning, Pushed, pull_adapter, push_adapter
from surgery.adapters.published import import_published
from surgery.adapters.sources import load_adapter, open_adapter

__all__ = [
    "Adapter",
    "BaseModelWarning",
    "CardKeptWarning",
    "Pushed",
    "RoundedBaseWarning",
    "UnprovenBaseWarning",
    "import_published",
    "load_adapter",
    "open_adapter",
    "pull_adapter",
    "push_adapter",
    "read_adapter",
    "record_calibration",
    "save_adapter",
]

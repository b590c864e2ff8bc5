"""Adapters: the fitted shortcut and its recipe, as a small folder in the Hub's layout."""

from surgery.adapters.files import Adapter, load_adapter, read_adapter, save_adapter

__all__ = ["Adapter", "load_adapter", "read_adapter", "save_adapter"]

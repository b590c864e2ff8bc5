"""Adapters: the fitted shortcut and its recipe, as a small folder in the Hub's layout."""

from surgery.adapters.files import Adapter as Adapter
from surgery.adapters.files import read_adapter as read_adapter
from surgery.adapters.files import record_calibration as record_calibration
from surgery.adapters.files import save_adapter as save_adapter
from surgery.adapters.hub import CardKeptWarning as CardKeptWarning
from surgery.adapters.hub import pull_adapter as pull_adapter
from surgery.adapters.hub import push_adapter as push_adapter
from surgery.adapters.published import import_published as import_published
from surgery.adapters.sources import load_adapter as load_adapter
from surgery.adapters.sources import open_adapter as open_adapter
from surgery.adapters.warned import BaseModelWarning as BaseModelWarning
from surgery.adapters.warned import RoundedBaseWarning as RoundedBaseWarning
from surgery.adapters.warned import UnprovenBaseWarning as UnprovenBaseWarning

"""`surgery`: post-training model surgery for video models of SAM 2 and SAM 3.

>>> from surgery import sparsify, desparsify
>>> sparsify(model, "balanced")   # the same model, through the same calls, tracks faster
>>> desparsify(model)             # the stock model again, bit for bit
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from surgery.errors import AdapterError as AdapterError
from surgery.errors import AdapterMismatchError as AdapterMismatchError
from surgery.errors import CalibrationError as CalibrationError
from surgery.errors import DatasetError as DatasetError
from surgery.errors import HubError as HubError
from surgery.errors import MissingLibraryError as MissingLibraryError
from surgery.errors import ModelLoadError as ModelLoadError
from surgery.errors import ModelStateError as ModelStateError
from surgery.errors import PictureError as PictureError
from surgery.errors import PromptError as PromptError
from surgery.errors import RecipeError as RecipeError
from surgery.errors import SurgeryError as SurgeryError
from surgery.errors import UnsupportedModelError as UnsupportedModelError
from surgery.errors import VideoError as VideoError
from surgery.errors import WeightsError as WeightsError

__version__ = "0.1.0"

_LAZY = {
    "surgery.adapters": ("load_adapter", "push_adapter", "save_adapter"),
    "surgery.api": ("Status", "sparsify", "status"),
    "surgery.bench": ("Timings", "benchmark"),
    "surgery.calibration": ("CalibrationReport", "calibrate"),
    "surgery.calibration.everything": ("EverythingReport", "fit_everything"),
    "surgery.engine": ("desparsify", "disabled"),
    "surgery.evaluation": ("evaluate",),
    "surgery.pictures": ("everything",),
    "surgery.recipe": ("Recipe", "list_recipes"),
    "surgery.tracking_everything": ("track_everything",),
    "surgery.warm": ("WarmUp", "warm_up"),
}
"""Public names by the module that is imported when the first of them is asked for: most load torch."""
_HOMES = {name: module for module, names in _LAZY.items() for name in names}
_ERRORS = [name for name, each in list(globals().items()) if isinstance(each, type) and issubclass(each, Exception)]
__all__ = [*_HOMES, *_ERRORS, "__version__"]

if TYPE_CHECKING:
    from surgery.adapters import load_adapter as load_adapter
    from surgery.adapters import push_adapter as push_adapter
    from surgery.adapters import save_adapter as save_adapter
    from surgery.api import Status as Status
    from surgery.api import sparsify as sparsify
    from surgery.api import status as status
    from surgery.bench import Timings as Timings
    from surgery.bench import benchmark as benchmark
    from surgery.calibration import CalibrationReport as CalibrationReport
    from surgery.calibration import calibrate as calibrate
    from surgery.calibration.everything import EverythingReport as EverythingReport
    from surgery.calibration.everything import fit_everything as fit_everything
    from surgery.engine import desparsify as desparsify
    from surgery.engine import disabled as disabled
    from surgery.evaluation import evaluate as evaluate
    from surgery.pictures import everything as everything
    from surgery.recipe import Recipe as Recipe
    from surgery.recipe import list_recipes as list_recipes
    from surgery.tracking_everything import track_everything as track_everything
    from surgery.warm import WarmUp as WarmUp
    from surgery.warm import warm_up as warm_up


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

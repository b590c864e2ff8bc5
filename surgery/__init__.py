"""`surgery`: post-training model surgery for video models of SAM 2 and SAM 3.

>>> from surgery import sparsify, desparsify
>>> sparsify(model, "balanced")   # the same model, through the same calls, tracks faster
>>> desparsify(model)             # the stock model again, bit for bit
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "sparsify": "surgery.api",
    "desparsify": "surgery.engine",
    "disabled": "surgery.engine",
    "status": "surgery.api",
    "warm_up": "surgery.warm",
    "WarmUp": "surgery.warm",
    "Status": "surgery.api",
    "Recipe": "surgery.recipe",
    "list_recipes": "surgery.recipe",
    "benchmark": "surgery.bench",
    "Timings": "surgery.bench",
    "calibrate": "surgery.calibration",
    "CalibrationReport": "surgery.calibration",
    "save_adapter": "surgery.adapters",
    "load_adapter": "surgery.adapters",
    "push_adapter": "surgery.adapters",
    "evaluate": "surgery.evaluation",
    "everything": "surgery.pictures",
    "track_everything": "surgery.tracking_everything",
    "fit_everything": "surgery.calibration.everything",
    "EverythingReport": "surgery.calibration.everything",
    "SurgeryError": "surgery.errors",
    "UnsupportedModelError": "surgery.errors",
    "MissingLibraryError": "surgery.errors",
    "ModelLoadError": "surgery.errors",
    "ModelStateError": "surgery.errors",
    "WeightsError": "surgery.errors",
    "RecipeError": "surgery.errors",
    "AdapterError": "surgery.errors",
    "AdapterMismatchError": "surgery.errors",
    "CalibrationError": "surgery.errors",
    "DatasetError": "surgery.errors",
    "HubError": "surgery.errors",
    "VideoError": "surgery.errors",
    "PictureError": "surgery.errors",
    "PromptError": "surgery.errors",
}
__all__ = [*_PUBLIC, "__version__"]

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
    from surgery.evaluation import evaluate as evaluate
    from surgery.pictures import everything as everything
    from surgery.recipe import Recipe as Recipe
    from surgery.recipe import list_recipes as list_recipes
    from surgery.tracking_everything import track_everything as track_everything
    from surgery.warm import WarmUp as WarmUp
    from surgery.warm import warm_up as warm_up


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

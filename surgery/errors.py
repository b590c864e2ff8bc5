"""Every error this library raises on purpose: one base class, one subclass per cause."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path


class SurgeryError(Exception):
    """Base of all errors raised by `surgery`; catch this one to catch them all."""


class UnsupportedModelError(SurgeryError):
    """The model is of a family, or has a structure, that the surgery cannot be applied to."""


class ModelStateError(SurgeryError):
    """The model is in a state that forbids the call: not sparse, already dispatched, compiled, patched by others."""


def bypassed(what: str) -> ModelStateError:
    """The error for a part of which not all ran under the surgery. what: it did, out of how many."""
    return ModelStateError(
        f"{what} under the surgery; was the model compiled before sparsify? Call sparsify first, then compile"
    )


class WeightsError(SurgeryError):
    """A weight the surgery relies on is not finite, or is out of range of the recipe's precision."""


class RecipeError(SurgeryError):
    """A recipe could not be found, read or validated."""


class AdapterError(SurgeryError):
    """An adapter folder is missing, damaged or malformed."""


class AdapterMismatchError(AdapterError):
    """An adapter is well-formed but was made for another model."""


class VideoError(SurgeryError):
    """A video or frame could not be found, read, decoded or written."""


class PromptError(SurgeryError):
    """A mask, box or point prompt does not fit the video."""


class PictureError(SurgeryError):
    """A picture is not of a form, a type or a size that can be segmented."""


class DatasetError(SurgeryError):
    """A dataset folder, its masks or a result file does not have the layout or content it should have."""


class ManifestError(SurgeryError):
    """The videos that a job is to track are not there, or what is asked of them cannot be done."""


class JobError(SurgeryError):
    """A job's folder or its cluster cannot be used."""


class CalibrationError(SurgeryError):
    """Calibration cannot be done: too few usable clips, or a loss that is not finite."""


class HubError(SurgeryError):
    """The Hugging Face Hub could not be reached, refused, or does not have what was asked for."""


class MissingLibraryError(SurgeryError):
    """A library that this part of the work needs is not installed."""


class HardwareError(SurgeryError):
    """The device has no instructions for what the recipe asks of it."""


class ModelLoadError(SurgeryError):
    """A model named on the command line could not be found or built."""


class PrecisionWarning(UserWarning):
    """The caller's autocast asks for another precision than the recipe does."""


class SlowHardwareWarning(UserWarning):
    """The processor can do what the recipe asks, and lacks the instructions that make it fast."""


class DamagedVideoWarning(UserWarning):
    """A video gave fewer frames than it declares; those that came are whole."""


def nearest(value: str, valid: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the valid name closest to `value`, or `""` when none is close."""
    close = difflib.get_close_matches(value, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def nearest_field(name: str, fields: Iterable[str]) -> str:
    """`nearest` among dotted names, told apart by their last parts; of those with the same the shortest way."""
    by_end = {field.split(".")[-1]: field for field in sorted(fields, key=lambda field: -field.count("."))}
    close = difflib.get_close_matches(name, list(by_end), n=1, cutoff=0.5)
    return f" (did you mean {by_end[close[0]]!r}?)" if close else ""


def about(name: str, reason: object) -> str:
    """Return `"name: reason"`, or the reason alone when it begins with the name, or with the path of what bears it."""
    text = str(reason)
    path = Path(re.split("[:,] ", text)[0])
    return text if text.startswith(f"{name}: ") or name in (*path.parts, path.stem, str(path)) else f"{name}: {text}"

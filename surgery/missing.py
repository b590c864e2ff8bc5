"""Libraries that only a part of the work needs: one clear error where one is not installed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module

from surgery.errors import MissingLibraryError


@dataclass(frozen=True)
class Library:
    """module: what is imported to see whether it is there. use: what needs it. command: what installs it.

    extra: which of this project's extras names it; None where no extra can.
    """

    module: str
    use: str
    command: str
    extra: str | None


LIBRARIES = {
    "av": Library("av", "video files", "pip install av", "video"),
    "matplotlib": Library("matplotlib", "plots", "pip install matplotlib", "plots"),
    "accelerate": Library("accelerate", "calibration", "pip install accelerate", "calibration"),
    "rich": Library("rich", "progress bars and tables", "pip install rich", "cli"),
    "click": Library("click", "the command line", "pip install click", "cli"),
    "transformers": Library(
        "transformers.models.sam2_video",
        "the transformers host",
        "pip install transformers torchvision",
        "transformers",
    ),
    "sam2": Library(
        "sam2.sam2_video_predictor",
        "the sam2 host",
        "SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2==1.1.0 (after torch)",
        None,
    ),
}


def require(*names: str) -> None:
    """Import each of `LIBRARIES` named, so that what is missing is known before any work.

    Raises:
        MissingLibraryError: naming the first that cannot be imported, what needs it and how to install it.
    """
    for name in names:
        error = _failure(name)
        if error is not None:
            raise MissingLibraryError(
                f"{LIBRARIES[name].use} needs {name}, which cannot be imported ({error}); {_advice(name)}"
            ) from error


def first_present(names: Iterable[str]) -> str:
    """The first of `LIBRARIES` named that can be imported.

    Raises:
        MissingLibraryError: none can, with how to install each.
    """
    names = list(names)
    for name in names:
        if _failure(name) is None:
            return name
    raise MissingLibraryError(
        f"none of {', '.join(names)} can be imported, one of them is needed: " + "; or ".join(map(_advice, names))
    )


def _failure(name: str) -> ImportError | None:
    try:
        import_module(LIBRARIES[name].module)
    except ImportError as error:
        return error
    return None


def _advice(name: str) -> str:
    library = LIBRARIES[name]
    clone = "" if library.extra is None else f', or in a clone of this project pip install ".[{library.extra}]"'
    return library.command + clone

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

    @property
    def name(self) -> str:
        """Of the package."""
        return self.module.split(".")[0]


LIBRARIES = {
    "av": Library("av", "video files", "pip install av", "video"),
    "scipy": Library("scipy.optimize", "calibration", "pip install scipy", "calibration"),
    "rich": Library("rich", "progress bars and tables", "pip install rich", "cli"),
    "ray": Library("ray", "jobs on a cluster", "pip install ray", "ray"),
    "pycocotools": Library("pycocotools", "scores on COCO and LVIS files", "pip install pycocotools", "coco"),
    "click": Library("click", "the command line", "pip install click", "cli"),
}
"""Those that no host needs."""


def require(*needed: str | Library) -> None:
    """Import each, a library or the name of one of `LIBRARIES`, so that what is missing is known before any work.

    Raises:
        MissingLibraryError: naming the first that cannot be imported, what needs it and how to install it.
    """
    for each in needed:
        library = LIBRARIES[each] if isinstance(each, str) else each
        error = _failure(library)
        if error is not None:
            raise MissingLibraryError(
                f"{library.use} needs {library.name}, which cannot be imported ({error}); {_advice(library)}"
            ) from error


def first_present(libraries: Iterable[Library]) -> Library:
    """The first that can be imported.

    Raises:
        MissingLibraryError: none can, with how to install each.
    """
    libraries = list(libraries)
    for library in libraries:
        if _failure(library) is None:
            return library
    names = ", ".join(library.name for library in libraries)
    raise MissingLibraryError(
        f"none of {names} can be imported, one of them is needed: " + "; or ".join(map(_advice, libraries))
    )


def _failure(library: Library) -> ImportError | None:
    try:
        import_module(library.module)
    except ImportError as error:
        return error
    return None


def _advice(library: Library) -> str:
    clone = "" if library.extra is None else f', or in a clone of this project pip install ".[{library.extra}]"'
    return library.command + clone

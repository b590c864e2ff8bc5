"""How models of a host come to be: what the command line, the demo and model cards ask of it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from surgery.errors import ModelLoadError
from surgery.missing import Library

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Loader(ABC):
    """Saved models of a host, and those it builds.

    library: the host's. title: of the host in a model card. forms: of what `load` takes, as a user knows them. default:
    tried before others where no host is named. vos: `build` has a predictor that compiles itself whole. own: sizes by
    name that `build` takes in the place of those of SAM 2.1; None: those. detects: `detector` loads object detectors.
    """

    library: ClassVar[Library]
    title: ClassVar[str]
    forms: ClassVar[str]
    default: ClassVar[bool] = False
    vos: ClassVar[bool] = False
    own: ClassVar[Mapping[str, Any] | None] = None
    detects: ClassVar[bool] = False

    @abstractmethod
    def reads(self, spec: str) -> bool:
        """Whether `spec` is of the form `load` takes; whether there is such a model is for `load` to say."""

    def owns(self, spec: str) -> bool:
        """Whether what lies there is a model of this host, of several that read such a spec; it may be looked at.

        Raises:
            ModelLoadError: it cannot be.
        """
        return True

    @abstractmethod
    def load(self, spec: str, weights: bool) -> Any:
        """A saved model, on the CPU; without `weights` they stay as the model is built with.

        Raises:
            ModelLoadError: a missing file, or a checkpoint that does not fit.
        """

    @abstractmethod
    def example(self, base: str | None) -> tuple[str, str] | None:
        """The import line and the expression by which users load the model with this Hub id, for the card of an
        adapter; None: it takes none."""

    def build(self, size: Any, vos: bool = False) -> Any:
        """A model of a size (`own`, or of SAM 2.1), on the CPU, with the weights the host starts from."""
        raise ModelLoadError(f"{self.library.use} builds no models; expected a saved one: {self.forms}")

    def detector(self, name: str, device: torch.device) -> Any:
        """An object detector by its Hub id or folder: a function of a picture RGB [H, W, 3] that gives boxes [n, 4]
        (x0, y0, x1, y1) in pixels and their scores [n]."""
        raise ModelLoadError(f"{self.library.use} has no object detectors")

    def to_neutral(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of `build`'s under neutral names, which are those of stock `sam2`."""
        return state

    def from_neutral(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse."""
        return state

    def quiet(self) -> None:
        """Silence what the library says of itself: the command line's output is ours."""
        logging.getLogger(self.library.name).setLevel(logging.ERROR)

"""What a job is made of, workers and what becomes of their work, and the job of one process."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from surgery import loading
from surgery.api import sparsify
from surgery.digests import code_digest, weights_digest
from surgery.hosts import view_of
from surgery.operations import CompileParts
from surgery.recipe import Recipe
from surgery.warm import warm_up

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Setup:
    """The model of every worker of a job. model, host, device: as of `load_model`. recipe: None for the stock model.

    folder: what relative paths start from.
    """

    model: str
    recipe: Recipe | None = None
    adapter: str | None = None
    host: str | None = None
    device: str | None = None
    folder: str = field(default_factory=os.getcwd)


def nothing() -> None:
    """A step that nobody watches."""


class Worker(ABC, Generic[A, R]):
    """Loads the model once. `load` comes before `run`; making one costs nothing."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model: Any = None

    def load(self, threads: int | None = None) -> dict[str, Any]:
        """Load the model, operate on it and compile what its recipe compiles.

        Args:
            threads: of PyTorch's operators, in an actor; None is in the process of the job.

        Returns:
            Digests of the weights and of our code, the host and the kind of device: alike in all workers of a job.
        """
        setup = self.setup
        if threads is not None:
            torch.set_num_threads(threads)
            # Not there where only addresses and paths from the root are used.
            with suppress(OSError):
                os.chdir(setup.folder)
        model = loading.load_model(setup.model, setup.host, setup.device)
        if setup.recipe is not None or setup.adapter is not None:
            state = sparsify(model, setup.recipe, adapter=setup.adapter)
            if setup.recipe is not None and setup.recipe.find(CompileParts) is not None:
                warm_up(state)
        self.model = model
        return made_by(model)

    @abstractmethod
    def run(self, asked: A, step: Callable[[], None] = nothing) -> R:
        """Do one piece of work; `step` is called after every frame. Whatever it raises is its outcome."""


def made_by(model: Any) -> dict[str, Any]:
    """See `Worker.load`."""
    return {
        "weights": weights_digest(model.state_dict()),
        "code": code_digest(),
        "host": view_of(model).name,
        "device": next(model.parameters()).device.type,
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class Outcome(Generic[A, R]):
    """What became of `asked`: its result, or the error. tries: how often it was begun."""

    asked: A
    result: R | Exception
    tries: int = 1


def told(error: BaseException) -> str:
    """An error as a list of failures has it."""
    return str(error) or type(error).__name__


class Alone(Generic[A, R]):
    """One worker, here. Whatever goes wrong with a piece of work is its outcome, and the next one comes."""

    size = 1

    def __init__(self, worker: Worker[A, R], step: Callable[[], None] = nothing) -> None:
        self._worker, self._step = worker, step

    def __enter__(self) -> Alone[A, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.model = None

    def load(self) -> dict[str, Any]:
        """See `Worker.load`."""
        return self._worker.load()

    def outcomes(self, asked: Iterator[A]) -> Iterator[Outcome[A, R]]:
        """Do them in turn."""
        for each in asked:
            try:
                yield Outcome(each, self._worker.run(each, self._step))
            except Exception as error:
                yield Outcome(each, error)

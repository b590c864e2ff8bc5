"""Runs a program on a model: videos take turns, and each notes every mask it gets."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.errors import ModelStateError
from tests.fuzz.calls import cached, clear, module_at, objects, prompt
from tests.fuzz.programs import FRAMES, Clear, Cut, Dense, Program, Prompt, Remove, Reset, Run, Spawn, Step, Trouble
from tests.hosts.drive import Driver, video

Masks = dict[int, Tensor]
Noted = tuple[str, Masks]
"""What was done, and the masks by object id. What the host refuses is noted by its message, without masks."""
Lineage = list[tuple[int, tuple[Step, ...]]]


class Broken(Exception):
    """Raised in the middle of a frame."""


class Video:
    """One session and the steps before it. number: of the video of the program whose step is next."""

    def __init__(self, company: Company, lineage: Lineage, session: Any = None) -> None:
        self.company, self.driver = company, company.driver
        self.number, self.root = lineage[0][0], lineage[0][0]
        self.session = self.driver.session(video(FRAMES, self.root)) if session is None else session
        self.noted: list[Noted] = []
        self.ended = False
        self._suspended: list[Any] = []
        self._ticks = self._play(lineage)

    def tick(self) -> None:
        """One call, or one frame."""
        if next(self._ticks, self) is self:
            self.ended = True

    def close(self) -> None:
        """Give up the generators that were left suspended."""
        for run in self._suspended:
            run.close()

    def _play(self, lineage: Lineage) -> Iterator[None]:
        for position, (number, steps) in enumerate(lineage):
            self.number = number
            for step in steps:
                if isinstance(step, Run):
                    yield from self._run(step)
                    continue
                if isinstance(step, Spawn):
                    leads_on = step is steps[-1] and position + 1 < len(lineage)
                    self._spawn(step, leads_on)
                else:
                    self._refusable(self._call, step)
                yield

    def _refusable(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (Broken, AssertionError):
            raise
        except Exception as error:
            self.noted.append((f"{type(error).__name__}: {error}", {}))
            return None

    def _spawn(self, step: Spawn, leads_on: bool) -> None:
        if self.company.alone:
            if leads_on:
                self.number = step.child
                self.session = _pickled(self.session) if step.pickled else self.session
            return
        with self.company.still:
            session = _pickled(self.session) if step.pickled else copy.deepcopy(self.session)
        twin = Video(self.company, [(step.child, self.company.program.videos[step.child])], session)
        twin.root, twin.noted = self.root, list(self.noted)
        self.company.videos.append(twin)

    def _call(self, step: Step) -> None:
        known = objects(self.session)
        if isinstance(step, Prompt):
            masks = prompt(self.driver, self.session, step)
            if step.obj_id not in known:
                self.noted.append(("first prompt", {step.obj_id: masks.pop(step.obj_id)}))
            self.noted.append(("prompt", masks))
        elif isinstance(step, Clear) and step.obj_id in known:
            clear(self.driver, self.session, step)
        elif isinstance(step, Remove) and self.driver.host == "sam2":
            self.driver.model.remove_object(self.session, step.obj_id)
        elif isinstance(step, Reset):
            self.driver.reset(self.session)

    def _run(self, step: Run) -> Iterator[None]:
        ahead, back = step.start, -1 if step.reverse else 1
        run = self.driver.propagate(self.session, step.start, step.reverse, step.count)
        for number in range(step.take):
            # The hosts track frame 0 in reverse only on the way to it.
            again = ahead is not None and not (step.reverse and ahead == 0) and not self.company.alone
            trouble = step.troubles.get(number) if again else None
            try:
                found = self._refusable(self._frame, run, trouble)
            except Broken:
                run = self.driver.propagate(self.session, ahead, step.reverse, step.count - number)
                found = self._refusable(next, run, None)
            if found is None:
                break
            frame, masks = found
            ahead = frame + back
            self.noted.append((f"frame {frame}", masks))
            if trouble is not None and trouble.kind == "again":
                _, twice = next(self.driver.propagate(self.session, frame, step.reverse, 0))
                assert equal(twice, masks), f"frame {frame}, tracked again, has other masks"
            yield
        if step.close:
            run.close()  # type: ignore[attr-defined]
        else:
            self._suspended.append(run)

    def _frame(self, run: Iterator[Any], trouble: Trouble | None) -> Any:
        with self.company.befallen(trouble):
            return next(run, None)


class Company:
    """The videos of a program on one model.

    recipe: the model is under it; None for a stock model, on which surgery and `disabled` do nothing. only: this video
    runs alone, as if there were no other: no copies are made, nothing goes wrong on the way. still: held while a
    session is copied, which no other thread may change meanwhile.
    """

    def __init__(self, driver: Driver, program: Program, recipe: str | None, only: int | None = None) -> None:
        self.driver, self.program, self.recipe = driver, program, recipe
        self.alone = only is not None
        self.still = threading.Lock()
        self._inside: dict[int, AbstractContextManager[None]] = {}
        children = {step.child for steps in program.videos.values() for step in steps if isinstance(step, Spawn)}
        if only is not None:
            self.videos = [Video(self, program.lineage(only))]
        else:
            self.videos = [Video(self, program.lineage(root)) for root in program.videos if root not in children]

    def run(self) -> dict[int, list[Noted]]:
        """Everything noted, by the number of the video."""
        for entry in self.program.schedule:
            if isinstance(entry, int):
                for one in self.videos:
                    if one.number == entry and not one.ended:
                        one.tick()
                        break
            elif self.recipe is not None:
                self._concern_model(entry)
        for one in self.videos:
            while not one.ended:
                one.tick()
        for one in self.videos:
            one.close()
        return {one.number: one.noted for one in self.videos}

    def _concern_model(self, entry: Dense | Cut) -> None:
        model = self.driver.model
        if isinstance(entry, Cut):
            _ = surgery.sparsify(model, self.recipe) if entry.sparse else surgery.desparsify(model)
        elif entry.enter:
            self._inside[entry.context] = surgery.disabled(model)
            self._inside[entry.context].__enter__()
        else:
            self._inside.pop(entry.context).__exit__(None, None, None)
        status = surgery.status(model)
        assert status.enabled == (status.sparse and not self._inside), f"after {entry}, {len(self._inside)} disabled"

    @contextmanager
    def befallen(self, trouble: Trouble | None) -> Iterator[None]:
        """For one frame: its trouble happens to the calling thread."""
        model, thread = self.driver.model, threading.get_ident()
        if trouble is None or trouble.kind == "again":
            yield
            return

        def happen(*_: object) -> None:
            if threading.get_ident() != thread:
                return
            if trouble.kind == "errors":
                raise Broken
            if surgery.status(model).sparse:
                for call in (surgery.desparsify, surgery.sparsify):
                    with pytest.raises(ModelStateError):
                        call(model)

        hook = module_at(self.driver, trouble.place).register_forward_hook(happen)
        try:
            yield
        finally:
            hook.remove()

    def leaves_nothing(self, stock: Driver) -> None:
        """Assert that no session has anything of the surgery after undo, nor features that are not stock.

        stock: a stock model with the same weights.
        """
        surgery.desparsify(self.driver.model)
        for one in self.videos:
            assert not self.driver.extras(one.session), f"video {one.number} keeps its state"
            for frame in cached(one.session):
                probe = Prompt(frame, 99, "point", 70, 120)
                expected = prompt(stock, stock.session(video(FRAMES, one.root)), probe)
                found = prompt(self.driver, one.session, probe)
                assert torch.equal(found[99], expected[99]), f"video {one.number} keeps features of frame {frame}"


def _pickled(session: Any) -> Any:
    return pickle.loads(pickle.dumps(session))


def equal(left: Masks, right: Masks) -> bool:
    """Whether both have the same objects with the same masks, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(mask, right[obj_id]) for obj_id, mask in left.items())


def difference(found: list[Noted], expected: list[Noted], only: str = "") -> str:
    """The first thing noted that differs, or "". only: of what was done, compare the masks of this alone."""
    if [done for done, _ in found] != [done for done, _ in expected]:
        pairs = zip([*found, ("end", {})], [*expected, ("end", {})], strict=False)
        return next(f"step {at}: {a[0]}, not {b[0]}" for at, (a, b) in enumerate(pairs) if a[0] != b[0])
    for at, ((done, masks), (_, wanted)) in enumerate(zip(found, expected, strict=True)):
        if done.startswith(only) and not equal(masks, wanted):
            apart = max((float((masks[k] - wanted[k]).abs().max()) for k in masks.keys() & wanted.keys()), default=-1.0)
            return f"step {at} ({done}): masks of {sorted(masks)} against {sorted(wanted)} are {apart:g} apart"
    return ""

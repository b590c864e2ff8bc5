"""Random programs of what a caller may do with videos: plain data, the same for every host and every recipe."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

FRAMES = 10
OBJECTS = (1, 2, 5)
PLACES = ("block", "neck", "memory attention", "decoder", "memory encoder")
Mishap = Literal["again", "errors", "inside"]
TROUBLES: tuple[Mishap, ...] = get_args(Mishap)
"""A frame is tracked a second time; a module raises in the middle of it, and it is tried again; surgery is asked for
from inside it."""
Kind = Literal["point", "box", "mask"]


@dataclass(frozen=True)
class Prompt:
    """kind: of prompt, around (x, y). more: added to the points that are there, where it is a point."""

    frame: int
    obj_id: int
    kind: Kind
    x: int
    y: int
    more: bool = False


@dataclass(frozen=True)
class Remove:
    """Forget an object, where the host can."""

    obj_id: int


@dataclass(frozen=True)
class Clear:
    """Take an object's prompts on a frame back."""

    frame: int
    obj_id: int


@dataclass(frozen=True)
class Reset:
    """Forget every object."""


@dataclass(frozen=True)
class Trouble:
    """What befalls one frame and must leave no trace. place: of `PLACES`."""

    kind: Mishap
    place: str


@dataclass(frozen=True)
class Run:
    """Propagate. take: frames after which the generator is given up. close: it is closed then, else left suspended.

    troubles: by the number of the frame in this run.
    """

    start: int | None
    count: int
    reverse: bool
    take: int
    close: bool
    troubles: dict[int, Trouble] = field(default_factory=dict)


@dataclass(frozen=True)
class Spawn:
    """The session is copied, and the copy goes on as video `child` beside it."""

    child: int
    pickled: bool


Step = Prompt | Remove | Clear | Reset | Run | Spawn


@dataclass(frozen=True)
class Dense:
    """`disabled` number `context` is entered, or left."""

    context: int
    enter: bool


@dataclass(frozen=True)
class Cut:
    """Between two frames: sparsify (again), or desparsify."""

    sparse: bool


Entry = int | Dense | Cut
"""One step or frame of a video by its number, or something that concerns the model."""


@dataclass(frozen=True)
class Program:
    """videos: steps by number; those that a `Spawn` names begin there. schedule: what is done in which order.

    What the schedule does not get to is done after it, video by video.
    """

    videos: dict[int, tuple[Step, ...]]
    schedule: tuple[Entry, ...]

    def lineage(self, video: int) -> list[tuple[int, tuple[Step, ...]]]:
        """The steps that lead to the end of `video`, its ancestors' first, with the video whose they are."""
        for parent, steps in self.videos.items():
            for at, step in enumerate(steps):
                if isinstance(step, Spawn) and step.child == video:
                    return [*self.lineage(parent)[:-1], (parent, steps[: at + 1]), (video, self.videos[video])]
        return [(video, self.videos[video])]


def program(seed: int, roots: tuple[int, ...] = (0, 1), cuts: bool = True, dense: bool = True) -> Program:
    """A program of the videos `roots` (each below 10) and their copies.

    cuts: with surgery between frames. dense: with `disabled` around some of them.
    """
    dice = random.Random(seed)
    videos: dict[int, tuple[Step, ...]] = {}
    for root in roots:
        prompted: list[int] = []
        steps = [_prompt(dice, prompted), *_steps(dice, prompted, dice.randint(2, 4))]
        for pickled in (False, True):
            if dice.random() < 0.4:
                child = 100 + 10 * root + pickled
                videos[child] = tuple(_steps(dice, prompted, 1))
                steps.insert(dice.randint(2, len(steps)), Spawn(child, pickled))
        videos[root] = tuple(steps)
    return Program(videos, tuple(_schedule(dice, sorted(videos), cuts, dense)))


def _steps(dice: random.Random, prompted: list[int], count: int) -> Iterator[Step]:
    for _ in range(count):
        kind = dice.choices(("run", "prompt", "clear", "remove", "reset"), (50, 30, 8, 8, 4))[0]
        if kind == "run":
            yield _run(dice, prompted)
        elif kind == "clear":
            yield Clear(dice.choice(prompted), dice.choice(OBJECTS))
        elif kind == "remove":
            yield Remove(dice.choice(OBJECTS))
        else:
            if kind == "reset":
                prompted.clear()
                yield Reset()
            yield _prompt(dice, prompted)
    yield _run(dice, prompted)


def _prompt(dice: random.Random, prompted: list[int]) -> Prompt:
    """prompted: the frames that have prompts; this one's is added."""
    frame = dice.randrange(FRAMES) if prompted else dice.choice((0, 0, 2))
    prompted.append(frame)
    kind: Kind = dice.choice(("point", "point", "box", "mask"))
    x, y, more = dice.randrange(40, 200), dice.randrange(60, 160), kind == "point" and dice.random() < 0.4
    return Prompt(frame, dice.choice(OBJECTS), kind, x, y, more)


def _run(dice: random.Random, prompted: list[int]) -> Run:
    """From a prompt on, mostly."""
    count, reverse, start = dice.choice((3, 4, 9)), dice.random() < 0.3, dice.choice(prompted)
    if dice.random() < 0.1:
        start = dice.randrange(FRAMES)
    troubles = {
        frame: Trouble(dice.choice(TROUBLES), dice.choice(PLACES)) for frame in range(count) if dice.random() < 0.25
    }
    first = None if not reverse and dice.random() < 0.3 else start
    return Run(
        first, count, reverse, dice.choice((FRAMES, FRAMES, dice.randint(1, count))), dice.random() < 0.5, troubles
    )


def _schedule(dice: random.Random, videos: list[int], cuts: bool, dense: bool) -> Iterator[Entry]:
    inside: list[int] = []
    sparse = True
    for number in range(40):
        event = dice.random()
        if event < 0.04 and sparse and dense:
            inside.append(number)
            yield Dense(number, enter=True)
        elif event < 0.3 and inside:
            yield Dense(inside.pop(dice.choice((0, -1))), enter=False)
        elif 0.3 < event < 0.325 and cuts and not inside:
            sparse = not sparse or dice.random() < 0.3
            yield Cut(sparse)
        else:
            yield dice.choice(videos)
    for number in reversed(inside):
        yield Dense(number, enter=False)

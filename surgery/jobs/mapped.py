"""Evaluation by sequences, and calibration by clips, on the actors of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from surgery.calibration.fidelity import Each, in_turn
from surgery.calibration.whole import Before
from surgery.errors import JobError
from surgery.evaluation.arms import arms_of, facts_of
from surgery.evaluation.dataset import Dataset
from surgery.evaluation.run import score
from surgery.evaluation.scores import Scores
from surgery.evaluation.sequence_run import Asked, Found, SequenceRun
from surgery.jobs.alone import A, R, Setup, Worker, made_by, nothing, told
from surgery.jobs.pool import Pool, PoolSettings


def results(pool: Pool[A, R], asked: Iterable[A]) -> Iterator[tuple[A, R]]:
    """What was asked, and its result, as they come. Raises, after all the others, what became of those that failed."""
    failed = []
    for outcome in pool.outcomes(iter(asked)):
        if isinstance(outcome.result, Exception):
            failed.append(outcome.result)
        else:
            yield outcome.asked, outcome.result
    if len(failed) > 1:
        raise JobError("\n".join([f"{len(failed)} failed, the others are done:", *map(told, failed)]))
    if failed:
        raise failed[0]


class Scoring(Worker[Asked, Found]):
    """Tracks and scores sequences, with the stock model beside the other one if `dense_too`."""

    def __init__(self, setup: Setup, dense_too: bool) -> None:
        super().__init__(setup)
        self._dense_too = dense_too

    def load(self, threads: int | None = None) -> dict[str, Any]:
        """Load the models; returns `facts_of` them."""
        super().load(threads)
        self._arms = arms_of(self.model, None, None, self._dense_too)
        return facts_of(self._arms)

    def run(self, asked: Asked, step: Callable[[], None] = nothing) -> Found:
        """See `SequenceRun.run`."""
        return SequenceRun(asked, self._arms).run(step)


def evaluate(dataset: Dataset, setup: Setup, pool: PoolSettings, *, dense_too: bool = False, **how: Any) -> Scores:
    """`surgery.evaluate` on a cluster: scores and masks are those of one process. Times are measured beside the others.

    Args:
        dataset: of `surgery.evaluation.open_dataset`. setup: the model, and what it runs under. pool: where.
        dense_too, how: as of `surgery.evaluate`; `out` and the data set lie at the same paths on all machines.

    Raises:
        JobError: the cluster, or several sequences that failed. Those that are done stay in `out`.
        SurgeryError: as `surgery.evaluate`; one that is of a sequence comes after all others are done.
    """
    with Pool(pool, Scoring, setup, dense_too) as engine:
        facts = engine.load()
        return score(lambda asked, step: results(engine, asked), facts, dataset, **{"name": setup.model, **how})


Call = tuple[int, Callable[..., Any], Before, Any]


class Mapped(Worker[Call, tuple[int, Any]]):
    """Calls functions with its model, made just like the caller's."""

    def run(self, asked: Call, step: Callable[[], None] = nothing) -> tuple[int, Any]:
        """How many steps it took, and what came of it."""
        _, function, state, item = asked
        state.restore(self.model)
        steps = count()
        result = function(self.model, item, steps.__next__)
        return next(steps), result


@contextmanager
def clips_on(model: Any, setup: Setup, pool: PoolSettings | None) -> Iterator[Each[Any, Any]]:
    """What `calibrate` takes as `each`: dense masks, runs from the dense state and whole clips go to the cluster.

    Args:
        model: the stock one that will be calibrated. setup: how it is loaded. pool: where; None for this process.

    Raises:
        JobError: the cluster, or it has another model, code or kind of device than this process.
    """
    if pool is None:
        yield in_turn
        return
    with Pool(pool, Mapped, setup) as engine:
        engine.check(made_by(model))
        engine.load()

        def each(function: Callable[..., Any], model: Any, items: Sequence[Any], step: Callable[[], None]) -> list[Any]:
            state = Before(model)
            found: dict[int, Any] = {}
            for (place, *_), (steps, result) in results(
                engine, ((place, function, state, item) for place, item in enumerate(items))
            ):
                found[place] = result
                for _ in range(steps):
                    step()
            return [found[place] for place in range(len(items))]

        yield each

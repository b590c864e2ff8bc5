"""`evaluate`: a data set through a model, dense, sparse or both, resumable."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from surgery.errors import DatasetError
from surgery.evaluation.arms import arms_of, facts_of
from surgery.evaluation.dataset import Dataset
from surgery.evaluation.drift_free import STEPS
from surgery.evaluation.layouts import open_dataset
from surgery.evaluation.metrics import TOLERANCE
from surgery.evaluation.scores import Scores
from surgery.evaluation.scoring import convention_named
from surgery.evaluation.sequence_run import Asked, Found, SequenceRun
from surgery.evaluation.store import RunStore
from surgery.recipe import Recipe

Progress = Callable[[int, int, str], None]
Run = Callable[[Iterable[Asked], Callable[[], None]], Iterator[tuple[Asked, Found]]]


def evaluate(
    model: Any,
    dataset: str | Dataset,
    root: str | Path | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    adapter: str | Path | None = None,
    dense_too: bool = False,
    split: str | None = None,
    sequences: Iterable[str] | None = None,
    max_frames: int | None = None,
    convention: str | None = None,
    tolerance: float = TOLERANCE,
    out: str | Path | None = None,
    record: bool = False,
    drift_free: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    command: str | None = None,
) -> Scores:
    """Track the annotated objects of a data set from their first masks, and score the masks with J and F.

    Args:
        model: a video model of either host; it is not changed (a copy goes under surgery). With neither `recipe` nor
            `adapter` it runs as it is, stock or sparse.
        dataset: a layout's name (`surgery.evaluation.DATASETS`) or an opened data set.
        root: its folder, when `dataset` is a name. split: which part of it.
        recipe, adapter: run the model under this surgery; see `sparsify`.
        dense_too: run the stock model beside it, frame by frame in turn. With a stock model alone it changes nothing.
        sequences: names of those to run; default all.
        max_frames: look at the first frames of every sequence only.
        convention: which frames count, a name of `surgery.evaluation.CONVENTIONS`; default the data set's.
        tolerance: of F, share of the image diagonal in (0, 1).
        out: folder for results and predictions, which makes the run resumable. None writes nothing.
        record: also write a trace of every sequence (needs `out`).
        drift_free: also compare sparse frames with dense ones from the dense model's own state, see
            `surgery.evaluation.drift_free`; of the objects on the first prompted frame.
        progress: called with frames done, frames in all and the running sequence.
        name, command: how the model and the call are named in the results.

    Raises:
        DatasetError: the data set, a mask, the convention, or the folder `out`.
        UnsupportedModelError, RecipeError, AdapterError: see `sparsify`.
    """
    opened = _open(dataset, root, split)
    arms = arms_of(model, recipe, adapter, dense_too)
    return score(
        lambda asked, step: ((each, SequenceRun(each, arms).run(step)) for each in asked), facts_of(arms), opened,
        sequences=sequences, max_frames=max_frames, convention=convention, tolerance=tolerance, out=out, record=record,
        drift_free=drift_free, progress=progress, name=name, command=command,
    )  # fmt: skip


def score(
    run: Run, facts: dict[str, Any], dataset: Dataset, *, sequences: Iterable[str] | None = None,
    max_frames: int | None = None, convention: str | None = None, tolerance: float = TOLERANCE,
    out: str | Path | None = None, record: bool = False, drift_free: bool = False, progress: Progress | None = None,
    name: str | None = None, command: str | None = None,
) -> Scores:  # fmt: skip
    """`evaluate` by whatever runs sequences, in this process or elsewhere.

    Args:
        run: does what is asked and gives it back with what was found, in any order. facts: of `facts_of` where the
        models are. The rest as of `evaluate`.
    """
    chosen = dataset.choose(sequences)
    rule = convention or chosen.convention
    convention_named(rule)
    if max_frames is not None and max_frames < 1:
        raise DatasetError(f"max_frames {max_frames}, expected at least 1")
    if not 0 < tolerance < 1:
        expected = f"expected a share of the image diagonal in (0, 1) such as {TOLERANCE}"
        raise DatasetError(f"tolerance {tolerance}, {expected}")
    if record and out is None:
        raise DatasetError("record writes files: expected `out`, the folder for them")
    if drift_free and "sparse" not in facts["arms"]:
        raise DatasetError("drift_free compares sparse frames with dense ones: expected a recipe or an adapter")
    machine = facts["machine"]
    # Everything that can change a result, as plain data; also the head of eval.json.
    settings = {
        **{name: value for name, value in facts.items() if name != "machine"},
        **{name: machine[name] for name in ("device", "cpu", "threads", "versions")},
        "model": name or facts["model"],
        "dataset": chosen.name,
        "split": chosen.split,
        "max_frames": max_frames,
        "convention": rule,
        "tolerance": tolerance,
        "record": record,
    }
    if drift_free:
        settings["drift_free"] = list(STEPS)
    store = RunStore(Path(out), settings, chosen.tree) if out is not None else None
    asked = partial(
        Asked, convention=rule, tolerance=tolerance, max_frames=max_frames, drift_free=drift_free, record=record
    )
    try:
        shown = progress or (lambda done, total, sequence: None)
        results = _run_all(run, asked, facts["arms"], chosen, record, store, shown)
    finally:
        if store is not None:
            store.close()
    head = _head(settings, chosen, machine, store, command)
    not_scored = [reason for found in results for reason in found["not_scored"]]
    scores = Scores(head, [found["row"] for found in results], not_scored)
    if out is not None:
        scores.write(Path(out))
    return scores


def _open(dataset: str | Dataset, root: str | Path | None, split: str | None) -> Dataset:
    if isinstance(dataset, Dataset):
        if root is not None or split is not None:
            raise DatasetError("root and split go with a layout's name; this data set is open already")
        return dataset
    if root is None:
        raise DatasetError(f"data set {dataset!r} without a root, expected the folder it lies in")
    return open_dataset(dataset, root, split)


def _run_all(
    run: Run, asked: Callable[..., Asked], names: list[str], dataset: Dataset, record: bool, store: RunStore | None,
    progress: Progress,
) -> list[Found]:  # fmt: skip
    """What was found of every sequence, in their order."""
    digests = {sequence.name: sequence.digest() for sequence in dataset.sequences}
    results: dict[str, Found] = {}
    for name, digest in digests.items():
        known = store.finished(name, digest, names, record) if store is not None else None
        if known is not None:
            results[name] = known
    left = [sequence for sequence in dataset.sequences if sequence.name not in results]
    total = sum(asked(sequence, None).frames for sequence in left)
    shown, done, running = 0, 0, ""

    def begun() -> Iterator[Asked]:
        nonlocal running
        for sequence in left:
            running = sequence.name
            progress(shown, total, running)
            yield asked(sequence, store.start(running, names) if store is not None else None)

    def step() -> None:
        nonlocal shown
        shown += 1
        progress(shown, total, running)

    for one, found in run(begun(), step):
        name = one.sequence.name
        done += one.frames
        if shown < done:
            # Elsewhere frames are not counted while they are tracked.
            shown = done
            progress(shown, total, name)
        found["row"]["digest"] = digests[name]
        trace = found.pop("trace")
        if store is not None:
            store.finish(name, names, found, trace)
        results[name] = found
    return [results[name] for name in digests]


def _head(
    settings: dict[str, Any], dataset: Dataset, machine: dict[str, Any], store: RunStore | None, command: str | None
) -> dict[str, Any]:
    places: dict[str, Any] = {"predictions": None, "traces": None}
    if store is not None:
        places["predictions"] = {arm: str(store.predictions(arm).relative_to(store.out)) for arm in settings["arms"]}
        places["traces"] = str(store.traces.relative_to(store.out)) if settings["record"] else None
    return {
        "kind": "eval",
        "schema": 1,
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine,
        "key": store.key if store is not None else None,
        "settings": settings,
        "dataset_root": str(dataset.root),
        **places,
    }

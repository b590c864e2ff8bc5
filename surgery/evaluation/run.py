"""`evaluate`: a data set through a model, dense, sparse or both, resumable."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import PIL

from surgery.api import sparsify, status
from surgery.bench.machine import machine
from surgery.digests import code_digest, weights_digest
from surgery.engine import current_surgery, desparsify
from surgery.errors import DatasetError
from surgery.evaluation.dataset import Dataset, Sequence
from surgery.evaluation.drift_free import STEPS
from surgery.evaluation.layouts import open_dataset
from surgery.evaluation.metrics import TOLERANCE
from surgery.evaluation.scores import Scores
from surgery.evaluation.scoring import convention_named
from surgery.evaluation.sequence_run import SequenceRun
from surgery.evaluation.store import RunStore
from surgery.hosts import view_of
from surgery.recipe import Recipe

Progress = Callable[[int, int, str], None]


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
    chosen = _open(dataset, root, split).choose(sequences)
    rule = convention or chosen.convention
    convention_named(rule)
    _check_numbers(max_frames, tolerance, record, out)
    arms = _arms(model, recipe, adapter, dense_too)
    if drift_free and "sparse" not in arms:
        raise DatasetError("drift_free compares sparse frames with dense ones: expected a recipe or an adapter")
    settings = _settings(arms, chosen, name, max_frames, rule, tolerance, record)
    if drift_free:
        settings["drift_free"] = list(STEPS)
    store = RunStore(Path(out), settings, chosen.tree) if out is not None else None
    try:
        shown = progress or (lambda done, total, sequence: None)
        one = partial(
            SequenceRun, arms=arms, convention=rule, tolerance=tolerance, max_frames=max_frames, drift_free=drift_free
        )
        rows, not_scored = _run_all(one, arms, chosen, max_frames, record, store, shown)
    finally:
        if store is not None:
            store.close()
    scores = Scores(_head(settings, chosen, arms, store, command), rows, not_scored)
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


def _check_numbers(max_frames: int | None, tolerance: float, record: bool, out: str | Path | None) -> None:
    if max_frames is not None and max_frames < 1:
        raise DatasetError(f"max_frames {max_frames}, expected at least 1")
    if not 0 < tolerance < 1:
        raise DatasetError(
            f"tolerance {tolerance}, expected a share of the image diagonal in (0, 1) such as {TOLERANCE}"
        )
    if record and out is None:
        raise DatasetError("record writes files: expected `out`, the folder for them")


def _arms(model: Any, recipe: Any, adapter: Any, dense_too: bool) -> dict[str, Any]:
    """The models to run. Stock goes first; nothing the caller holds is changed."""
    if recipe is None and adapter is None:
        if current_surgery(model) is None:
            return {"dense": model}
        sparse = model
    else:
        sparse = sparsify(copy.deepcopy(model), recipe, adapter=adapter)
    if not dense_too:
        return {"sparse": sparse}
    return {"dense": model if current_surgery(model) is None else desparsify(copy.deepcopy(model)), "sparse": sparse}


def _settings(
    arms: dict[str, Any], dataset: Dataset, name: str | None, max_frames: int | None, convention: str, tolerance: float,
    record: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that can change a result, as plain data; also the head of eval.json."""
    some = next(iter(arms.values()))
    reference = next(some.parameters())
    state = status(arms["sparse"]) if "sparse" in arms else None
    recipe = state.recipe.to_dict() if state is not None and state.recipe is not None else None
    facts = machine(reference.device)
    return {
        "model": name or type(some).__name__,
        "host": view_of(some).name,
        "dtype": str(reference.dtype).removeprefix("torch."),
        "device": facts["device"],
        "cpu": facts["cpu"],
        "threads": facts["threads"],
        "arms": list(arms),
        "weights": {arm: weights_digest(model.state_dict()) for arm, model in arms.items()},
        "recipe": recipe,
        "adapter": state.adapter if state is not None else None,
        "dataset": dataset.name,
        "split": dataset.split,
        "max_frames": max_frames,
        "convention": convention,
        "tolerance": tolerance,
        "record": record,
        "versions": {**facts["versions"], "pillow": PIL.__version__},  # decodes the frames
        "code": code_digest(),
    }


def _run_all(
    made: Callable[[Sequence], SequenceRun], arms: dict[str, Any], dataset: Dataset, max_frames: int | None,
    record: bool, store: RunStore | None, progress: Progress,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    names = list(arms)
    results: dict[str, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    for sequence in dataset.sequences:
        if store is not None:
            digests[sequence.name] = sequence.digest()
            known = store.finished(sequence.name, digests[sequence.name], names, record)
            if known is not None:
                results[sequence.name] = known
    left = [sequence for sequence in dataset.sequences if sequence.name not in results]
    total = sum(min(len(sequence.frames), max_frames or len(sequence.frames)) for sequence in left)
    done = 0

    def step(sequence: Sequence) -> None:
        nonlocal done
        done += 1
        progress(done, total, sequence.name)

    for sequence in left:
        progress(done, total, sequence.name)
        one = made(sequence)
        places = store.start(sequence.name, names) if store is not None else None
        found = one.run(places, record, lambda sequence=sequence: step(sequence))  # type: ignore[misc]
        found["row"]["digest"] = digests.get(sequence.name) or sequence.digest()
        trace = found.pop("trace")
        if store is not None:
            store.finish(sequence.name, names, found, trace)
        results[sequence.name] = found
    ordered = [results[sequence.name] for sequence in dataset.sequences]
    return [item["row"] for item in ordered], [reason for item in ordered for reason in item["not_scored"]]


def _head(
    settings: dict[str, Any], dataset: Dataset, arms: dict[str, Any], store: RunStore | None, command: str | None
) -> dict[str, Any]:
    head = {
        "kind": "eval",
        "schema": 1,
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(next(next(iter(arms.values())).parameters()).device),
        "key": store.key if store is not None else None,
        "settings": settings,
        "dataset_root": str(dataset.root),
        "predictions": None,
        "traces": None,
    }
    if store is not None:
        if settings["record"]:
            head["traces"] = str(store.traces.relative_to(store.out))
        head["predictions"] = {arm: str(store.predictions(arm).relative_to(store.out)) for arm in arms}
    return head

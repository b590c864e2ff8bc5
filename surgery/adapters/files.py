"""Adapters: out of a model into a folder, and back.

adapter_config.json        what it is for: base model, fingerprint, blocks, thresholds, what was measured
adapter_model.safetensors  only the added tensors, under neutral names, thresholds as 0-d tensors
recipe.yaml                the recipe it was saved with
README.md                  model card
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.adapters.card import HERE, model_card
from surgery.adapters.config import (
    CONFIG,
    RECIPE,
    WEIGHTS,
    AdapterConfig,
    BaseModelInfo,
    Held,
    ProposalConfig,
    Provenance,
    read_config,
    thresholds_of,
)
from surgery.adapters.fingerprint import Match, compare, fingerprint
from surgery.adapters.folder import require_replaceable, write_folder
from surgery.adapters.proposals import ProposalAdapter, proposals_of, read_head
from surgery.adapters.record import CalibrationRecord
from surgery.adapters.tensors import encode_tensors, read_tensors, trained, weights_of
from surgery.adapters.warned import require_base
from surgery.core.host import HostView
from surgery.core.surgery import Surgery
from surgery.core.weights import quantised_layer
from surgery.engine import require_surgery
from surgery.errors import AdapterError, AdapterMismatchError, ModelStateError, RecipeError
from surgery.operations import CompileParts, SparseWindowRouting
from surgery.operations.window_routing.bound import WindowRouter, require_router
from surgery.operations.window_routing.geometry import span_of
from surgery.operations.window_routing.shortcut import Shortcut
from surgery.recipe import Recipe

_ORIGIN = "_surgery_origin"
_PARTS = "parts."
_READS = 400


class Adapter(Held[AdapterConfig]):
    """One of window routing: the shortcut."""

    def match(self, host: HostView) -> Match | None:
        """How the model's weights compare with those of the base; None where none are recorded.

        Raises:
            AdapterMismatchError: blocks, channels or windows are not those of the model.
        """
        config, span = self.config, span_of(host)
        mine = (config.entry_block, config.exit_block, config.channels, config.window)
        theirs = (span.entry, span.exit, span.channels, span.window)
        if mine != theirs:
            raise AdapterMismatchError(
                f"{self.source}: made for blocks {mine[0]}..{mine[1]}, {mine[2]} channels, windows of {mine[3]}; this "
                f"model has blocks {theirs[0]}..{theirs[1]}, {theirs[2]} channels, windows of {theirs[3]}"
                + (f" (base model: {config.base_model.id})" if config.base_model.id else "")
            )
        recorded = config.base_model.fingerprint
        return compare(host, span, recorded) if recorded is not None else None

    def fill(self, surgery: Surgery, force: bool) -> None:
        """Give the shortcut these weights; it remembers what was measured with them, for `save_adapter`.

        Raises:
            AdapterMismatchError: it fits not the model, not its weights (unless `force`), or not the recipe.

        Warns:
            RoundedBaseWarning: the same base at another precision than the model's or the adapter's own.
            UnprovenBaseWarning: no fingerprint is recorded, or `force` was needed.
        """
        router = surgery.find(WindowRouter)
        if router is None:
            return
        config, host, shortcut = self.config, surgery.host, router.shortcut
        if config.family != host.family:
            raise AdapterMismatchError(f"{self.source}: made for {config.family}, this is a {host.family} model")
        match, asked = self.match(host), router.settings.skipped.shortcut.type
        if config.shortcut != asked:
            raise AdapterMismatchError(
                f"{self.source}: holds a {config.shortcut!r} shortcut, the recipe asks for {asked!r}"
            )
        require_base(self.source, config.base_model.id, match, "the routed blocks", force)
        tensors, runs = self.tensors, len(router.shortcuts)
        if config.runs != runs and runs > 1:
            raise AdapterMismatchError(
                f"{self.source}: holds shortcuts for {config.runs} runs of blocks, the recipe (globals: "
                f"{router.settings.stages.globals}) asks for {runs}; calibrate this model anew"
            )
        if shortcut.parts is None:
            tensors = {name: value for name, value in tensors.items() if not name.startswith(_PARTS)}
        shortcut.load_state_dict(tensors)
        if config.calibration is not None or config.provenance is not None:
            _remember(shortcut, _Origin(config.calibration, config.provenance, self.recipe, tensors))

    def files(self, adapter_id: str = HERE) -> dict[str, bytes]:
        """The four files by name; equal adapters give equal bytes. adapter_id: what the card's example loads."""
        config = self.config
        weights = encode_tensors(config.entry_block, self.tensors, config.thresholds)
        return self.folder(weights, model_card(config, self.recipe, self.parameters, adapter_id))


@dataclass(frozen=True, eq=False)
class _Origin:
    """What is known of a shortcut's weights, as long as it has exactly these and the recipe is this one."""

    calibration: CalibrationRecord | None
    provenance: Provenance | None
    recipe: Recipe
    tensors: dict[str, Tensor]


AnyAdapter = Adapter | ProposalAdapter


def save_adapter(model: Any, path: str | Path) -> Path:
    """Write what was fitted of a model under surgery, and its recipe, to the folder `path`: the shortcut of window
    routing, or the proposal head of `segment_everything`.

    The folder is replaced in one step: whatever interrupts the call, it is the old adapter or the new one. An existing
    adapter there is replaced, any other folder is refused. Same model, same bytes. The calibration record that came
    with the weights, or that `record_calibration` attached, goes along while weights and recipe are unchanged.

    Raises:
        ModelStateError: the model is not under surgery, its recipe has neither (nothing to save) or both, or its
            head was never fitted.
        WeightsError: the shortcut has values that are not finite; nothing is written.
        AdapterError: `path` is a file or a folder that is not an adapter of ours, or cannot be written.
    """
    target = Path(path)
    require_replaceable(target)
    write_folder(target, saved_of(model).files())
    return target


def read_adapter(path: str | Path, source: str | None = None) -> AnyAdapter:
    """Read and validate an adapter folder. Raises AdapterError naming the file and what is wrong with it.

    source: how the adapter calls itself in messages; default: the path.
    """
    folder = Path(path)
    if not os.path.isdir(folder):
        raise AdapterError(
            f"no adapter folder at {str(path)!r:.300} (expected a folder with {CONFIG} and {WEIGHTS}, or a Hub id "
            "of the form user/name)"
        )
    for _ in range(_READS):
        before = _identity(folder)
        try:
            adapter = _read(folder, source or str(folder))
        except AdapterError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return adapter
    raise AdapterError(f"{folder}: another process keeps replacing it; read {_READS} times in vain")


def _read(folder: Path, source: str) -> AnyAdapter:
    config = read_config(folder / CONFIG)
    try:
        recipe = Recipe.load(folder / RECIPE)
    except RecipeError as error:
        raise AdapterError(str(error)) from error
    if isinstance(config, ProposalConfig):
        return ProposalAdapter(source, config, recipe, read_head(folder / WEIGHTS, config))
    routing = recipe.find(SparseWindowRouting)
    if routing is None:
        raise AdapterError(f"{folder / RECIPE}: the recipe of an adapter must have sparse_window_routing")
    return Adapter(source, config, recipe, read_tensors(folder / WEIGHTS, config, routing))


def _identity(folder: Path) -> tuple[int, int] | None:
    """Changes when a save swaps in another folder, so that files of two versions are never mixed."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def saved_of(model: Any) -> AnyAdapter:
    """What `save_adapter` writes of a model. Raises ModelStateError or WeightsError as it does."""
    surgery = require_surgery(model)
    proposals = proposals_of(surgery)
    if proposals is None:
        return adapter_of(model)
    if surgery.find(WindowRouter) is not None:
        raise ModelStateError(
            "the recipe has window routing and a proposal head; an adapter holds one of them: save each under a recipe "
            "of its own"
        )
    return proposals


def adapter_of(model: Any) -> Adapter:
    """The adapter of window routing. Raises ModelStateError or WeightsError as `save_adapter`."""
    from surgery import __version__

    surgery = require_surgery(model)
    host, recipe, router = surgery.host, surgery.recipe, surgery.find(WindowRouter)
    if router is None or recipe is None:
        raise ModelStateError("this recipe has no window routing, so no tensors were added: save the recipe instead")
    span, routing, shortcut = router.span, router.settings, router.shortcut
    layer = quantised_layer(host.model)
    if layer is not None:
        raise ModelStateError(f"{layer} is quantised; save the adapter before the model is quantised")
    tensors = trained(shortcut, "shortcut")
    if len(router.shortcuts) == 1:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(_PARTS)}
    origin = _origin(shortcut, recipe, tensors)
    base_id, revision = host.base_id()
    config = AdapterConfig(
        library_version=__version__,
        base_model=BaseModelInfo(id=base_id, revision=revision, fingerprint=fingerprint(host, span)),
        family=host.family,
        entry_block=span.entry,
        exit_block=span.exit,
        channels=span.channels,
        window=span.window,
        shortcut=routing.skipped.shortcut.type,
        runs=len(router.shortcuts),
        thresholds=thresholds_of(routing),
        calibration=origin.calibration,
        provenance=origin.provenance,
    )
    return Adapter("this model", config, recipe, tensors)


def record_calibration(model: Any, record: CalibrationRecord) -> None:
    """Attach what calibration measured to the shortcut it measured, for `save_adapter` and `push_adapter`.

    The record is dropped when the weights or the recipe change afterwards.

    Raises:
        ModelStateError: the model is not under surgery, or its recipe has no window routing.
    """
    adapter = adapter_of(model)
    shortcut = require_router(require_surgery(model)).shortcut
    tensors = {name: value.clone() for name, value in adapter.tensors.items()}
    _remember(shortcut, _Origin(record, None, adapter.recipe, tensors))


def calibration_of(model: Any) -> CalibrationRecord | None:
    """What calibration measured of a model under surgery as it is now; None when it did not, or things changed since.

    Raises:
        ModelStateError: the model is not under surgery.
    """
    surgery = require_surgery(model)
    router = surgery.find(WindowRouter)
    if router is None or surgery.recipe is None or quantised_layer(router.shortcut) is not None:
        return None
    return _origin(router.shortcut, surgery.recipe, weights_of(router.shortcut)).calibration


def _remember(shortcut: Shortcut, origin: _Origin) -> None:
    # On the module, so that it goes where the weights go: deepcopy, pickling, undone and redone surgery.
    setattr(shortcut, _ORIGIN, origin)


def _origin(shortcut: Shortcut, recipe: Recipe, tensors: dict[str, Tensor]) -> _Origin:
    """What is known of the weights that a shortcut has now, under the recipe that it is in now."""
    origin = vars(shortcut).get(_ORIGIN)
    if (
        not isinstance(origin, _Origin)
        or set(tensors) != set(origin.tensors)
        or not all(torch.equal(value, origin.tensors[name]) for name, value in tensors.items())
    ):
        return _Origin(None, None, recipe, tensors)
    # Provenance is of the weights alone; the record holds for the recipe it was measured with, compiled or not.
    measured = recipe.without(CompileParts) == origin.recipe.without(CompileParts)
    return origin if measured else replace(origin, calibration=None)

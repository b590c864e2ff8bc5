"""Which windows one frame computes, from what the video's state knows: the router's rules applied to a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery.hosts.base import Binding, HostView, ObjectStep
from surgery.operations import SparseWindowRouting
from surgery.retrieval.queries import ObjectRegion, mask_tokens
from surgery.routing.router import (
    allot,
    mask_windows,
    prompt_saliency,
    salient_windows,
    scene_change,
    thumbnail,
    token_picture,
    window_changes,
)
from surgery.routing.tiles import TileGrid, TileRoute, piece_urgency
from surgery.routing.windows import WindowGrid
from surgery.session import Evidence, VideoState


@dataclass(frozen=True, eq=False)
class FramePreview:
    """What is seen of a frame before it is encoded.

    thumbnail: [3, 32, 32] for the scene-cut test. picture: [3, H, W], one mean colour per stage-3 token, for the
    budgets and for the pieces of tiles. Each is None when the recipe does not ask for it.
    """

    thumbnail: Tensor | None = None
    picture: Tensor | None = None

    @classmethod
    def at(cls, pixels: Tensor, settings: SparseWindowRouting, grid: WindowGrid, always: bool = False) -> FramePreview:
        """Look at normalised pixels [1, 3, S, S]; `always`: at the picture, whatever the settings of the windows."""
        small = thumbnail(pixels) if settings.refresh.scene_cut is not None else None
        if settings.budget >= 1.0 and not settings.early and not always:
            return cls(small)
        return cls(small, token_picture(pixels, grid))

    def remembered(self, seen: Tensor | None, windows: list[int] | None, grid: WindowGrid) -> Tensor | None:
        """The picture of every token when its window was last computed, after `windows` (None: all) were."""
        if self.picture is None or windows is None or seen is None:
            return self.picture
        ids = torch.from_numpy(grid.token_ids(windows)).to(self.picture.device)
        flat = self.picture.flatten(1)
        return seen.flatten(1).index_copy(1, ids, flat.index_select(1, ids)).reshape(seen.shape)


def choose_windows(
    binding: Binding, view: HostView, state: VideoState, known: Mapping[int, Evidence], frame: int,
    preview: FramePreview, device: torch.device,
) -> tuple[list[int] | None, str | None]:  # fmt: skip
    """Windows to compute on this frame, or None and the reason for a dense one.

    known: evidence of every object on the frame before. One device-to-host copy on a confident frame; a second one on
    frames where the score gate fires.
    """
    settings, grid, step = binding.routing, binding.grid, binding.step
    assert settings is not None and grid is not None
    reason = _must_be_dense(settings, state, known, step, frame, device)
    if reason is not None:
        return None, reason
    assert step is not None
    evidence = [known[obj_id] for obj_id in step.objects]
    facts: dict[str, Tensor] = {}
    near = None
    if binding.queries is not None:
        margin = binding.queries.margin
        near = torch.stack([mask_tokens(item.mask, grid.height, grid.width, margin) for item in evidence])
        facts["near"] = grid.mass(near.to(torch.float32))
    small, cut = preview.thumbnail, settings.refresh.scene_cut
    if binding.forced is None:
        facts["touched"] = mask_windows([item.mask for item in evidence], grid, settings.dilation)
        facts["scores"] = torch.cat([item.score.reshape(1) for item in evidence])
        if small is not None and state.thumbnail is not None:
            facts["cut"] = scene_change(small, state.thumbnail.to(small.device))
        if preview.picture is not None and settings.budget < 1.0:
            seen = preview.picture if state.seen is None else state.seen.to(preview.picture.device)
            facts["changes"] = window_changes(preview.picture, seen, grid)
    values = _fetch(facts)
    if near is not None:
        state.regions = _regions(step, near, values["near"], grid)
    if binding.forced is not None:
        return sorted(binding.forced), None
    taken, scores, changes = [value > 0 for value in values["touched"]], values["scores"], values.get("changes")
    if cut is not None and not values.get("cut", [0.0])[0] <= cut:
        return None, "scene cut"
    if lost_object(settings, state, step.objects, scores):
        return None, "lost object"
    if not any(taken) or any(not score >= settings.score_gate for score in scores):
        maps = saliency_maps(view, evidence)
        salient = salient_windows(maps, grid, settings.saliency_mass).tolist()
        taken = [a or b for a, b in zip(taken, salient, strict=True)]
    windows = allot(taken, state.ages, changes, settings.rolling, settings.round_to, settings.budget, settings.fill)
    if len(windows) == grid.count:
        return None, "every window needed"
    return windows, None


def tile_route(
    tiles: TileGrid, settings: SparseWindowRouting, state: VideoState, known: Mapping[int, Evidence],
    windows: list[int], preview: FramePreview,
) -> TileRoute | None:  # fmt: skip
    """The route through the blocks before the span, with the extra pieces that `early` leaves room for."""
    memory = state.tiles
    if memory is None:
        return None
    if preview.picture is None or memory.picture is None or memory.ages is None:
        return tiles.route(windows, memory.output.device, memory)
    union = torch.stack([item.mask for item in known.values()]).any(0)
    near = tiles.near(union, settings.dilation)
    urgency = piece_urgency(near, tiles.changes(preview.picture, memory.picture), memory.ages)
    return tiles.route(windows, memory.output.device, memory, urgency, round(settings.early * tiles.count))


def _fetch(facts: dict[str, Tensor]) -> dict[str, list[float]]:
    """All facts in one device-to-host copy."""
    if not facts:
        return {}
    flat = [fact.flatten().to(torch.float32) for fact in facts.values()]
    values = torch.cat([fact.to(flat[0].device) for fact in flat]).tolist()
    found = {}
    for name, fact in zip(facts, flat, strict=True):
        found[name], values = values[: len(fact)], values[len(fact) :]
    return found


def _regions(step: ObjectStep, near: Tensor, counts: list[float], grid: WindowGrid) -> dict[int, ObjectRegion]:
    """near: bool [n, T], object by object; counts: how many in each window, flattened."""
    return {
        obj_id: ObjectRegion(
            near[row], tuple(round(each) for each in counts[row * grid.count : (row + 1) * grid.count])
        )
        for row, obj_id in enumerate(step.objects)
    }


def _must_be_dense(
    settings: SparseWindowRouting, state: VideoState, known: Mapping[int, Evidence], step: ObjectStep | None,
    frame: int, device: torch.device,
) -> str | None:  # fmt: skip
    """Reasons that need no look at the device."""
    if step is None or step.dense:
        return "prompted frame"
    previous = frame + 1 if step.reverse else frame - 1
    if state.encoded != previous or (settings.refresh.start and not state.continuous):
        return "first frame or jump"
    for obj_id in step.objects:
        evidence = known.get(obj_id)
        if evidence is None or evidence.frame != previous:
            return "object without evidence"
    if settings.refresh.every and state.since_dense >= settings.refresh.every:
        return "refresh interval"
    last = state.tiles if settings.span == "tiles" else state.span
    if settings.temporal and (last is None or last.output.device != device):
        return "no last output"
    if settings.stage4 == "routed" and (state.stage4 is None or state.stage4.device != device):
        return "no last output"
    return None


def lost_object(settings: SparseWindowRouting, state: VideoState, objects: dict[int, Any], scores: list[float]) -> bool:
    """Whether an object whose score fell to 0 or less asks for a dense frame; `state.lost` is brought up to date."""
    absent = {obj_id for obj_id, score in zip(objects, scores, strict=True) if not score > 0}
    newly = absent - state.lost
    state.lost = absent
    when = settings.refresh.lost
    return bool(absent) if when == "always" else bool(newly) and when == "once"


def saliency_maps(view: HostView, evidence: list[Evidence]) -> Tensor:
    """[n, H * W]: per object the mean over the decoder's token-to-image attentions."""
    maps = []
    for item in evidence:
        layers = []
        for (query, key), module in zip(item.taps, view.token_to_image(), strict=True):
            projections = view.decoder_projections(module)
            # Of a decoder in half precision the tokens are too, and its weights are not. Quantised ones take fp32.
            dtype = next((weight.dtype for weight in module.parameters()), torch.float32)
            layers.append(prompt_saliency(query.to(dtype), key.to(dtype), *projections))
        maps.append(torch.stack(layers).mean(0))
    return torch.stack(maps)

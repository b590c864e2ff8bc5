"""The surgery's part of one frame, the same for every host: whose step it is, and what was encoded when.

Hosts call these from their own per-frame seams. Nothing here knows a host library or an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from surgery.core.frame import FrameContext, ObjectStep
from surgery.core.seams import passed
from surgery.core.session import SessionHandle
from surgery.core.surgery import Surgery

T = TypeVar("T")


@contextmanager
def step_of(surgery: Surgery, step: ObjectStep) -> Iterator[None]:
    """One object's step on one frame, for the duration of the host's own per-object call."""
    video = surgery.state_of(step.handle)
    video.sync_objects(step.objects)
    if not step.prompted:
        if video.cursor != (step.frame, step.reverse):
            _drop(video.sparse, step.handle, step.frame)
            video.advance(step.frame, step.reverse)
            for bound in surgery.bound:
                if bound.settings.by_frame:
                    video.stats.count(bound.settings.share, 1.0)
        video.begin(step.obj_id, step.reverse)
    for direction in (False, True):
        for state in video.objects.get((step.obj_id, direction), {}).values():
            state.forget(step.frame)
    evidence = surgery.evidence()
    context = FrameContext(step.frame, video, step.handle, step, surgery.observer, evidence)
    if evidence is not None and evidence.inputs:
        context.decoder_inputs = [None] * len(surgery.host.modules("token_to_image"))
    with surgery.within(context):
        yield


def _drop(frames: set[int], handle: SessionHandle, frame: int) -> None:
    """Make the host encode `frame` again if it is one of `frames`."""
    if frame in frames:
        handle.evict(frame)
        frames.discard(frame)


def image_features(surgery: Surgery, handle: SessionHandle, frame: int, run: Callable[[], T]) -> T:
    """Wrap the host's "features of this frame, cached or encoded" call."""
    if not surgery.enabled:
        state = handle.state()
        if state is not None:
            _drop(state.sparse, handle, frame)
            _drop(state.rounded, handle, frame)
        return run()
    video, context = surgery.state_of(handle), surgery.context
    if context is not None and context.dense:
        _drop(video.sparse, handle, frame)
    held = frame in handle.cached()
    inside = context if context is not None else FrameContext(frame, video, handle, observer=surgery.observer)
    inside.sparse = inside.rounded = False
    with surgery.within(inside):
        features = run()
    if not held:
        cached = handle.cached()
        for frames, marked in ((video.sparse, inside.sparse), (video.rounded, inside.rounded)):
            frames &= cached
            (frames.add if marked else frames.discard)(frame)
    handle.guard(video)
    return features


def encode(surgery: Surgery, pixels: Tensor, run: Callable[[], T]) -> T:
    """Wrap the host's encoder call on normalised pixels [1, 3, S, S]."""
    context, runs = surgery.context, surgery.root_runs("encode")
    if context is None or not runs:
        return run()
    video = context.video
    if context.observer is not None:
        context.observer.frame(context, pixels)
    context.known = video.encode(context.frame, context.dense)

    def encoded() -> T:
        context.send()
        return run()

    features: T = passed(runs, (context, pixels), (), encoded)
    video.encoded = context.frame
    return features


def stored(surgery: Surgery, handle: SessionHandle, frame: int, obj_ids: Sequence[int]) -> None:
    """The host has stored the memories of these objects on a frame."""
    for run in surgery.root_runs("stored") if surgery.enabled else ():
        run(handle, frame, obj_ids)

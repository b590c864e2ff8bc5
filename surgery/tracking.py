"""Track prompted objects through a video with either host, one frame in memory at a time.

This is what the command line runs. Library users keep calling their host directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from surgery.api import current_view
from surgery.errors import VideoError
from surgery.hosts import view_of
from surgery.session import FrameRecord
from surgery.video import BoxPrompt, MaskPrompt, PointPrompt, Prompt, Video, check, draw_windows
from surgery.video.rgb import Frame

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_ENDLESS = 10**9


@dataclass
class TrackedFrame:
    """One frame's result. logits: fp32 [H, W] at video size per object id (> 0 is foreground). seconds: model time,
    synchronised. record: how the frame was encoded, None for stock models and frames that were not tracked.
    """

    index: int
    frame: Frame
    logits: dict[int, npt.NDArray[np.float32]]
    seconds: float
    record: FrameRecord | None


def track(model: Any, video: Video, prompts: Sequence[Prompt], after: int = -1) -> Iterator[TrackedFrame]:
    """Track `prompts` forward through `video`, starting at the first prompted frame.

    Prompts on later frames add objects or correct them when that frame is reached.

    Args:
        after: only frames after this one are yielded; those up to it are run where they are prompted and left out
            elsewhere, so nothing is remembered of the others. With `surgery.video.continued` this goes on with a
            video from masks.

    Raises:
        PromptError: the prompts do not fit the video or each other.
        VideoError: a frame cannot be read, or the video ends before a prompted frame.
        UnsupportedModelError: not a SAM 2 video model.
    """
    check(prompts, video.size, video.num_frames)
    runs: dict[str, type[_Transformers] | type[_Stock]] = {"transformers": _Transformers, "sam2": _Stock}
    return runs[view_of(model).name](model, video, prompts, after).run()


def windows_drawn(frame: Frame, record: FrameRecord) -> Frame:
    """The frame with the windows that were not computed darkened; grids are padded at the bottom and right."""
    rows, columns = record.grid
    size = (frame.shape[0] * record.cover / rows, frame.shape[1] * record.cover / columns)
    return draw_windows(frame, record.grid, size, set(record.windows))


def pixels_of(frame: Frame, size: int) -> Tensor:
    """RGB uint8 [H, W, 3] -> normalised fp32 [3, size, size], resized as stock `sam2` does (PIL, bicubic)."""
    resized = np.asarray(Image.fromarray(frame).resize((size, size)), dtype=np.float32) / 255.0
    return torch.from_numpy(((resized - _MEAN) / _STD).transpose(2, 0, 1).copy())


class _Run:
    def __init__(self, model: Any, video: Video, prompts: Sequence[Prompt], after: int) -> None:
        self.model, self.video, self.after = model, video, after
        self.side = view_of(model).image_size()
        self.by_frame: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            self.by_frame.setdefault(prompt.frame, []).append(prompt)
        self.first = min(self.by_frame)
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype

    def ended(self, count: int) -> None:
        """The video turned out to have `count` frames; whether it declares so many, or any number, depends on it."""
        missed = min((frame for frame in self.by_frame if frame >= count), default=None)
        if missed is not None:
            raise VideoError(f"{self.video.name}: ended after {count} frames, before the prompt on frame {missed}")

    def timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        self.wait()
        start = time.perf_counter()
        result = call()
        self.wait()
        return result, time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def record(self, frame: int) -> FrameRecord | None:
        view = current_view(self.model)
        last = view.binding.stats.last if view is not None and view.binding.stats is not None else None
        return last if last is not None and last.frame == frame else None

    def result(self, index: int, frame: Frame, ids: Sequence[int], masks: Tensor, seconds: float) -> TrackedFrame:
        masks = masks.reshape(len(ids), 1, *masks.shape[-2:]).float()
        if tuple(masks.shape[-2:]) != self.video.size:
            masks = F.interpolate(masks, self.video.size, mode="bilinear", align_corners=False)
        arrays = masks[:, 0].cpu().numpy()
        logits = {int(obj_id): arrays[position] for position, obj_id in enumerate(ids)}
        return TrackedFrame(index, frame, logits, seconds, self.record(index))


class _Transformers(_Run):
    """Streams: every frame is handed over once and dropped after use."""

    def run(self) -> Iterator[TrackedFrame]:
        from surgery.hosts.transformers_video import new_processor, new_session

        session = new_session(self.video.size, self.device, self.dtype)
        processor = new_processor(self.side)
        count = 0
        for index, frame in enumerate(self.video):
            count = index + 1
            if index < self.first or (index <= self.after and index not in self.by_frame):
                continue
            self._prompt(processor, session, index)
            pixels = pixels_of(frame, self.side).to(self.device, self.dtype)
            out, seconds = self.timed(
                lambda pixels=pixels, index=index: self.model(session, frame=pixels, frame_idx=index)  # type: ignore[misc]
            )
            session.processed_frames.pop(index)
            if index > self.after:
                yield self.result(index, frame, out.object_ids, out.pred_masks, seconds)
        self.ended(count)

    def _prompt(self, processor: Any, session: Any, index: int) -> None:
        ids = []
        for prompt in self.by_frame.get(index, ()):
            ids.append(prompt.obj_id)
            given: dict[str, Any] = {}
            if isinstance(prompt, MaskPrompt):
                given["input_masks"] = [torch.from_numpy(np.ascontiguousarray(prompt.mask))]
            elif isinstance(prompt, BoxPrompt):
                given["input_boxes"] = [[[float(value) for value in (prompt.x0, prompt.y0, prompt.x1, prompt.y1)]]]
            else:
                given["input_points"] = [[[[float(x), float(y)] for x, y in prompt.points]]]
                given["input_labels"] = [[[int(label) for label in prompt.labels]]]
            processor.add_inputs_to_inference_session(
                session, frame_idx=index, obj_ids=[prompt.obj_id], original_size=self.video.size, **given
            )
        if ids:
            # The processor keeps only the objects of its last call; all of this frame's belong together.
            session.obj_with_new_inputs = ids


class _Stock(_Run):
    """Stock `sam2`, whose `images` may be any sequence: ours reads frames when they are asked for."""

    def run(self) -> Iterator[TrackedFrame]:
        from surgery.hosts.sam2_video import frames_instead_of_files, without_bar

        frames = _LazyFrames(self.video, self.side, self.dtype, self.model.max_obj_ptrs_in_encoder)
        with frames_instead_of_files(frames, self.video.size):
            state = self.model.init_state(self.video.name)
        marks = sorted({*self.by_frame, self.after + 1} if self.after >= self.first else self.by_frame)
        for start, stop in pairwise([*marks, _ENDLESS]):
            if frames.ahead(start) is None:
                break
            _, prompting = self.timed(lambda start=start: self._prompt(state, start))  # type: ignore[misc]
            last = stop - 1 if start > self.after else start
            with closing(self.model.propagate_in_video(state, start, last - start)) as steps:
                for index in range(start, last + 1):
                    frame = frames.ahead(index)
                    if frame is None:
                        break
                    # The host makes its bar when the first frame is asked for.
                    with without_bar() if index == start else nullcontext():
                        (_, ids, masks), seconds = self.timed(lambda steps=steps: next(steps))  # type: ignore[misc]
                    if index > self.after:
                        yield self.result(index, frame, ids, masks, seconds + (prompting if index == start else 0.0))
        self.ended(frames.reached)

    def _prompt(self, state: dict[str, Any], index: int) -> None:
        for prompt in self.by_frame.get(index, ()):
            if isinstance(prompt, MaskPrompt):
                self.model.add_new_mask(
                    state, index, prompt.obj_id, torch.from_numpy(np.ascontiguousarray(prompt.mask))
                )
            elif isinstance(prompt, BoxPrompt):
                box = np.array([prompt.x0, prompt.y0, prompt.x1, prompt.y1], dtype=np.float32)
                self.model.add_new_points_or_box(state, index, prompt.obj_id, box=box)
            else:
                assert isinstance(prompt, PointPrompt)
                points = np.array(prompt.points, dtype=np.float32)
                labels = np.array(prompt.labels, dtype=np.int32)
                self.model.add_new_points_or_box(state, index, prompt.obj_id, points=points, labels=labels)


class _LazyFrames:
    """`images[i]` -> normalised [3, S, S]; holds one frame, reads on, and starts over when asked for an earlier one.

    Only reading to the end tells how long a file is. The host wants a length to know where a pass ends, which `ahead`
    tells us, and to scale the age of object pointers, where all lengths from `horizon` on are alike.
    """

    def __init__(self, video: Video, side: int, dtype: torch.dtype, horizon: int) -> None:
        self.video, self.side, self.dtype = video, side, dtype
        self._reader: Iterator[Frame] | None = None
        self._at = -1
        self._frame: Frame | None = None
        if video.fps is None and video.num_frames is not None:
            self._length = video.num_frames
        else:
            try:
                count = sum(1 for _ in islice(video, horizon))
            except VideoError:
                # The frames before the broken one can be tracked; it is told of when its turn comes.
                count = horizon
            self._length = count if count < horizon else _ENDLESS

    def __len__(self) -> int:
        return self._length

    @property
    def reached(self) -> int:
        """How many frames were read in this pass."""
        return self._at + 1

    def ahead(self, index: int) -> Frame | None:
        """Frame `index`, or None if the video ends before it."""
        if index < self._at or self._reader is None:
            self._reader, self._at = iter(self.video), -1
        while self._at < index:
            self._frame = next(self._reader, None)
            if self._frame is None:
                return None
            self._at += 1
        return self._frame

    def __getitem__(self, index: int) -> Tensor:
        frame = self.ahead(int(index))
        if frame is None:
            raise VideoError(f"{self.video.name}: ended at frame {self._at}, frame {index} was expected")
        return pixels_of(frame, self.side).to(self.dtype)

"""Small models of every host, those of SAM 2 with the same weights, and one way to drive any."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from surgery.demo import model as demo
from surgery.hosts.sam2.driver import frames_instead_of_files
from surgery.hosts.transformers.driver import new_processor
from surgery.hosts.transformers.keymap import to_transformers
from surgery.hosts.transformers_sam3 import driver as sam3
from surgery.hosts.transformers_sam3.loader import SIZES, Sam3, Sam3TrackerLoader
from surgery.operations import SparseMemoryRetrieval, SparseWindowRouting
from surgery.operations.window_routing.policy import WindowState
from surgery.recipe import Recipe

TWINS = ("sam2", "transformers")
"""Hosts of the same models."""
SAM3 = "transformers_sam3"
HOSTS = (*TWINS, SAM3)
FAMILIES = {"sam2": "SAM 2", "transformers": "SAM 2", SAM3: "SAM 3"}
BUSIEST = {"sam2": "turbo", "transformers": "turbo", SAM3: "fast"}
"""The recipe with most operations that fits."""
ROUNDING = {"sam2": 2e-5, "transformers": 2e-5, SAM3: 1e-4}
"""How far masks may move where only the order of sums differs: the mask heads below enlarge it."""
SIZE = 256
UNPADDED, PADDED = (8, 4, 4, 2), (8, 4, 6, 2)
BLOCKS, GLOBALS = (1, 1, 7, 1), (5, 8)
LARGE = (2, 6, 36, 4)
"""Blocks of the stages of SAM 2 large."""
STEADY = Recipe(
    metadata={"name": "balanced", "description": "Published thresholds, temporal shortcut, one rolling window."},
    operations=[SparseWindowRouting(temporal=True, rolling=1), SparseMemoryRetrieval()],
)
"""For tests that count frames, windows or keys: built-in recipes are tuned, this one stays."""


@functools.cache
def _stock(windows: tuple[int, ...], localised: bool, blocks: tuple[int, ...]) -> Any:
    saved = demo.WINDOWS, demo.BLOCKS, demo.GLOBALS
    demo.WINDOWS, demo.BLOCKS, demo.GLOBALS = windows, blocks, (23, 33, 43) if blocks == LARGE else GLOBALS
    try:
        model = demo.build("sam2", seed=5)
    finally:
        demo.WINDOWS, demo.BLOCKS, demo.GLOBALS = saved
    decoder = model.sam_mask_decoder
    _shake(model, decoder.pred_obj_score_head.layers[-1])
    if localised:
        with torch.no_grad():
            fine = model.image_encoder(video(1))["backbone_fpn"][0][0]
            _localise(fine, decoder.conv_s0, [mlp.layers[-1] for mlp in decoder.output_hypernetworks_mlps])
    return model


@functools.cache
def _sam3(window: int, localised: bool) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Sam3TrackerLoader().build(Sam3(96, 2, 192, 6, (2, 5), window, SIZE, 16, 128, 128, 3, 256, 256)).eval()
    decoder = model.mask_decoder
    _shake(model, decoder.pred_obj_score_head.proj_out)
    if localised:
        with torch.no_grad():
            _follow(model.vision_encoder)
            fine = model.vision_encoder(video(1)).fpn_hidden_states[0][0]
            _localise(fine, decoder.conv_s0, [mlp.proj_out for mlp in decoder.output_hypernetworks_mlps])
    return model


@functools.cache
def _small() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Sam3TrackerLoader().build(SIZES["sam3-small"]).eval()
    _shake(model, model.mask_decoder.pred_obj_score_head.proj_out)
    return model


def sam3_small() -> Any:
    """A SAM 3 tracker of the released shape in small, 252 px: masks of 72 px that depend on all that is read."""
    return copy.deepcopy(_small())


def _shake(model: Any, score: Any) -> None:
    """No weight is zero or nothing, as training leaves them; objects are there. score: last layer of its head."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0 or name.endswith("gamma"):
                parameter.normal_(std=0.1, generator=generator)
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        score.bias.fill_(8.0)


def _follow(encoder: Any) -> None:
    """Let the finest level of a ViT's neck, which sees its last layer alone, have a channel for the squares."""
    clip = video(8)
    tokens = encoder(clip).last_hidden_state
    side, tokens = int(tokens.shape[1] ** 0.5), tokens.flatten(0, 1)
    covered = torch.nn.functional.adaptive_avg_pool2d((clip[:, :1] == 2.0).float(), side).flatten()
    inside, outside = tokens[covered > 0.99].mean(0), tokens[covered == 0].mean(0)
    apart = inside - outside
    reader = torch.linalg.solve(tokens[covered == 0].T.cov() + 1e-2 * torch.eye(len(apart)), apart)
    reader = reader * 6.0 / (reader @ apart)
    first, second = encoder.neck.fpn_layers[0].scale_layers[::2]
    first.weight[:, 0], first.bias[0] = reader[:, None, None], 4.0 - reader @ inside
    for layer, taps in ((second, (0, 0)), (encoder.neck.fpn_layers[0].proj1, (0, 0))):
        (layer.weight[:, 0] if layer is second else layer.weight[0])[:], layer.bias[0] = 0.0, 0.0
        layer.weight[taps] = 1.0
    last = encoder.neck.fpn_layers[0].proj2
    last.weight[0], last.bias[0] = 0.0, 0.0
    last.weight[0, 0, 1, 1] = 1.0


def _localise(fine: Tensor, reader: Any, heads: list[Any]) -> None:
    """Make masks follow the moving squares of `video`: random weights light up everywhere.

    The finest feature map gets one channel that is high on the squares and one that is constant; the mask heads read
    their difference, on top of everything else they read.

    Args:
        fine: that map of its first frame, [C, H, W]. reader: what the decoder reads it through. heads: last layers of
            the mask heads.
    """
    inside = torch.nn.functional.interpolate((video(1)[:, :1] == 2.0).float(), fine.shape[-2:])[0, 0] > 0
    mean_in, mean_out = fine[:, inside].mean(1), fine[:, ~inside].mean(1)
    direction = mean_in - mean_out
    direction = direction * 6.0 / (direction @ direction)
    reader.weight[0], reader.bias[0] = direction[:, None, None], -(direction @ (mean_in + mean_out)) / 2
    reader.weight[1], reader.bias[1] = 0.0, 3.0
    for head in heads:
        head.bias[0] += 1.0
        head.bias[1] -= 0.8


def _transformers(windows: tuple[int, ...], localised: bool, blocks: tuple[int, ...]) -> Any:
    saved = demo.WINDOWS, demo.BLOCKS, demo.GLOBALS
    demo.WINDOWS, demo.BLOCKS, demo.GLOBALS = windows, blocks, (23, 33, 43) if blocks == LARGE else GLOBALS
    try:
        model = demo.build("transformers")
    finally:
        demo.WINDOWS, demo.BLOCKS, demo.GLOBALS = saved
    model.load_state_dict(to_transformers(_stock(windows, localised, blocks).state_dict()))
    return model.eval()


def make(
    host: str, windows: tuple[int, ...] = UNPADDED, localised: bool = True, blocks: tuple[int, ...] = BLOCKS
) -> Driver:
    """A fresh small model in `host`, with the same weights as its twin in the other host. SAM 3 has no stages: of
    `windows` it has those of stage 3, on a map of the same size, and none of the `blocks`."""
    if host == SAM3:
        return Sam3Driver(copy.deepcopy(_sam3(windows[2], localised)))
    if host == "sam2":
        return StockDriver(copy.deepcopy(_stock(windows, localised, blocks)))
    return TransformersDriver(_transformers(windows, localised, blocks))


def video(frames: int, seed: int = 0) -> Tensor:
    """Normalised pixels [frames, 3, 256, 256]: a smooth background with a square that moves."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 16, 16, generator=generator)
    still = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic")[0]
    clip = still.repeat(frames, 1, 1, 1) + 0.02 * torch.randn(frames, 3, SIZE, SIZE, generator=generator)
    for frame in range(frames):
        clip[frame, :, 90:130, 20 + 5 * frame : 60 + 5 * frame] = torch.tensor([2.0, -1.0, 0.5])[:, None, None]
    return clip


def square(x: int, y: int, side: int = 50) -> Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


class Driver:
    """What the tests do with a host. Masks are low-resolution logits [64, 64] by object id."""

    host = ""

    def __init__(self, model: Any) -> None:
        self.model = model

    def session(self, frames: Tensor) -> Any:
        raise NotImplementedError

    def click(self, session: Any, frame: int, points: dict[int, tuple[int, int]]) -> None:
        raise NotImplementedError

    def mask(self, session: Any, frame: int, masks: dict[int, Tensor]) -> None:
        raise NotImplementedError

    def propagate(
        self, session: Any, start: int | None = None, reverse: bool = False, count: int | None = None
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        raise NotImplementedError

    def reset(self, session: Any) -> None:
        raise NotImplementedError

    def extras(self, session: Any) -> set[str]:
        """Keys of the session under which something of the surgery lies; a pickled one has a None there."""
        raise NotImplementedError

    def features(self, session: Any) -> dict[int, Any]:
        """Image features that the host holds, by frame."""
        raise NotImplementedError

    def forget_features(self, session: Any) -> None:
        """As when another frame takes their place."""
        self.features(session).clear()

    def state(self, session: Any) -> Any:
        """The surgery's own state of the session."""
        holder = session if isinstance(session, dict) else vars(session)
        return holder[next(iter(self.extras(session)))]

    def window_state(self, session: Any) -> WindowState:
        """What the session remembers of its windows."""
        found: WindowState = self.state(session).states[WindowState]
        return found

    def track(self, frames: Tensor, objects: int = 1, **how: Any) -> list[Tensor]:
        """Click `objects` objects on frame 0 and propagate; all masks in order."""
        session = self.session(frames)
        spots = [(70, 120), (200, 60), (60, 210)]
        self.click(session, 0, {7 + 2 * index: spots[index] for index in range(objects)})
        return [mask for _, masks in self.propagate(session, **how) for mask in masks.values()]


class StockDriver(Driver):
    host = "sam2"

    def session(self, frames: Tensor) -> Any:
        with frames_instead_of_files(frames, (SIZE, SIZE)):
            return self.model.init_state("memory")

    def click(self, session: Any, frame: int, points: dict[int, tuple[int, int]]) -> None:
        for obj_id, point in points.items():
            self.model.add_new_points_or_box(session, frame, obj_id, points=[list(point)], labels=[1])

    def mask(self, session: Any, frame: int, masks: dict[int, Tensor]) -> None:
        for obj_id, mask in masks.items():
            self.model.add_new_mask(session, frame, obj_id, mask)

    def propagate(
        self, session: Any, start: int | None = None, reverse: bool = False, count: int | None = None
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        for frame, ids, _ in self.model.propagate_in_video(session, start, count, reverse):
            found = {}
            for position, obj_id in enumerate(ids):
                stores = session["output_dict_per_obj"][position]
                key = "cond_frame_outputs" if frame in stores["cond_frame_outputs"] else "non_cond_frame_outputs"
                found[obj_id] = stores[key][frame]["pred_masks"][0, 0].clone()
            yield frame, found

    def reset(self, session: Any) -> None:
        self.model.reset_state(session)

    def extras(self, session: Any) -> set[str]:
        return {key for key, held in session.items() if "surgery" in key and held is not None}

    def features(self, session: Any) -> dict[int, Any]:
        return session["cached_features"]


class TransformersDriver(Driver):
    host = "transformers"
    kind = "Sam2VideoInferenceSession"
    processor = staticmethod(new_processor)

    def session(self, frames: Tensor | None, dtype: torch.dtype = torch.float32) -> Any:
        import transformers

        kind = getattr(transformers, self.kind)
        return kind(video=frames, video_height=SIZE, video_width=SIZE, dtype=dtype)

    def click(self, session: Any, frame: int, points: dict[int, tuple[int, int]]) -> None:
        self.processor(SIZE).add_inputs_to_inference_session(
            session,
            frame_idx=frame,
            obj_ids=list(points),
            input_points=[[[list(point)] for point in points.values()]],
            input_labels=[[[1] for _ in points]],
        )
        if session.processed_frames is not None and frame in session.processed_frames:
            self.model(session, frame_idx=frame)

    def mask(self, session: Any, frame: int, masks: dict[int, Tensor]) -> None:
        self.processor(SIZE).add_inputs_to_inference_session(
            session, frame_idx=frame, obj_ids=list(masks), input_masks=list(masks.values())
        )
        self.model(session, frame_idx=frame)

    def propagate(
        self, session: Any, start: int | None = None, reverse: bool = False, count: int | None = None
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        for out in self.model.propagate_in_video_iterator(session, start, count, reverse):
            yield (
                out.frame_idx,
                {obj_id: mask[0].clone() for obj_id, mask in zip(out.object_ids, out.pred_masks, strict=True)},
            )

    def reset(self, session: Any) -> None:
        session.reset_tracking_data()

    def extras(self, session: Any) -> set[str]:
        return {key for key, held in vars(session).items() if "surgery" in key and held is not None}

    def features(self, session: Any) -> dict[int, Any]:
        return session.cache._vision_features


class Sam3Driver(TransformersDriver):
    host = SAM3
    kind = sam3.Sam3TrackerDriver.session_kind
    processor = staticmethod(sam3.new_processor)

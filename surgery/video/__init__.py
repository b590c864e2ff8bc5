"""Frames in, masks and overlays out: the part that touches files, and knows no model."""

from surgery.video.frames import Video, VideoSource, first_frames, open_video
from surgery.video.masks import (
    davis_palette,
    deepest_pixel,
    labels_from_logits,
    labels_from_masks,
    read_label_png,
    write_label_png,
)
from surgery.video.overlay import draw_ids, draw_masks, draw_windows, side_by_side, with_legend
from surgery.video.prompt_text import parse_box, parse_mask, parse_point
from surgery.video.prompts import (
    BoxPrompt,
    MaskPrompt,
    PointPrompt,
    Prompt,
    check,
    continued,
    load_mask_prompts,
    merge_points,
)
from surgery.video.writer import VideoWriter, write_video

__all__ = [
    "BoxPrompt",
    "MaskPrompt",
    "PointPrompt",
    "Prompt",
    "Video",
    "VideoSource",
    "VideoWriter",
    "check",
    "continued",
    "davis_palette",
    "deepest_pixel",
    "draw_ids",
    "draw_masks",
    "draw_windows",
    "first_frames",
    "labels_from_logits",
    "labels_from_masks",
    "load_mask_prompts",
    "merge_points",
    "open_video",
    "parse_box",
    "parse_mask",
    "parse_point",
    "read_label_png",
    "side_by_side",
    "with_legend",
    "write_label_png",
    "write_video",
]

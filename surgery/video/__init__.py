"""Frames in, masks and overlays out: the part that touches files, and knows no model."""

from surgery.video.frames import open_video as open_video
from surgery.video.masks import davis_palette as davis_palette
from surgery.video.masks import deepest_pixel as deepest_pixel
from surgery.video.masks import labels_from_logits as labels_from_logits
from surgery.video.masks import read_label_png as read_label_png
from surgery.video.masks import write_label_png as write_label_png
from surgery.video.overlay import draw_ids as draw_ids
from surgery.video.overlay import draw_masks as draw_masks
from surgery.video.overlay import draw_windows as draw_windows
from surgery.video.overlay import with_legend as with_legend
from surgery.video.prompt_text import parse_box as parse_box
from surgery.video.prompt_text import parse_mask as parse_mask
from surgery.video.prompt_text import parse_point as parse_point
from surgery.video.prompts import BoxPrompt as BoxPrompt
from surgery.video.prompts import MaskPrompt as MaskPrompt
from surgery.video.prompts import PointPrompt as PointPrompt
from surgery.video.prompts import Prompt as Prompt
from surgery.video.prompts import check as check
from surgery.video.prompts import continued as continued
from surgery.video.prompts import load_mask_prompts as load_mask_prompts
from surgery.video.prompts import merge_points as merge_points
from surgery.video.source import Video as Video
from surgery.video.source import first_frames as first_frames
from surgery.video.writer import VideoWriter as VideoWriter
from surgery.video.writer import write_video as write_video

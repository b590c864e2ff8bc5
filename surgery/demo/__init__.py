"""A small trained SAM 2 video model and the synthetic world it was trained on; importing this needs no host library."""

from surgery.demo.clips import Clip, ClipError, make_clip, write_davis
from surgery.demo.model import build, load

__all__ = ["Clip", "ClipError", "build", "load", "make_clip", "write_davis"]

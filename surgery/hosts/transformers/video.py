"""`transformers`: what its video trackers have in common, all but the image encoder. Their code is generated from one
source, and their classes are not subclasses of each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from surgery.core.parts import ATTENTION, DECODER
from surgery.core.patching import Patched, host_class
from surgery.core.session import SessionHandle, VideoState
from surgery.hosts.sam21.tracker import TrackerView
from surgery.hosts.transformers.modules import (
    NAMES,
    TransformersAttention,
    TransformersMaskDecoder,
    TransformersMemoryAttention,
    TransformersTokenToImage,
)
from surgery.hosts.transformers.session import STATE_KEY, TransformersSession

TRACKER_SEAMS: Mapping[str, type[Patched]] = {
    "self_attention": TransformersAttention,
    "cross_attention": TransformersAttention,
    "token_to_image": TransformersTokenToImage,
    ATTENTION: TransformersMemoryAttention,
    DECODER: TransformersMaskDecoder,
}
"""The classes put in front of the modules that are the same in all of them."""


class VideoView(TrackerView):
    """A video tracker of the library."""

    names = NAMES

    def sessions_of(self, state: VideoState, home: Any) -> list[SessionHandle]:
        session = home()
        held = session is not None and vars(session).get(STATE_KEY) is state
        return [TransformersSession(session)] if held else []

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Position codes lie in caches of the library's methods, by shape, for all models."""
        try:
            yield
        finally:
            for kind in {host_class(module) for module in self.model.modules()}:
                for method in vars(kind).values():
                    for cell in getattr(getattr(method, "__func__", method), "__closure__", None) or ():
                        if hasattr(cell.cell_contents, "cache_clear"):
                            cell.cell_contents.cache_clear()

    def backbone(self) -> Any:
        encoder: Any = self.image_encoder()
        return encoder.backbone

    def image_size(self) -> int:
        size: Sequence[int] | int = self.tracker.config.vision_config.backbone_config.image_size
        return size if isinstance(size, int) else int(size[0])

    def frame_side(self) -> int:
        prompts = self.tracker.config.prompt_encoder_config
        return int(self.image_size() // prompts.patch_size)

    def memory_stride(self) -> int:
        return 1

    def pointer_frames(self) -> int:
        return int(self.tracker.config.max_object_pointers_in_encoder)

    def image_encoder(self) -> nn.Module:
        return self.tracker.vision_encoder

    def prompt_encoder(self) -> nn.Module:
        return self.tracker.prompt_encoder

    def mask_decoder(self) -> nn.Module:
        return self.tracker.mask_decoder

    def base_id(self) -> tuple[str | None, str | None]:
        config = self.model.config
        name = getattr(config, "_name_or_path", None) or None
        # A folder of this machine means nothing elsewhere.
        return (None, None) if name is None or Path(name).exists() else (name, getattr(config, "_commit_hash", None))

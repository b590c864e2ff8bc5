"""`transformers`: SAM 3's tracker by Hub id or folder, and with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from surgery.hosts.transformers.keymap import to_stock, to_transformers
from surgery.hosts.transformers.loader import PretrainedLoader
from surgery.missing import Library

if TYPE_CHECKING:
    from torch import Tensor

ENCODER = "vision_encoder."


@dataclass(frozen=True)
class Sam3:
    """The sizes of a SAM 3 tracker.

    width, heads, mlp, layers: of the image encoder. global_layers: those of them without windows. window: side,
    tokens. side: of the input, patch: of a token, trained: of the input for which there are position codes, pixels.
    hidden: channels outside the encoder. memory_layers, memory_mlp: of memory attention. decoder_mlp: of the mask
    decoder's.
    """

    width: int = 1024
    heads: int = 16
    mlp: int = 4736
    layers: int = 32
    global_layers: tuple[int, ...] = (7, 15, 23, 31)
    window: int = 24
    side: int = 1008
    patch: int = 14
    trained: int = 336
    hidden: int = 256
    memory_layers: int = 4
    memory_mlp: int = 2048
    decoder_mlp: int = 2048


SIZES = {
    "sam3": Sam3(),
    "sam3-small": Sam3(96, 2, 192, 8, (3, 7), 6, 252, 14, 84, 128, 2, 256, 256),
}
"""The released size, and one of its shape that a CPU runs in a moment: 8 layers on a map of 18 x 18 tokens."""


class Sam3TrackerLoader(PretrainedLoader):
    """`Sam3TrackerVideoModel`. What the Hub has is saved with the text model, of which it takes its own part."""

    library = Library(
        "transformers.models.sam3_tracker_video",
        "the host of SAM 3's tracker",
        "pip install transformers torchvision",
        "transformers",
    )
    title = "`transformers`"
    model, config, kinds = "Sam3TrackerVideoModel", "Sam3TrackerVideoConfig", ("sam3_tracker_video", "sam3_video")
    own: ClassVar[Mapping[str, Any] | None] = SIZES

    def build(self, size: Sam3, vos: bool = False) -> Any:
        import transformers as library

        backbone = library.Sam3ViTConfig(
            hidden_size=size.width,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            global_attn_indexes=list(size.global_layers),
            window_size=size.window,
            image_size=size.side,
            patch_size=size.patch,
            pretrain_image_size=size.trained,
        )
        prompts = library.Sam3TrackerVideoPromptEncoderConfig(hidden_size=size.hidden, patch_size=size.patch)
        decoder = library.Sam3TrackerVideoMaskDecoderConfig(hidden_size=size.hidden, mlp_dim=size.decoder_mlp)
        config = library.Sam3TrackerVideoConfig(
            vision_config=library.Sam3VisionConfig(backbone_config=backbone, fpn_hidden_size=size.hidden),
            prompt_encoder_config=prompts,
            mask_decoder_config=decoder,
            memory_attention_hidden_size=size.hidden,
            memory_attention_num_layers=size.memory_layers,
            memory_attention_feed_forward_hidden_size=size.memory_mlp,
            memory_encoder_hidden_size=size.hidden,
            mask_downsampler_embed_dim=size.hidden,
            memory_fuser_embed_dim=size.hidden,
            memory_fuser_intermediate_dim=4 * size.hidden,
        )
        config.image_size = size.side  # and all that depends on it
        return library.Sam3TrackerVideoModel(config)

    def to_neutral(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's names are this library's: no other host has one like it."""
        own, rest = _parted(state)
        return {**own, **to_stock(rest)}

    def from_neutral(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        own, rest = _parted(state)
        return {**own, **to_transformers(rest)}


def _parted(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the encoder has, and the rest."""
    own = {name: value for name, value in state.items() if name.startswith(ENCODER)}
    return own, {name: value for name, value in state.items() if name not in own}

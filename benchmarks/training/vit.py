"""SAM 3's image encoder where stock SAM 2 has its own, so that the SAM 3 miniature learns as the SAM 2 one does.

SAM 3's tracker is SAM 2's behind another encoder: a stock SAM 2 model with the encoder exchanged is the same model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.sam3_miniature import SIZE, build
from benchmarks.training.feed import MEAN, STD
from benchmarks.training.learner import set_image_size
from surgery.demo.model import load

OURS, THEIRS = "image_encoder.vision.", "vision_encoder."


class Encoder(torch.nn.Module):
    """Takes pictures normalised as SAM 2 expects and gives what its `image_encoder` gives, of three levels."""

    gain: torch.Tensor
    shift: torch.Tensor

    def __init__(self, vision: Any, neck: Any) -> None:
        super().__init__()
        self.vision = vision
        self.neck = neck  # for its position code alone, which has no weights
        self.register_buffer("gain", 2 * torch.tensor(STD)[:, None, None], persistent=False)
        self.register_buffer("shift", 2 * torch.tensor(MEAN)[:, None, None] - 1, persistent=False)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] -> what the backbone makes of them, [N, C, h, w]."""
        pixels = images * self.gain + self.shift
        side = images.shape[-1] // SIZE.patch
        out: torch.Tensor = self.vision.backbone(pixels).last_hidden_state
        return out.unflatten(1, (side, side)).permute(0, 3, 1, 2)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        tokens = self.tokens(images)
        maps = [layer(tokens) for layer in self.vision.neck.fpn_layers[:3]]
        codes = [self.neck.position_encoding(each).to(each.dtype) for each in maps]
        return {"vision_features": maps[-1], "vision_pos_enc": codes, "backbone_fpn": maps}


def encode(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """What `learner.encode` gives, of a model with this encoder: three maps [N, C, h, w], fine to coarse."""
    encoder, decoder = model.image_encoder, model.sam_mask_decoder
    tokens = encoder.tokens(images)
    layers = encoder.vision.neck.fpn_layers
    return [
        _three_convolutions(layers[0], decoder.conv_s0, tokens),
        _three_convolutions(layers[1], decoder.conv_s1, tokens),
        layers[2](tokens),
    ]


def _three_convolutions(layer: Any, last: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A level of the neck and the decoder's convolution behind it; 1x1, 3x3 and 1x1 as one 3x3, an eighth of the work.

    A channel of ones carries the first bias, which the padding of the 3x3 does not have.
    """
    for each in layer.scale_layers:
        x = each(x)
    first, second = layer.proj1, layer.proj2
    inner = torch.cat([first.weight.flatten(1), first.bias[:, None]], 1)
    kernel = torch.einsum("oc,cmyx,mi->oiyx", last.weight.flatten(1), second.weight, inner)
    bias = last.weight.flatten(1) @ second.bias + last.bias
    return F.conv2d(torch.cat([x, torch.ones_like(x[:, :1])], 1), kernel, bias, padding=1)


def tracker(seed: int = 0) -> Any:
    """Stock SAM 2 with the SAM 2 miniature's weights and a new encoder of SAM 3's kind."""
    model = load("sam2")
    model.image_encoder = Encoder(build(seed).vision_encoder, model.image_encoder.neck)
    for level in model.image_encoder.neck.convs:
        level.requires_grad_(False)
    # Of windows this small, the backward pass of fused attention takes as long as all the rest.
    model.image_encoder.vision.backbone.set_attn_implementation("eager")
    set_image_size(model, SIZE.side)
    return model


def neutral(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a `tracker` by the names of a weights file of the SAM 3 miniature."""
    return {
        name.replace(OURS, THEIRS, 1): value
        for name, value in state.items()
        if not name.startswith("image_encoder.neck.")
    }

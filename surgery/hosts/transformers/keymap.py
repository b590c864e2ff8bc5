"""Weights of SAM 2.1 video models between stock `sam2` names and `transformers` names.

The two hosts hold the same tensors under other names, with two exceptions: the four point embeddings are one tensor in
transformers, and its Gaussian matrix of the prompt encoder is stored a second time. Both directions are total and
strict: a name that no rule knows is an error, and so is a missing one of those two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch

from surgery.errors import SurgeryError

_GAUSSIAN = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_GAUSSIAN_COPIES = (
    "prompt_encoder.shared_embedding.positional_embedding",
    "shared_image_embedding.positional_embedding",
)
_POINTS = tuple(f"sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4))
_POINTS_JOINED = "prompt_encoder.point_embed.weight"


class KeymapError(SurgeryError):
    """A state dict has a name that does not belong to a SAM 2.1 video model of its host, or lacks one that does."""


def to_transformers(stock: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a `Sam2VideoModel` state dict for one of stock `sam2`; tensors are shared, not copied, where possible.

    Raises:
        KeymapError: a name is unknown, or a point embedding or the Gaussian matrix is missing.
    """
    _require(stock, (_GAUSSIAN, *_POINTS))
    out = {_rename(key, forward=True): value for key, value in stock.items() if key != _GAUSSIAN and key not in _POINTS}
    out[_POINTS_JOINED] = torch.cat([stock[key] for key in _POINTS])
    for copy in _GAUSSIAN_COPIES:
        out[copy] = stock[_GAUSSIAN]
    return out


def to_stock(hf: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a stock `sam2` state dict for one of a `Sam2VideoModel`; tensors are shared where possible.

    Raises:
        KeymapError: a name is unknown or missing, or the two copies of the Gaussian matrix differ.
    """
    _require(hf, (*_GAUSSIAN_COPIES, _POINTS_JOINED))
    special = (*_GAUSSIAN_COPIES, _POINTS_JOINED)
    out = {_rename(key, forward=False): value for key, value in hf.items() if key not in special}
    first, second = (hf[copy] for copy in _GAUSSIAN_COPIES)
    if not torch.equal(first, second):
        raise KeymapError(f"{_GAUSSIAN_COPIES[0]} and {_GAUSSIAN_COPIES[1]} differ; stock sam2 has only one of them")
    out[_GAUSSIAN] = first
    for key, row in zip(_POINTS, hf[_POINTS_JOINED].split(1), strict=True):
        out[key] = row
    return out


def stock_path(layer: str) -> str:
    """Path of a layer with a weight in a `Sam2VideoModel` -> in stock `sam2`. Raises KeymapError for one it lacks."""
    return _rename(f"{layer}.weight", forward=False).removesuffix(".weight")


def _require(state: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        raise KeymapError(f"the state dict lacks {', '.join(missing)}")


def _rename(key: str, forward: bool) -> str:
    for pattern, template in _rules(forward):
        found = pattern.fullmatch(key)
        if found:
            return template.format(*found.groups())
    host = "stock sam2" if forward else "transformers"
    raise KeymapError(f"{key!r} is not a weight of a SAM 2.1 video model in {host}")


@lru_cache(maxsize=2)
def _rules(forward: bool) -> list[tuple[re.Pattern[str], str]]:
    """Return (pattern, format) of one direction; in a pair, `#` is a block number and `%` is weight or bias."""
    rules = []
    for stock, hf in _pairs():
        source, target = (stock, hf) if forward else (hf, stock)
        pattern = re.escape(source).replace(r"\#", r"(\d+)").replace("#", r"(\d+)").replace("%", r"(weight|bias)")
        rules.append((re.compile(pattern), re.sub("[#%]", "{}", target)))
    return rules


def _pairs() -> Iterator[tuple[str, str]]:
    """Yield (stock name, transformers name) of every weight but the two special ones."""
    yield "maskmem_tpos_enc", "memory_temporal_positional_encoding"
    yield "no_mem_embed", "no_memory_embedding"
    yield "no_mem_pos_enc", "no_memory_positional_encoding"
    yield "no_obj_ptr", "no_object_pointer"
    yield "no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"
    yield "mask_downsample.%", "mask_downsample.%"
    yield "obj_ptr_tpos_proj.%", "temporal_positional_encoding_projection_layer.%"
    yield from _three_layers("obj_ptr_proj", "object_pointer_proj")
    yield from _encoder()
    yield from _memory()
    yield from _prompts()
    yield from _decoder()


def _encoder() -> Iterator[tuple[str, str]]:
    ours, theirs = "image_encoder.trunk.", "vision_encoder.backbone."
    yield ours + "patch_embed.proj.%", theirs + "patch_embed.projection.%"
    for same in ("pos_embed", "pos_embed_window", "blocks.#.attn.qkv.%", "blocks.#.attn.proj.%", "blocks.#.proj.%"):
        yield ours + same, theirs + same
    for i in (1, 2):
        yield f"{ours}blocks.#.norm{i}.%", f"{theirs}blocks.#.layer_norm{i}.%"
    yield from _two_layers(ours + "blocks.#.mlp", theirs + "blocks.#.mlp")
    yield "image_encoder.neck.convs.#.conv.%", "vision_encoder.neck.convs.#.%"


def _memory() -> Iterator[tuple[str, str]]:
    layer = "memory_attention.layers.#."
    for attention in ("self_attn", "cross_attn_image"):
        yield from _attention(layer + attention, layer + attention)
    for i in (1, 2):
        yield f"{layer}linear{i}.%", f"{layer}linear{i}.%"
    for i in (1, 2, 3):
        yield f"{layer}norm{i}.%", f"{layer}layer_norm{i}.%"
    yield "memory_attention.norm.%", "memory_attention.layer_norm.%"
    ours, theirs = "memory_encoder.mask_downsampler.", "memory_encoder.mask_downsampler."
    for i in range(4):
        yield f"{ours}encoder.{3 * i}.%", f"{theirs}layers.{i}.conv.%"
        yield f"{ours}encoder.{3 * i + 1}.%", f"{theirs}layers.{i}.layer_norm.%"
    yield ours + "encoder.12.%", theirs + "final_conv.%"
    yield "memory_encoder.pix_feat_proj.%", "memory_encoder.feature_projection.%"
    yield "memory_encoder.out_proj.%", "memory_encoder.projection.%"
    ours, theirs = "memory_encoder.fuser.layers.#.", "memory_encoder.memory_fuser.layers.#."
    yield ours + "gamma", theirs + "scale"
    yield ours + "dwconv.%", theirs + "depthwise_conv.%"
    yield ours + "norm.%", theirs + "layer_norm.%"
    for i in (1, 2):
        yield f"{ours}pwconv{i}.%", f"{theirs}pointwise_conv{i}.%"


def _prompts() -> Iterator[tuple[str, str]]:
    for same in ("not_a_point_embed.weight", "no_mask_embed.weight"):
        yield "sam_prompt_encoder." + same, "prompt_encoder." + same
    parts = {0: "conv1", 1: "layer_norm1", 3: "conv2", 4: "layer_norm2", 6: "conv3"}
    for i, part in parts.items():
        yield f"sam_prompt_encoder.mask_downscaling.{i}.%", f"prompt_encoder.mask_embed.{part}.%"


def _decoder() -> Iterator[tuple[str, str]]:
    ours, theirs = "sam_mask_decoder.", "mask_decoder."
    for same in ("iou_token.weight", "mask_tokens.weight", "obj_score_token.weight", "conv_s0.%", "conv_s1.%"):
        yield ours + same, theirs + same
    for i, part in {0: "upscale_conv1", 1: "upscale_layer_norm", 3: "upscale_conv2"}.items():
        yield f"{ours}output_upscaling.{i}.%", f"{theirs}{part}.%"
    for head in ("output_hypernetworks_mlps.#", "iou_prediction_head", "pred_obj_score_head"):
        yield from _three_layers(ours + head, theirs + head)
    layer = "transformer.layers.#."
    for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
        yield from _attention(ours + layer + attention, theirs + layer + attention)
    for i in (1, 2, 3, 4):
        yield f"{ours}{layer}norm{i}.%", f"{theirs}{layer}layer_norm{i}.%"
    yield from _two_layers(ours + layer + "mlp", theirs + layer + "mlp")
    final = "transformer.final_attn_token_to_image"
    yield from _attention(ours + final, theirs + final)
    yield ours + "transformer.norm_final_attn.%", theirs + "transformer.layer_norm_final_attn.%"


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for part in ("q_proj", "k_proj", "v_proj"):
        yield f"{ours}.{part}.%", f"{theirs}.{part}.%"
    yield f"{ours}.out_proj.%", f"{theirs}.o_proj.%"


def _two_layers(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.layers.0.%", f"{theirs}.proj_in.%"
    yield f"{ours}.layers.1.%", f"{theirs}.proj_out.%"


def _three_layers(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.layers.0.%", f"{theirs}.proj_in.%"
    yield f"{ours}.layers.1.%", f"{theirs}.layers.0.%"
    yield f"{ours}.layers.2.%", f"{theirs}.proj_out.%"

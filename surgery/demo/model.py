"""The demo model: SAM 2.1 at a ninth of the size of Hiera-T, built in either host library.

The switches are those of the released SAM 2.1 configurations; only widths, depths and the image size are smaller.
Where stock `sam2` fixes a size in code (decoder MLP 2048, IoU head 256, depth 2, 8 heads) the other host gets the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from surgery.errors import SurgeryError, nearest
from surgery.missing import first_present, require

if TYPE_CHECKING:
    import torch

Host = Literal["sam2", "transformers"]

IMAGE_SIZE = 256
"""Side of the model's input in pixels: a stage-3 grid of 16 x 16 tokens, so 4 x 4 windows of 4 x 4."""
WEIGHTS = Path(__file__).with_name("weights.safetensors")
"""Where the shipped weights lie: fp16 safetensors with stock `sam2` key names."""

HIDDEN = 128
MEMORY = 64
EMBED = 24
BLOCKS = (1, 2, 11, 1)
WINDOWS = (8, 4, 4, 2)
GLOBALS = (8, 13)
HEADS = (1, 2, 4, 8)
BACKGROUND = (7, 7)
MEMORY_LAYERS = 3
MEMORY_MLP = 256


class DemoError(SurgeryError):
    """The demo model or its weights cannot be had."""


def build(host: Host | None = None, vos: bool = False, seed: int = 0) -> Any:
    """Return the demo model with random weights, fp32, on the CPU, in eval mode.

    Args:
        host: `"transformers"` gives a `Sam2VideoModel`, `"sam2"` a `SAM2VideoPredictor`; None the sam2 one where it is
            installed, else the other.
        vos: with `"sam2"`, give the compiling `SAM2VideoPredictorVOS` instead.
        seed: of the random weights. The two hosts draw them differently; see `surgery.demo.keymap`.

    Raises:
        DemoError: the host is unknown, or `vos` is asked of transformers.
        MissingLibraryError: the host library is not installed.
    """
    import torch

    host = _chosen(host, vos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build_sam2(vos) if host == "sam2" else _build_transformers()


def load(host: Host | None = None, vos: bool = False, weights: str | Path | None = None) -> Any:
    """Return the demo model with its trained weights; other arguments as in `build`.

    With point and box prompts both hosts give the same masks. A mask prompt they store differently: stock sam2 takes
    the pointer of the single-mask token and a memory of the mask at a quarter of its size, transformers takes the best
    candidate's pointer and the whole mask; the demo model is trained on both.

    Args:
        weights: a safetensors file with stock key names; None takes the shipped one.

    Raises:
        DemoError: the weights file is missing or does not fit the architecture.
        MissingLibraryError: the host library is not installed.
    """
    path = Path(weights) if weights is not None else WEIGHTS
    state = read_weights(path)
    host = _chosen(host, vos)
    model = build(host, vos)
    if host == "transformers":
        from surgery.demo.keymap import to_transformers

        state = to_transformers(state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DemoError(f"{path} does not hold weights of the demo model: {error}") from error
    return model


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file as fp32, by stock key name; a missing file is a DemoError."""
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise DemoError(f"there are no demo weights at {path}: expected a safetensors file with stock key names")
    return {key: value.float() for key, value in load_file(path).items()}


def processor() -> Any:
    """Return the transformers `Sam2VideoProcessor` that fits the demo model's image size."""
    from surgery.hosts.transformers.driver import new_processor

    return new_processor(IMAGE_SIZE)


def _chosen(host: Host | None, vos: bool) -> Host:
    """The host to build in, once it is known to be there."""
    hosts = get_args(Host)
    if host is None:
        host = "sam2" if vos else cast(Host, first_present(hosts))
    if host not in hosts:
        raise DemoError(f"host {host!r} is not one of {', '.join(hosts)}{nearest(str(host), hosts)}")
    if vos and host != "sam2":
        raise DemoError("vos=True needs host='sam2': only stock sam2 has a VOS predictor")
    require(host)
    return host


def _build_transformers() -> Any:
    from transformers import (
        Sam2HieraDetConfig,
        Sam2VideoConfig,
        Sam2VideoMaskDecoderConfig,
        Sam2VideoModel,
        Sam2VideoPromptEncoderConfig,
        Sam2VisionConfig,
    )

    size, grid = IMAGE_SIZE, IMAGE_SIZE // 16
    widths = [EMBED << stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        image_size=[size, size],
        hidden_size=EMBED,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=list(HEADS),
        blocks_per_stage=list(BLOCKS),
        window_size_per_stage=list(WINDOWS),
        global_attention_blocks=list(GLOBALS),
        window_positional_embedding_background_size=list(BACKGROUND),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        fpn_hidden_size=HIDDEN,
    )
    config = Sam2VideoConfig(
        image_size=size,
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=HIDDEN, image_size=size, patch_size=16),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(hidden_size=HIDDEN, mlp_dim=2048, iou_head_hidden_dim=256),
        memory_attention_hidden_size=HIDDEN,
        memory_attention_num_layers=MEMORY_LAYERS,
        memory_attention_feed_forward_hidden_size=MEMORY_MLP,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=HIDDEN,
        memory_encoder_output_channels=MEMORY,
        mask_downsampler_embed_dim=HIDDEN,
        memory_fuser_embed_dim=HIDDEN,
        memory_fuser_intermediate_dim=4 * HIDDEN,
    )
    return Sam2VideoModel(config).eval()


def _build_sam2(vos: bool) -> Any:
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

    size, grid = IMAGE_SIZE, IMAGE_SIZE // 16

    def attention(**extra: Any) -> Any:
        # No dropout: the training set is endless, so the model cannot overfit, and short training needs all its signal.
        common = {"embedding_dim": HIDDEN, "num_heads": 1, "downsample_rate": 1, "dropout": 0.0}
        return RoPEAttention(**common, rope_theta=10000.0, feat_sizes=(grid, grid), **extra)

    trunk = Hiera(
        embed_dim=EMBED,
        num_heads=HEADS[0],
        stages=BLOCKS,
        global_att_blocks=GLOBALS,
        window_spec=WINDOWS,
        window_pos_embed_bkg_spatial_size=BACKGROUND,
    )
    neck = FpnNeck(
        PositionEmbeddingSine(num_pos_feats=HIDDEN, image_size=size),
        d_model=HIDDEN,
        backbone_channel_list=[EMBED << stage for stage in (3, 2, 1, 0)],
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=MEMORY_MLP,
        dropout=0.0,
        pos_enc_at_attn=False,
        self_attention=attention(),
        d_model=HIDDEN,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=attention(rope_k_repeat=True, kv_in_dim=MEMORY),
    )
    memory_encoder = MemoryEncoder(
        out_dim=MEMORY,
        in_dim=HIDDEN,
        position_encoding=PositionEmbeddingSine(num_pos_feats=MEMORY, image_size=size),
        mask_downsampler=MaskDownSampler(embed_dim=HIDDEN, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=HIDDEN, kernel_size=7, padding=3, layer_scale_init_value=1e-6), num_layers=2),
    )
    predictor = SAM2VideoPredictorVOS if vos else SAM2VideoPredictor
    return predictor(
        image_encoder=ImageEncoder(trunk=trunk, neck=neck, scalp=1),
        memory_attention=MemoryAttention(d_model=HIDDEN, pos_enc_at_input=True, num_layers=MEMORY_LAYERS, layer=layer),
        memory_encoder=memory_encoder,
        image_size=size,
        **_SAM21,
    ).eval()


_SAM21: dict[str, Any] = {
    "num_maskmem": 7,
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "use_mask_input_as_output_without_sam": True,
    "directly_add_no_mem_embed": True,
    "no_obj_embed_spatial": True,
    "use_high_res_features_in_sam": True,
    "multimask_output_in_sam": True,
    "iou_prediction_use_sigmoid": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
    "multimask_output_for_tracking": True,
    "use_multimask_token_for_obj_ptr": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_mlp_for_obj_ptr_proj": True,
    "binarize_mask_from_pts_for_mem_enc": True,
    "fill_hole_area": 0,
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
}

"""Stock `sam2`: models from its configurations, with or without a checkpoint."""

from __future__ import annotations

import os
import warnings
from typing import Any

from surgery.core.loader import Loader
from surgery.errors import ModelLoadError, about
from surgery.hosts.sam21 import HUB, Sam21
from surgery.missing import Library

_LETTERS = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}


class Sam2Loader(Loader):
    """`SAM2VideoPredictor`, from CONFIG.yaml+CHECKPOINT.pt."""

    library = Library(
        "sam2.sam2_video_predictor",
        "the sam2 host",
        "SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2==1.1.0 (after torch)",
        None,
    )
    title = "Meta's `sam2`"
    forms = "CONFIG.yaml+CHECKPOINT.pt"
    default = True
    vos = True

    def reads(self, spec: str) -> bool:
        return ".yaml+" in spec

    def load(self, spec: str, weights: bool) -> Any:
        config, checkpoint = spec.split(".yaml+", 1)
        if not os.path.isfile(checkpoint):
            raise ModelLoadError(f"no checkpoint at {checkpoint!r}")
        return _predictor(f"{config}.yaml", checkpoint if weights else None)

    def example(self, base: str | None) -> tuple[str, str]:
        size = (base or "").removeprefix(HUB)
        files = '"configs/sam2.1/....yaml", "checkpoint.pt"'
        if size in _LETTERS:
            files = f'"{_config(size)}", "sam2.1_hiera_{size.replace("-", "_")}.pt"'
        return "from sam2.build_sam import build_sam2_video_predictor", f"build_sam2_video_predictor({files})"

    def build(self, size: Sam21, vos: bool = False) -> Any:
        if size.name:
            return _predictor(_config(size.name), vos=vos)
        hidden = size.hidden
        changes: dict[str, Any] = {
            "image_size": size.side,
            "image_encoder.trunk.embed_dim": size.width,
            "image_encoder.trunk.num_heads": size.heads,
            "image_encoder.trunk.stages": [*size.blocks],
            "image_encoder.trunk.global_att_blocks": [*size.global_blocks],
            "image_encoder.trunk.window_spec": [*size.windows],
            "image_encoder.trunk.window_pos_embed_bkg_spatial_size": [size.background] * 2,
            "image_encoder.neck.position_encoding.num_pos_feats": hidden,
            "image_encoder.neck.position_encoding.image_size": size.side,
            "image_encoder.neck.d_model": hidden,
            "image_encoder.neck.backbone_channel_list": size.widths[::-1],
            "memory_attention.d_model": hidden,
            "memory_attention.num_layers": size.layers,
            "memory_attention.layer.d_model": hidden,
            "memory_attention.layer.dim_feedforward": size.mlp,
            # No dropout: the training set is endless, so the model cannot overfit; short training needs all its signal.
            "memory_attention.layer.dropout": 0.0,
            "memory_encoder.in_dim": hidden,
            "memory_encoder.position_encoding.image_size": size.side,
            "memory_encoder.mask_downsampler.embed_dim": hidden,
            "memory_encoder.fuser.layer.dim": hidden,
        }
        attention = {"embedding_dim": hidden, "feat_sizes": [size.grid] * 2, "dropout": 0.0}
        for kind in ("self_attention", "cross_attention"):
            changes |= {f"memory_attention.layer.{kind}.{name}": value for name, value in attention.items()}
        model = _predictor(_config("tiny"), None, vos, [f"++model.{name}={value}" for name, value in changes.items()])
        # Holes are filled by an extension that is not always there, and in no other host.
        model.fill_hole_area = 0
        return model

    def quiet(self) -> None:
        super().quiet()
        warnings.filterwarnings("ignore", message="cannot import name '_C' from 'sam2'")


def _config(size: str) -> str:
    return f"configs/sam2.1/sam2.1_hiera_{_LETTERS[size]}.yaml"


def _predictor(config: str, checkpoint: str | None = None, vos: bool = False, changes: list[str] | None = None) -> Any:
    from hydra.errors import MissingConfigException
    from sam2.build_sam import build_sam2_video_predictor

    try:
        return build_sam2_video_predictor(
            config, checkpoint, device="cpu", hydra_overrides_extra=changes or [], vos_optimized=vos
        )
    except MissingConfigException as error:
        raise ModelLoadError(
            f"sam2 has no configuration {config!r}; expected configs/sam2.1/sam2.1_hiera_l.yaml"
        ) from error
    except Exception as error:
        raise ModelLoadError(about(f"{config}+{checkpoint}", error)) from error

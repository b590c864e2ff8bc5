"""`transformers`: saved models by Hub id or folder, and SAM 2.1 from a configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.core.loader import Loader
from surgery.errors import HubError, ModelLoadError, about
from surgery.hosts.sam21 import Sam21
from surgery.hosts.transformers.keymap import to_stock, to_transformers
from surgery.missing import Library


class PretrainedLoader(Loader):
    """Models of one class of the library, by `from_pretrained`.

    model, config: names of the classes. kinds: the `model_type`s of saved configurations that it reads.
    """

    forms = "a Hub id, a folder"
    model: ClassVar[str]
    config: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]

    def reads(self, spec: str) -> bool:
        return os.path.isdir(spec) or spec.count("/") == 1

    def owns(self, spec: str) -> bool:
        return _kind_of(spec) in self.kinds

    def load(self, spec: str, weights: bool) -> Any:
        import transformers

        kind, model = _kind_of(spec), getattr(transformers, self.model)
        if kind not in self.kinds:
            raise ModelLoadError(f"{spec}: a model of type {kind!r}, expected {' or '.join(map(repr, self.kinds))}")
        with _told(spec):
            if not weights:
                return model(getattr(transformers, self.config).from_pretrained(spec))
            return model.from_pretrained(spec)

    def example(self, base: str | None) -> tuple[str, str] | None:
        return (
            f"from transformers import {self.model}",
            f'{self.model}.from_pretrained("{base or "the base model"}")',
        )

    def quiet(self) -> None:
        # The library reads it when it is imported, and sets its logger by it.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _kind_of(spec: str) -> str | None:
    """The `model_type` of a saved configuration; None where it says none."""
    from transformers import PretrainedConfig

    if Path(spec).is_dir() and not (Path(spec) / "config.json").is_file():
        raise ModelLoadError(f"{spec}: no config.json, not a saved transformers model")
    with _told(spec):
        return PretrainedConfig.get_config_dict(spec)[0].get("model_type")


@contextmanager
def _told(spec: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(about(spec, error)) from error


class TransformersLoader(PretrainedLoader):
    """`Sam2VideoModel`."""

    library = Library(
        "transformers.models.sam2_video",
        "the transformers host",
        "pip install transformers torchvision",
        "transformers",
    )
    title = "`transformers`"
    model, config, kinds = "Sam2VideoModel", "Sam2VideoConfig", ("sam2_video",)
    detects = True

    def build(self, size: Sam21, vos: bool = False) -> Any:
        import transformers as library

        side, grid, hidden = size.side, size.grid, size.hidden
        backbone = library.Sam2HieraDetConfig(
            image_size=[side, side],
            hidden_size=size.width,
            num_attention_heads=size.heads,
            embed_dim_per_stage=size.widths,
            num_attention_heads_per_stage=[size.heads << stage for stage in range(4)],
            blocks_per_stage=list(size.blocks),
            window_size_per_stage=list(size.windows),
            global_attention_blocks=list(size.global_blocks),
            window_positional_embedding_background_size=[size.background] * 2,
        )
        vision = library.Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=size.widths[::-1],
            backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
            fpn_hidden_size=hidden,
        )
        config = library.Sam2VideoConfig(
            image_size=side,
            vision_config=vision,
            prompt_encoder_config=library.Sam2VideoPromptEncoderConfig(hidden_size=hidden, image_size=side),
            mask_decoder_config=library.Sam2VideoMaskDecoderConfig(hidden_size=hidden),
            memory_attention_hidden_size=hidden,
            memory_attention_num_layers=size.layers,
            memory_attention_feed_forward_hidden_size=size.mlp,
            memory_attention_rope_feat_sizes=[grid, grid],
            memory_encoder_hidden_size=hidden,
            mask_downsampler_embed_dim=hidden,
            memory_fuser_embed_dim=hidden,
            memory_fuser_intermediate_dim=4 * hidden,
        )
        return library.Sam2VideoModel(config)

    def detector(self, name: str, device: torch.device) -> Callable[[npt.NDArray[np.uint8]], tuple[Tensor, Tensor]]:
        """An `AutoModelForObjectDetection`; the score of a box is the highest of any class."""
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        try:
            processor: Any = AutoImageProcessor.from_pretrained(name)
            model: Any = AutoModelForObjectDetection.from_pretrained(name).to(device).eval()
        except OSError as error:
            words = " ".join(str(error).split())
            raise HubError(f"cannot load detector {name}: {words}") from error
        except (ValueError, RuntimeError, ImportError) as error:
            raise ModelLoadError(
                f"{name} is not an object detector that transformers can load (AutoModelForObjectDetection): {error}"
            ) from error

        @torch.no_grad()
        def detect(image: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
            inputs = processor(images=image, return_tensors="pt", input_data_format="channels_last").to(device)
            (found,) = processor.post_process_object_detection(
                model(**inputs), threshold=0.0, target_sizes=[image.shape[:2]]
            )
            return found["boxes"], found["scores"]

        return detect

    def to_neutral(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_stock(state)

    def from_neutral(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_transformers(state)

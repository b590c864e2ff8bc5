"""Models by name, for the command line: a Hub id, a folder, a stock config and checkpoint, or the embedded demo."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import ModelLoadError, about, nearest
from surgery.missing import first_present, require

if TYPE_CHECKING:
    from torch import Tensor

RANDOM = "random"
HOSTS = ("sam2", "transformers")
SIZES = ("tiny", "small", "base-plus", "large")
_STOCK = dict(zip(SIZES, ("t", "s", "b+", "l"), strict=True))
_HIERA = {
    "tiny": (96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7),
    "small": (96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7),
    "base-plus": (112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
    "large": (144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7),
}
"""Channels and heads of stage 1, blocks by stage, global blocks, windows by stage, side of the position embedding."""
_SCORE = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
_HEADS = re.compile(r"sam_mask_decoder\.output_hypernetworks_mlps\.\d\.layers\.2\.")
_FORMS = "a Hub id, a folder, CONFIG.yaml+CHECKPOINT.pt, random:SIZE or demo"


def load_model(
    spec: str, host: str | None = None, device: str | None = None, vos: bool = False, weights: bool = True
) -> Any:
    """Load a SAM 2 video model in eval mode.

    Args:
        spec: one of
            - `facebook/sam2.1-hiera-large` or a local folder: `Sam2VideoModel.from_pretrained`;
            - `configs/sam2.1/sam2.1_hiera_l.yaml+sam2.1_hiera_large.pt`: stock `sam2`, config and checkpoint;
            - `random:tiny`, `random:small`, `random:base-plus`, `random:large`: SAM 2.1 of that size at 1024 px with
              random weights, for timing and for trying things out (it segments nothing);
            - `demo`: the embedded miniature at 256 px.
        host: "sam2" or "transformers"; for `demo` and `random:` only. Default: the first of the two that is installed.
            Both get the same weights.
        device: torch device; default CUDA when there is one, else the CPU.
        vos: the predictor that stock `sam2` compiles whole (`vos_optimized=True`); for its `demo` and `random:` only.
        weights: False: build the model without reading or drawing its weights, most of which are then zeros; to look
            at what it is made of.

    Raises:
        ModelLoadError: unknown form or size, missing file, or a checkpoint that does not fit.
        MissingLibraryError: the host library is not installed.
    """
    import torch

    if vos and (host == "transformers" or not (spec == "demo" or spec.startswith(f"{RANDOM}:"))):
        raise ModelLoadError(f"{spec}: only demo and random: models of the sam2 host have a VOS predictor here")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if spec == "demo":
        from surgery.demo import model as demo

        model = demo.load(host=host, vos=vos)  # type: ignore[arg-type]
    elif spec.startswith(f"{RANDOM}:"):
        model = _random(spec.split(":", 1)[1], host, vos, weights)
    elif ".yaml+" in spec:
        config, checkpoint = spec.split(".yaml+", 1)
        model = _stock(f"{config}.yaml", checkpoint, weights=weights)
    else:
        model = _pretrained(spec, weights)
    return model.to(place).eval()


def _random(size: str, host: str | None, vos: bool, weights: bool) -> Any:
    import torch

    from surgery.demo.keymap import to_stock, to_transformers

    if size not in SIZES:
        raise ModelLoadError(f"random:{size}: unknown size{nearest(size, SIZES)}; known: {', '.join(SIZES)}")
    host = host or ("sam2" if vos else first_present(HOSTS))
    if host not in HOSTS:
        raise ModelLoadError(
            f"random:{size}: unknown host {host!r}{nearest(host, HOSTS)}; expected one of {', '.join(HOSTS)}"
        )
    with torch.random.fork_rng(devices=[]), _unfilled():
        model = build_sam21(size, host, vos)
    if not weights:
        return model
    own = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}
    stock = to_stock(own) if host == "transformers" else own
    drawn = random_weights({name: tensor.shape for name, tensor in stock.items()})
    model.load_state_dict(to_transformers(drawn) if host == "transformers" else drawn)
    return model


@contextmanager
def _unfilled() -> Iterator[None]:
    """Inside, modules are built without drawing their first weights, which takes seconds for a large model; they are
    zeros instead."""
    import torch
    from torch import Tensor
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    fills = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, init.normal_, init.uniform_, init.kaiming_uniform_}

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.empty:
                return torch.zeros(*args, **kwargs)  # pages that nobody writes to are not even allocated
            if func in fills:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    with Unfilled():
        yield


def build_sam21(size: str, host: str, vos: bool = False) -> Any:
    """SAM 2.1 of a size in `SIZES`, at 1024 px, with the weights its host starts from.

    Args:
        host: "sam2" or "transformers". vos: build the compiling predictor, see `load_model`.

    Raises:
        MissingLibraryError: the library is not installed.
    """
    if host == "sam2":
        return _stock(f"configs/sam2.1/sam2.1_hiera_{_STOCK[size]}.yaml", None, vos)
    require("transformers")
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    width, heads, blocks, globals_, windows, background = _HIERA[size]
    widths = [width << stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=heads,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads << stage for stage in range(4)],
        blocks_per_stage=list(blocks),
        window_size_per_stage=list(windows),
        global_attention_blocks=list(globals_),
        window_positional_embedding_background_size=[background, background],
    )
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=widths[::-1])
    return Sam2VideoModel(Sam2VideoConfig(vision_config=vision))


def random_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights by stock name, drawn by name and shape alone, so that both hosts get the same: fp32 on the CPU.

    Products and convolutions keep the scale of their input, norms start as the identity, fusers nearly so. Objects
    are always confident. Untrained mask heads would light up everywhere, which leaves nothing to skip; these find
    nothing anywhere, so that windows are chosen by the attention.
    """
    import torch

    drawn: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if name.endswith("gaussian_matrix"):
            drawn[name] = torch.randn(shape, generator=generator)
        elif name.endswith("gamma"):
            drawn[name] = torch.full(shape, 1e-6)
        elif len(shape) == 1:
            drawn[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            bound = math.sqrt(shape[0] / math.prod(shape))
            drawn[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        if _HEADS.match(name):
            drawn[name] = torch.zeros(shape)
    drawn[_SCORE] = torch.full(tuple(shapes[_SCORE]), 8.0)
    return drawn


def _stock(config: str, checkpoint: str | None, vos: bool = False, weights: bool = True) -> Any:
    require("sam2")
    from hydra.errors import MissingConfigException
    from sam2.build_sam import build_sam2_video_predictor

    if checkpoint is not None and not os.path.isfile(checkpoint):
        raise ModelLoadError(f"no checkpoint at {checkpoint!r}")
    if not weights:
        with _unfilled():
            return _stock(config, None, vos)
    try:
        return build_sam2_video_predictor(config, checkpoint, device="cpu", vos_optimized=vos)
    except MissingConfigException as error:
        raise ModelLoadError(
            f"sam2 has no configuration {config!r}; expected configs/sam2.1/sam2.1_hiera_l.yaml"
        ) from error
    except Exception as error:
        raise ModelLoadError(about(f"{config}+{checkpoint}", error)) from error


def _pretrained(spec: str, weights: bool) -> Any:
    require("transformers")
    from transformers import Sam2VideoConfig, Sam2VideoModel

    if not os.path.isdir(spec) and spec.count("/") != 1:
        raise ModelLoadError(f"{spec!r} is not a model: expected {_FORMS}{nearest(spec, ['demo', *_sizes()])}")
    if Path(spec).is_dir() and not (Path(spec) / "config.json").is_file():
        raise ModelLoadError(f"{spec}: no config.json, not a saved transformers model")
    try:
        if not weights:
            with _unfilled():
                return Sam2VideoModel(Sam2VideoConfig.from_pretrained(spec))
        return Sam2VideoModel.from_pretrained(spec)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(about(spec, error)) from error


def _sizes() -> list[str]:
    return [f"{RANDOM}:{size}" for size in SIZES]

"""Models by name, for the command line: a Hub id, a folder, a stock config and checkpoint, or the embedded demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.errors import ModelLoadError, nearest

RANDOM = "random"
SIZES = ("tiny", "small", "base-plus", "large")
_STOCK = dict(zip(SIZES, ("t", "s", "b+", "l"), strict=True))
_FORMS = "a Hub id, a folder, CONFIG.yaml+CHECKPOINT.pt, random:SIZE or demo"


def load_model(spec: str, host: str | None = None, device: str | None = None) -> Any:
    """Load a SAM 2 video model in eval mode.

    Args:
        spec: one of
            - `facebook/sam2.1-hiera-large` or a local folder: `Sam2VideoModel.from_pretrained`;
            - `configs/sam2.1/sam2.1_hiera_l.yaml+sam2.1_hiera_large.pt`: stock `sam2`, config and checkpoint;
            - `random:tiny`, `random:small`, `random:base-plus`, `random:large`: SAM 2.1 of that size at 1024 px with
              random weights, for timing and for trying things out (it segments nothing);
            - `demo`: the embedded miniature at 256 px.
        host: "transformers" or "sam2"; for `demo` and `random:` only, default "sam2".
        device: torch device; default CUDA when there is one, else the CPU.

    Raises:
        ModelLoadError: unknown form or size, missing file or library, or a checkpoint that does not fit.
    """
    import torch

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if spec == "demo":
        from surgery.demo import model as demo

        model = demo.load(host=host or "sam2")  # type: ignore[arg-type]
    elif spec.startswith(f"{RANDOM}:"):
        model = _random(spec.split(":", 1)[1], host or "sam2")
    elif ".yaml+" in spec:
        config, checkpoint = spec.split(".yaml+", 1)
        model = _stock(f"{config}.yaml", checkpoint)
    else:
        model = _pretrained(spec)
    return model.to(place).eval()


def _random(size: str, host: str) -> Any:
    import torch

    if size not in SIZES:
        raise ModelLoadError(f"random:{size}: unknown size{nearest(size, SIZES)}; known: {', '.join(SIZES)}")
    if host != "sam2":
        raise ModelLoadError(f"random:{size} is built by the sam2 host, not by {host!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _stock(f"configs/sam2.1/sam2.1_hiera_{_STOCK[size]}.yaml", None)
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(8.0)
        # Untrained mask heads light up everywhere, which leaves nothing to skip; these find nothing anywhere, so that
        # windows are chosen by the attention.
        for head in model.sam_mask_decoder.output_hypernetworks_mlps:
            head.layers[-1].weight.zero_()
            head.layers[-1].bias.zero_()
    return model


def _stock(config: str, checkpoint: str | None) -> Any:
    try:
        from hydra.errors import MissingConfigException
        from sam2.build_sam import build_sam2_video_predictor
    except ImportError as error:
        raise ModelLoadError(f"the sam2 package is not installed ({error}); see the README for the command") from error
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise ModelLoadError(f"no checkpoint at {checkpoint!r}")
    try:
        return build_sam2_video_predictor(config, checkpoint, device="cpu")
    except MissingConfigException as error:
        raise ModelLoadError(
            f"sam2 has no configuration {config!r}; expected configs/sam2.1/sam2.1_hiera_l.yaml"
        ) from error
    except Exception as error:
        raise ModelLoadError(f"{config}+{checkpoint}: {error}") from error


def _pretrained(spec: str) -> Any:
    try:
        from transformers import Sam2VideoModel
    except ImportError as error:
        raise ModelLoadError(f"transformers is not installed ({error}); pip install 'surgery[transformers]'") from error
    if not Path(spec).is_dir() and spec.count("/") != 1:
        raise ModelLoadError(f"{spec!r} is not a model: expected {_FORMS}{nearest(spec, ['demo', *_sizes()])}")
    if Path(spec).is_dir() and not (Path(spec) / "config.json").is_file():
        raise ModelLoadError(f"{spec}: no config.json, not a saved transformers model")
    try:
        return Sam2VideoModel.from_pretrained(spec)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"{spec}: {error}") from error


def _sizes() -> list[str]:
    return [f"{RANDOM}:{size}" for size in SIZES]

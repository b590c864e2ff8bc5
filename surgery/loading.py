"""Models by name, for the command line: what a host has saved, released sizes with random weights, or the embedded
demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from surgery.demo import model as demo
from surgery.errors import ModelLoadError, nearest
from surgery.hosts import builders, hosts, loader_of, sizes_of
from surgery.hosts.sam21 import random_weights
from surgery.missing import require

RANDOM = "random"


def saved_forms() -> str:
    """How saved models are named, in all hosts."""
    return ", ".join(dict.fromkeys(host.loader.forms for host in hosts()))


def random_sizes() -> list[str]:
    """Sizes that models with random weights come in, in all hosts."""
    return list(dict.fromkeys(size for loader in builders().values() for size in sizes_of(loader)))


def load_model(
    spec: str, host: str | None = None, device: str | None = None, vos: bool = False, weights: bool = True
) -> Any:
    """Load a SAM 2 or SAM 3 video model in eval mode.

    Args:
        spec: one of
            - what a host reads: a Hub id or a local folder of `transformers`, such as `facebook/sam2.1-hiera-large`, or
              `facebook/sam3`, of which the tracker is loaded; configuration and checkpoint of stock `sam2`, as in
              `configs/sam2.1/sam2.1_hiera_l.yaml+sam2.1_hiera_large.pt`;
            - `random:tiny`, `random:small`, `random:base-plus`, `random:large`: SAM 2.1 of that size at 1024 px with
              random weights, for timing and for trying things out (it segments nothing); `random:sam3`: SAM 3's tracker
              at 1008 px, `random:sam3-small`: one of its shape at 252 px;
            - `demo`: the embedded miniature at 256 px.
        host: its name, such as "sam2". Default: of `demo` and `random:` the first that is installed, all of which get
            the same weights; of a saved model the first that it is of.
        device: torch device; default CUDA when there is one, else the CPU.
        vos: the predictor that stock `sam2` compiles whole (`vos_optimized=True`); for its `demo` and `random:` only.
        weights: False: build the model without reading or drawing its weights, most of which are then zeros; to look
            at what it is made of.

    Raises:
        ModelLoadError: unknown form, size or host, missing file, or a checkpoint that does not fit.
        MissingLibraryError: the host library is not installed.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if spec == "demo":
        model = demo.load(host, vos)
    elif spec.startswith(f"{RANDOM}:"):
        model = _random(spec.split(":", 1)[1], host, vos, weights)
    elif vos:
        raise ModelLoadError(f"{spec}: only demo and {RANDOM}: models have a VOS predictor here")
    else:
        model = _saved(spec, host, weights)
    return model.to(place).eval()


def _saved(spec: str, host: str | None, weights: bool) -> Any:
    known = builders()
    if host is not None and host not in known:
        raise ModelLoadError(f"host {host!r} is not one of {', '.join(known)}{nearest(host, known)}")
    able = [loader for name, loader in known.items() if loader.reads(spec) and host in (None, name)]
    if not able:
        forms, named = (saved_forms(), "") if host is None else (known[host].forms, f" of host {host}")
        names = ["demo", *(f"{RANDOM}:{size}" for size in random_sizes())]
        raise ModelLoadError(
            f"{spec!r} is not a model{named}: expected {forms}, {RANDOM}:SIZE or demo{nearest(spec, names)}"
        )
    require(able[0].library)
    loader = next((loader for loader in able if loader.owns(spec)), able[0]) if len(able) > 1 else able[0]
    with nullcontext() if weights else _unfilled():
        return loader.load(spec, weights)


def _random(size: str, host: str | None, vos: bool, weights: bool) -> Any:
    known = random_sizes()
    if size not in known:
        raise ModelLoadError(f"{RANDOM}:{size}: unknown size{nearest(size, known)}; known: {', '.join(known)}")
    loader = loader_of(host, vos, size)
    with torch.random.fork_rng(devices=[]), _unfilled():
        model = loader.build(sizes_of(loader)[size], vos)
    if weights:
        own = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}
        drawn = random_weights({name: tensor.shape for name, tensor in loader.to_neutral(own).items()})
        model.load_state_dict(loader.from_neutral(drawn))
    return model


def _zeros(*size: Any, **how: Any) -> Tensor:
    """`torch.zeros` by calloc, of which pages that nobody writes to are not even allocated."""
    like = torch.empty(*size, **{**how, "device": "meta"})
    place = torch.device(how.get("device") or torch.get_default_device())
    if like.dtype != torch.float32 or place.type != "cpu":
        return torch.zeros(*size, **how)
    return torch.from_numpy(np.zeros(like.shape, np.float32)).requires_grad_(like.requires_grad)


@contextmanager
def _unfilled() -> Iterator[None]:
    """Inside, modules are built without drawing their first weights, which takes seconds for a large model; they are
    zeros instead."""
    # By name: host libraries have some of their own.
    fills = {"normal_", "uniform_", "erfinv_", "kaiming_uniform_"}

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.empty:
                return _zeros(*args, **kwargs)
            if getattr(func, "__name__", "") in fills:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    with Unfilled():
        yield

"""Models by name, for the command line: what a host has saved, SAM 2.1 with random weights, or the embedded demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from surgery.demo import model as demo
from surgery.errors import ModelLoadError, nearest
from surgery.hosts import builders, hosts, loader_of
from surgery.hosts.sam21 import SIZES, random_weights
from surgery.missing import require

RANDOM = "random"


def saved_forms() -> str:
    """How saved models are named, in all hosts."""
    return ", ".join(host.loader.forms for host in hosts())


def load_model(
    spec: str, host: str | None = None, device: str | None = None, vos: bool = False, weights: bool = True
) -> Any:
    """Load a SAM 2 video model in eval mode.

    Args:
        spec: one of
            - what a host reads: a Hub id or a local folder of `transformers`, such as `facebook/sam2.1-hiera-large`;
              configuration and checkpoint of stock `sam2`, as in
              `configs/sam2.1/sam2.1_hiera_l.yaml+sam2.1_hiera_large.pt`;
            - `random:tiny`, `random:small`, `random:base-plus`, `random:large`: SAM 2.1 of that size at 1024 px with
              random weights, for timing and for trying things out (it segments nothing);
            - `demo`: the embedded miniature at 256 px.
        host: its name, such as "sam2"; for `demo` and `random:` only. Default: the first that is installed. All get the
            same weights.
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
        model = _saved(spec, weights)
    return model.to(place).eval()


def _saved(spec: str, weights: bool) -> Any:
    loader = next((loader for loader in builders().values() if loader.reads(spec)), None)
    if loader is None:
        known = ["demo", *(f"{RANDOM}:{size}" for size in SIZES)]
        raise ModelLoadError(
            f"{spec!r} is not a model: expected {saved_forms()}, {RANDOM}:SIZE or demo{nearest(spec, known)}"
        )
    require(loader.library)
    with nullcontext() if weights else _unfilled():
        return loader.load(spec, weights)


def _random(size: str, host: str | None, vos: bool, weights: bool) -> Any:
    if size not in SIZES:
        raise ModelLoadError(f"{RANDOM}:{size}: unknown size{nearest(size, SIZES)}; known: {', '.join(SIZES)}")
    loader = loader_of(host, vos)
    with torch.random.fork_rng(devices=[]), _unfilled():
        model = loader.build(SIZES[size], vos)
    if weights:
        own = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}
        drawn = random_weights({name: tensor.shape for name, tensor in loader.to_neutral(own).items()})
        model.load_state_dict(loader.from_neutral(drawn))
    return model


@contextmanager
def _unfilled() -> Iterator[None]:
    """Inside, modules are built without drawing their first weights, which takes seconds for a large model; they are
    zeros instead."""
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

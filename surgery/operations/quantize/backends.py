"""Libraries that multiply in few bits: which can do it here, and a layer packed for one of them.

On a processor with VNNI, SAM 2.1's layers, one thread: `onednn` 4.1 to 8.0 times fp32, `fbgemm` 3.5 to 5.9, torchao's
eager kernels 0.4 to 4.6 (benchmarks/results/quantize-layers-large-cpu.json). Without VNNI fbgemm alone keeps its sums
from overflowing.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgery.core.access import replaced
from surgery.errors import HardwareError, MissingLibraryError
from surgery.missing import Library, require

Scheme = Literal["int8_dynamic", "fp8_dynamic"]
Backend = Literal["onednn", "fbgemm", "torchao"]
Choice = Literal["auto", "onednn", "fbgemm", "torchao"]
Packed = Callable[[Tensor], Tensor]
TORCHAO = Library("torchao.quantization", "quantised layers outside of a CPU", "pip install torchao", "quantize")
FP8 = (8, 9)
"""Compute capability of the first GPUs that multiply in fp8."""
_LEAST = 1e-12
_ENGINE = threading.Lock()


def vnni() -> bool:
    """Whether the processor sums int8 products in one instruction."""
    return torch.cpu._is_vnni_supported()


def chosen(scheme: Scheme, backend: Choice, device: torch.device) -> Backend:
    """The backend to use for weights on this device.

    Raises:
        HardwareError: it cannot run there, or the device does not multiply in this format.
        MissingLibraryError: it, or torch's operator behind it, is not installed.
    """
    on_cpu = device.type == "cpu"
    if scheme == "fp8_dynamic" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8):
        raise HardwareError(
            f"quantize: scheme fp8_dynamic on {_named(device)}, expected a CUDA device of compute capability "
            f"{FP8[0]}.{FP8[1]} or above; use scheme int8_dynamic, or move the model to such a device first"
        )
    if backend == "auto":
        backend = ("onednn" if vnni() else "fbgemm") if on_cpu and engines() else "torchao"
    if backend == "torchao":
        require(TORCHAO)
        return backend
    if not on_cpu or scheme != "int8_dynamic":
        raise HardwareError(
            f"quantize: backend {backend} is for int8_dynamic on a CPU, the model is on {_named(device)}; use backend "
            "torchao or auto"
        )
    if backend not in engines():
        raise MissingLibraryError(
            f"quantize: torch {torch.__version__} has no int8 linear layers by {backend} (it has: "
            f"{', '.join(engines()) or 'none'}); use backend auto or torchao, or a torch that has it (2.5 to 2.15 do)"
        )
    return backend


def engines() -> list[Backend]:
    """Those of torch's own that this build has, with the operators they need."""
    operators = torch.ops.quantized
    there = (hasattr(operators, name) for name in ("linear_prepack", "linear_dynamic"))
    if not (all(there) and hasattr(torch, "quantize_per_channel")):
        return []
    known: tuple[Backend, ...] = ("onednn", "fbgemm")
    return [each for each in known if each in torch.backends.quantized.supported_engines]


def packed(layer: nn.Linear, scheme: Scheme, backend: Backend) -> Packed:
    """What a layer computes, from a copy of its weights in few bits: fp32 [..., in] -> fp32 [..., out].

    Weights have a scale for every output channel; tokens one for each call (torch's own), or each token (torchao).
    """
    with torch.inference_mode(False), torch.no_grad():
        return _of_torchao(layer, scheme) if backend == "torchao" else _of_torch(layer, backend)


def _of_torch(layer: nn.Linear, engine: Backend) -> Packed:
    weight = layer.weight.detach()
    scales = (weight.abs().amax(1).double() / 127).clamp_min(_LEAST)
    with warnings.catch_warnings():
        # Tensors in codes are to leave torch some day: `engines` then says so.
        warnings.simplefilter("ignore")
        coded = torch.quantize_per_channel(weight, scales, torch.zeros_like(scales, dtype=torch.int64), 0, torch.qint8)
    bias = None if layer.bias is None else layer.bias.detach()
    with _ENGINE, replaced(torch.backends.quantized, "engine", engine):
        held = torch.ops.quantized.linear_prepack(coded, bias)
    width = layer.out_features
    narrow = not vnni()  # sums of pairs of full int8 products overflow int16

    def run(tokens: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic(tokens.detach(), held, narrow)
        return out.view(*tokens.shape[:-1], width)  # of no tokens it forgets the shape

    return run


def _of_torchao(layer: nn.Linear, scheme: Scheme) -> Packed:
    from torchao import quantization

    configs: dict[Scheme, Any] = {
        "int8_dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
        "fp8_dynamic": quantization.Float8DynamicActivationFloat8WeightConfig,
    }
    copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    copy.load_state_dict({name: value.detach().clone() for name, value in layer.state_dict().items()}, assign=True)
    quantization.quantize_(copy.requires_grad_(False), configs[scheme]())
    return copy


def _named(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{device} of capability {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"

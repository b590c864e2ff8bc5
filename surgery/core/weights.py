"""What a model's weights are made of: values or only shapes, plain numbers or codes of quantised ones; and in what
precision callers and operations want them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from surgery.core.values import name_of
from surgery.errors import ModelStateError, PrecisionWarning, UnsupportedModelError

T = TypeVar("T")


def require_plain(model: nn.Module) -> None:
    """Whether every weight holds values, and none is quantised; nothing is touched.

    Raises:
        ModelStateError: a weight on the meta device that no hook of accelerate brings in when it is needed.
        UnsupportedModelError: a quantised layer.
    """
    for path, module in model.named_modules():
        held = {**module._parameters, **module._buffers}
        absent = [name for name, tensor in held.items() if tensor is not None and tensor.is_meta]
        if absent and not hasattr(module, "_hf_hook"):
            name = ".".join(filter(None, (path, absent[0])))
            raise ModelStateError(
                f"{name} is on the meta device, a shape without values; expected loaded weights: use "
                "from_pretrained, or load_state_dict(..., assign=True), and then sparsify"
            )
    layer = quantised_layer(model)
    if layer is not None:
        raise UnsupportedModelError(
            f"{layer} is quantised, expected floating-point weights; take operation `quantize`, or "
            "sparsify the model first and quantise it then"
        )


def require_unquantised(module: nn.Module, part: str, how: str, run: Callable[[], T]) -> T:
    """`run()`, which runs a part; whatever it raises because a layer was quantised since is said so.

    how: the part runs, for the message.

    Raises:
        ModelStateError: it failed, and a layer is quantised.
    """
    try:
        return run()
    except Exception as error:
        # Asked only now: looking for it costs time on every frame.
        layer = quantised_layer(module)
        if layer is None or isinstance(error, ModelStateError):
            raise
        raise ModelStateError(
            f"part {part}: {layer} was quantised after the surgery, and the recipe runs the part {how}, which failed "
            f"({type(error).__name__}); take a recipe without operations precision, quantize and compile"
        ) from error


def require_fp32(name: str, weight: Tensor, operation: str, before: bool = False) -> None:
    """Raises ModelStateError for a weight that is not fp32. before: the operation has not begun with the model yet."""
    if weight.dtype == torch.float32:
        return
    found = name_of(weight.dtype)
    if before:
        raise ModelStateError(
            f"{name} is {found}, and {operation} starts from fp32 weights; load the model in fp32, or take a recipe "
            f"without {operation}"
        )
    raise ModelStateError(
        f"{name} has {found} weights, and {operation} needs fp32 ones; convert the model back (.float()), or "
        f"desparsify it and take a recipe without {operation}"
    )


def warned_of_caller(device: str, own: torch.dtype, recipe: str) -> bool:
    """Whether the caller is under autocast of another type than a part's own, of which it is then warned. recipe: what
    it does, for the message."""
    if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) == own:
        return False
    warnings.warn(
        f"called under {name_of(torch.get_autocast_dtype(device))} autocast, while the recipe {recipe}: inside that "
        "part the recipe's precision holds, between the parts the caller's",
        PrecisionWarning,
        stacklevel=2,
    )
    return True


def quantised_layer(module: nn.Module) -> str | None:
    """Path and class of the first layer whose weights are quantised, as by torch.ao or torchao; None without one."""
    for path, part in module.named_modules():
        weights = [weight for weight in part._parameters.values() if weight is not None]
        if hasattr(part, "_packed_params") or any(_is_coded(weight) for weight in weights):
            return f"{path} ({type(part).__name__})"
    return None


def _is_coded(weight: Tensor) -> bool:
    # torchao's weights say they are floating-point; they bring a `dequantize` of their own.
    return weight.is_quantized or not weight.is_floating_point() or type(weight).dequantize is not Tensor.dequantize


def mark(tensor: Tensor) -> tuple[int, int]:
    """Changes when values are written into a weight, or other storage is put under it; `.data` is not watched."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version

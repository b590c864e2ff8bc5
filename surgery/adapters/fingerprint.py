"""Which base model an adapter was fitted on, told from digests of the routed blocks' weights.

Three digests (fp32, and after rounding to bfloat16 and to float16) prove that a model is the base, or the base rounded
once to either format on either side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from surgery.core.host import HostView
from surgery.core.operation import Fields
from surgery.operations.window_routing.geometry import SpanInfo

FloatFormat = Literal["float32", "bfloat16", "float16"]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Fingerprint(Fields):
    """Digests of blocks entry..exit, parameter names included; None where an older surgery did not record one.

    precision: the coarsest format that holds the base's weights exactly. sketch: written by 0.1.0, no longer read.
    """

    float32: _Digest | None = None
    bfloat16: _Digest
    float16: _Digest | None = None
    precision: FloatFormat | None = None
    sketch: str | None = None


@dataclass(frozen=True)
class Match:
    """How a model compares with a fingerprint.

    same: equal in fp32, or in the format that the model or the fingerprint is declared in. rounded: equal after
    rounding to `precision`, so provably the base. different: not proven to be the base.
    """

    verdict: Literal["same", "rounded", "different"]
    precision: FloatFormat | None = None


def fingerprint(view: HostView, span: SpanInfo) -> Fingerprint:
    """The fingerprint of a model's routed blocks; equal for equal weights in either host."""
    return fingerprint_of(_routed(view, span))


def fingerprint_of(weights: Mapping[str, Tensor]) -> Fingerprint:
    """The fingerprint of weights by host-neutral names."""
    digests = {name: _digest(weights, name) for name in get_args(FloatFormat)}
    exact = (name for name in ("bfloat16", "float16") if _digest(weights, "float32", name) == digests["float32"])
    return Fingerprint.model_validate({**digests, "precision": next(exact, "float32")})


def compare(view: HostView, span: SpanInfo, expected: Fingerprint) -> Match:
    """Compare a model's routed blocks with a recorded fingerprint."""
    return compare_weights(_routed(view, span), expected)


def compare_weights(weights: Mapping[str, Tensor], expected: Fingerprint) -> Match:
    """Compare weights with a recorded fingerprint."""
    declared = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    for name in get_args(FloatFormat):
        recorded = getattr(expected, name)
        if recorded is not None and _digest(weights, name) == recorded:
            known = name == "float32" or expected.float32 is None or name in (declared, expected.precision)
            return Match("same" if known else "rounded", name)
    return Match("different")


def _routed(view: HostView, span: SpanInfo) -> dict[str, Tensor]:
    """Weights under `<block>.<stock name>`, in a fixed order."""
    return {
        f"{index}.{name}": tensor
        for index in range(span.entry, span.exit + 1)
        for name, tensor in sorted(view.block_tensors(index).items())
    }


def _digest(weights: Mapping[str, Tensor], precision: str, through: str = "float32") -> str:
    """Of the weights in one format, after rounding them to another."""
    digest = hashlib.sha256()
    for label, value in weights.items():
        tensor = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{label}:{tuple(tensor.shape)}".encode())
        rounded = tensor.to(getattr(torch, through)).to(getattr(torch, precision))
        digest.update(rounded.view(torch.int32 if precision == "float32" else torch.int16).numpy().tobytes())
    return digest.hexdigest()

"""Which base model an adapter was fitted on, told from the routed blocks' weights whatever they were rounded to.

Three digests (fp32, and after rounding to bfloat16 and to float16) prove that a model is the base, or the base rounded
once to either format on either side. A second rounding (base kept in bfloat16, model that has been through float16)
breaks every digest, so there is also a *sketch*: a few random signed sums of each tensor, taken after rounding to
bfloat16. Differences of sums estimate the distance of the weights (a sign sum of e has mean square |e|^2; AMS 1996),
and double rounding can move only the few weights that lay next to a rounding boundary. The sketch is consulted only
when the model or the base really is rounded; two full-precision models with other digests are different models.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from surgery.core.host import HostView
from surgery.operations.window_routing.geometry import SpanInfo

SKETCHES = 4
Precision = Literal["float32", "bfloat16", "float16"]
Verdict = Literal["same", "rounded", "close", "different"]
_DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Rounding to float16 first moves a bfloat16 result by one unit in the last place for one weight in 16: those within
# half a float16 step of a tie (an eighth of all), when the tie goes to the other side (half of them).
_FLIPS = 1 / 16
_HALF_STEP = 2.0**-24  # spacing of subnormal float16
_MAX_SKETCH = 200_000
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Fingerprint(BaseModel):
    """Digests of blocks entry..exit, parameter names included; None where an older surgery did not record one.

    precision: the coarsest format that holds the base's weights exactly. sketch: base64 of little-endian float32
    [tensors, SKETCHES].
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
    float32: _Digest | None = None
    bfloat16: _Digest
    float16: _Digest | None = None
    precision: Precision | None = None
    sketch: Annotated[str, Field(max_length=_MAX_SKETCH)] | None = None

    @field_validator("sketch")
    @classmethod
    def _decodes(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                raw = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"sketch is not base64: {error}") from error
            if not raw or len(raw) % (4 * SKETCHES) or not np.isfinite(np.frombuffer(raw, "<f4")).all():
                raise ValueError(f"sketch is not rows of {SKETCHES} finite float32 numbers")
        return value

    def sums(self) -> npt.NDArray[np.float64] | None:
        """The sketch as float64 [tensors, SKETCHES], None when there is none."""
        if self.sketch is None:
            return None
        return np.frombuffer(base64.b64decode(self.sketch), "<f4").astype(np.float64).reshape(-1, SKETCHES)


@dataclass(frozen=True)
class Match:
    """How a model compares with a fingerprint.

    same: equal in fp32, or in the format that the model or the fingerprint is declared in. rounded: equal after
    rounding to `precision`, so provably the base. close: no digest is equal, and the distance is what double rounding
    gives. different: other weights. distance: |model - base| / |base| after rounding to bfloat16, None if not needed
    or not known.
    """

    verdict: Verdict
    precision: Precision | None = None
    distance: float | None = None


def fingerprint(view: HostView, span: SpanInfo) -> Fingerprint:
    """The fingerprint of a model's routed blocks; equal for equal weights in either host."""
    sketch = np.concatenate([_sums(label, tensor)[None] for label, tensor in _tensors(view, span)])
    return Fingerprint(
        float32=_digest(view, span, "float32"),
        bfloat16=_digest(view, span, "bfloat16"),
        float16=_digest(view, span, "float16"),
        precision=_precision(view, span),
        sketch=base64.b64encode(sketch.astype("<f4").tobytes()).decode(),
    )


def compare(view: HostView, span: SpanInfo, expected: Fingerprint) -> Match:
    """Compare a model's routed blocks with a recorded fingerprint."""
    declared = next(iter(view.block_tensors(span.entry).values())).dtype
    if expected.float32 is not None and _digest(view, span, "float32") == expected.float32:
        return Match("same", "float32")
    rounded: tuple[Precision, ...] = ("bfloat16", "float16")
    for precision in rounded:
        recorded = getattr(expected, precision)
        if recorded is not None and _digest(view, span, precision) == recorded:
            only = expected.float32 is None
            known = only or declared == _DTYPES[precision] or expected.precision == precision
            return Match("same" if known else "rounded", precision)
    sums, precision_here = expected.sums(), _precision(view, span)
    if sums is None:
        return Match("different")
    distance, plausible = _distance(view, span, sums)
    if plausible and (precision_here != "float32" or expected.precision in rounded):
        return Match("close", precision_here if precision_here != "float32" else expected.precision, distance)
    return Match("different", None, distance)


def _tensors(view: HostView, span: SpanInfo) -> Iterator[tuple[str, Tensor]]:
    """Weights as fp32 CPU tensors under `<block>.<stock name>`, in a fixed order."""
    for index in range(span.entry, span.exit + 1):
        for name, tensor in sorted(view.block_tensors(index).items()):
            yield f"{index}.{name}", tensor.detach().to("cpu", torch.float32).contiguous()


def _digest(view: HostView, span: SpanInfo, precision: Precision) -> str:
    digest, dtype = hashlib.sha256(), _DTYPES[precision]
    for label, tensor in _tensors(view, span):
        digest.update(f"{label}:{tuple(tensor.shape)}".encode())
        bits = tensor.to(dtype).view(torch.int32 if precision == "float32" else torch.int16)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()


def _precision(view: HostView, span: SpanInfo) -> Precision:
    """The coarsest format that holds every weight exactly."""
    candidates: list[Precision] = ["bfloat16", "float16"]
    for _, tensor in _tensors(view, span):
        candidates = [name for name in candidates if torch.equal(tensor.to(_DTYPES[name]).float(), tensor)]
        if not candidates:
            return "float32"
    return candidates[0]


def _sums(label: str, tensor: Tensor) -> npt.NDArray[np.float64]:
    """SKETCHES signed sums of a tensor [..., n] rounded to bfloat16; the signs are an outer product of two patterns.

    Fixed-point integers, so that the order of the additions does not matter and the result is the same everywhere.
    """
    matrix = tensor.to(torch.bfloat16).double().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    fixed = (matrix * 2.0**32).to(torch.int64)
    found = []
    for number in range(SKETCHES):
        rows, columns = (_signs(f"{number}.{part}.{label}", size) for part, size in zip("rc", fixed.shape, strict=True))
        found.append(((fixed * columns).sum(1) * rows).sum().item() / 2.0**32)
    return np.array(found)


def _signs(seed: str, count: int) -> Tensor:
    """`count` signs from SHAKE-256, the same in every version of every library."""
    raw = np.frombuffer(hashlib.shake_256(seed.encode()).digest((count + 7) // 8), np.uint8)
    return torch.from_numpy(np.unpackbits(raw)[:count].astype(np.int64) * 2 - 1)


def _distance(view: HostView, span: SpanInfo, base: npt.NDArray[np.float64]) -> tuple[float | None, bool]:
    """Estimate |model - base| / |base| (bfloat16), and whether double rounding explains it, tensor by tensor and whole.

    A tensor's mean squared sum difference, divided by the variance that rounding gives, follows chi-squared with
    SKETCHES degrees of freedom over SKETCHES; the limits lie six standard deviations above its mean.
    """
    excess, moved, total, row = [], 0.0, 0.0, 0
    for label, tensor in _tensors(view, span):
        if row >= len(base):
            return None, False
        rounded = tensor.to(torch.bfloat16).double()
        # 8 significant bits: the unit in the last place of m * 2^e, m in [0.5, 1), is 2^(e - 8).
        steps = torch.ldexp(torch.ones_like(rounded), torch.frexp(rounded).exponent - 8)
        steps = torch.where(rounded == 0, 0.0, steps)
        subnormal = (rounded.abs() < 2.0**-14).double() * _HALF_STEP**2 / 12
        # One weight of a small tensor may be most of its variance; a quarter step keeps a single flip unremarkable.
        expected = float((_FLIPS * steps.square() + 2 * subnormal).sum()) + float(steps.max()) ** 2 / 4
        mine = _sums(label, tensor).astype("<f4").astype(np.float64)
        difference = float(np.square(mine - base[row]).mean())
        row += 1
        if not difference and not rounded.any():
            continue  # all zero on both sides says nothing
        excess.append(difference / expected if expected else (math.inf if difference else 0.0))
        moved += difference
        total += float(rounded.square().sum())
    if row != len(base) or not excess:
        return None, False
    limit = 1.25 + 6 * math.sqrt(2 / (SKETCHES * len(excess)))
    plausible = max(excess) <= 24 and sum(excess) / len(excess) <= limit
    return math.sqrt(moved / total) if total else 0.0, plausible


__all__ = ["SKETCHES", "Fingerprint", "Match", "Precision", "compare", "fingerprint"]

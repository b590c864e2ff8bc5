"""Digests of what decides a result: our own code, and tensors. Stored results of other digests are never read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent


def code_digest() -> str:
    """`"sha256:..."` over every Python file of this package; a version number stands still while code is worked on."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        total.update(f"{path.relative_to(PACKAGE).as_posix()} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"sha256:{total.hexdigest()}"


def weights_digest(state: Mapping[str, Any]) -> str:
    """`"sha256:..."` over names, types, shapes and bytes of a model's state dict."""
    import torch

    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        if type(value) is torch.Tensor and not value.is_quantized:
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            # Of a quantised layer: codes, scales and types, in containers of torch's.
            written = io.BytesIO()
            torch.save(value, written)
            total.update(name.encode() + written.getvalue())
    return f"sha256:{total.hexdigest()}"

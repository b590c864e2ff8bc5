"""Which base model an adapter was fitted on: a digest of the routed blocks' weights.

Weights are rounded to bfloat16 before hashing and named the stock way, so that the same base in either host, in fp32
or in bf16, has the same fingerprint. A model that has been through fp16 may round differently and is then refused.
"""

from __future__ import annotations

import hashlib

import torch

from surgery.hosts.base import HostView, SpanInfo


def fingerprint(view: HostView, span: SpanInfo) -> str:
    """`"bf16-sha256:<64 hex digits>"` over blocks entry..exit, parameter names included."""
    digest = hashlib.sha256()
    for index in range(span.entry, span.exit + 1):
        for name, tensor in sorted(view.block_tensors(index).items()):
            digest.update(f"{index}.{name}:{tuple(tensor.shape)}".encode())
            rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.int16).numpy().tobytes())
    return f"bf16-sha256:{digest.hexdigest()}"

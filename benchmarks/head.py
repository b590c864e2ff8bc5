"""What a result file says first: how it was made, when, and on which machine."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch

from surgery.bench.machine import machine


def head(kind: str, script: str, arguments: Sequence[str] | None) -> dict[str, Any]:
    """Kind, command, date and machine of what ran on the CPU.

    Args:
        script: its name under benchmarks. arguments: it was given; None: those of the command line.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return {
        "kind": kind,
        "command": f"python -m benchmarks.{script} {shlex.join(words)}".strip(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(torch.device("cpu")),
    }

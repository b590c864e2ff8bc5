"""Shared fixtures: where the golden fixtures lie, one thread pool, quiet progress bars."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("tests.hosts.sessions")
SHARED = Path(os.environ.get("SURGERY_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_configure() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(1)  # small models: a second thread costs more than it gives


def shared(*parts: str) -> Path:
    """A path in the shared folder; skips the calling test, visibly, when the folder is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"shared fixture not present: {path}")
    return path

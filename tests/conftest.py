"""Shared fixtures: where the golden fixtures lie, where weights lie, threads, quiet progress bars."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.storage import unalign

pytest.register_assert_rewrite("tests.hosts.sessions")
SHARED = Path(os.environ.get("SURGERY_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--unaligned", action="store_true", help="weights of all models lie as in a memory-mapped file")
    # Small models: a second thread costs more than it gives.
    parser.addoption("--threads", type=int, default=1, help="threads of PyTorch's operators (default: 1)")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(config.getoption("threads"))
    if config.getoption("unaligned"):
        unalign(pytest.MonkeyPatch())


def shared(*parts: str) -> Path:
    """A path in the shared folder; skips the calling test, visibly, when the folder is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"shared fixture not present: {path}")
    return path

"""One fitted model and its saved folder for all adapter tests; each test damages its own copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import surgery
from tests.adapters.folders import fitted
from tests.hosts.drive import Driver, make


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intact adapter folder, saved from the stock host. Do not write to it."""
    return surgery.save_adapter(fitted("sam2").model, tmp_path_factory.mktemp("adapter") / "saved")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """An own copy of the adapter folder."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.fixture(scope="session")
def stock() -> Driver:
    """A stock model; tests leave it stock."""
    return make("sam2")


@pytest.fixture(scope="session")
def sparse() -> Driver:
    """A model under surgery with recipe fast; tests leave it so."""
    driver = make("sam2")
    surgery.sparsify(driver.model, "fast")
    return driver

"""Weights that lie as in a memory-mapped file: a CPU may take other kernels, and the promises are the same."""

from __future__ import annotations

import copy

import pytest

import surgery
from tests.hosts.drive import BUSIEST, HOSTS, make, video
from tests.hosts.sessions import same
from tests.storage import OFFSET, unalign


@pytest.mark.parametrize("host", HOSTS)
def test_exact_and_every_way_back_with_unaligned_weights(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(host)
    unalign(monkeypatch)
    driver.model = copy.deepcopy(driver.model)
    assert all(parameter.data_ptr() % 16 == OFFSET for parameter in driver.model.parameters())
    stock = driver.track(video(6), 2)
    surgery.sparsify(driver.model, "exact")
    assert same(driver.track(video(6), 2), stock)
    surgery.sparsify(driver.model, BUSIEST[host])
    assert not same(driver.track(video(6), 2), stock)
    with surgery.disabled(driver.model):
        assert same(driver.track(video(6), 2), stock)
    surgery.desparsify(driver.model)
    assert same(driver.track(video(6), 2), stock)

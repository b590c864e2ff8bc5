"""The work of a routed frame must not grow unseen: counts against `guard.json`, never seconds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.work import LaunchCounter, OperatorCounter, SyncCounter
from surgery.core.early import Early
from surgery.operations.window_routing.bound import WindowRouter
from surgery.recipe import Recipe
from tests.bench.guard import COMMAND, FILE, HOSTS, RECIPES, changes, frame_of, launched, measured, observed, versions
from tests.hosts.drive import BLOCKS, LARGE

CASES = [(host, recipe) for host in HOSTS for recipe in RECIPES]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return held


@pytest.mark.parametrize(("host", "recipe"), CASES)
def test_flops_and_syncs_are_as_recorded(host: str, recipe: str, recorded: dict[str, Any]) -> None:
    case = f"{host} {recipe}"
    said = changes(case, recorded["cases"][case], measured(host, recipe), ("flops", "host_syncs", "early_reads"))
    assert not said, "\n".join(said)


@pytest.mark.parametrize(("host", "recipe"), CASES)
def test_operators_bytes_and_graphs_are_as_recorded(host: str, recipe: str, recorded: dict[str, Any]) -> None:
    here, there = versions(), recorded["versions"]
    if any(here[name] != there[name] for name in ("torch", host)):
        pytest.skip(f"counts of operators were recorded with {there}, here is {here}: {COMMAND} records them")
    case = f"{host} {recipe}"
    names = ("operators", "gathered_bytes", "graphs", "launches_before_read")
    said = changes(case, recorded["cases"][case], measured(host, recipe), names)
    assert not said, "\n".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_launches_of_large_are_as_recorded(host: str, recorded: dict[str, Any]) -> None:
    assert launched(host, LARGE) == recorded["launches"][host], COMMAND


@pytest.mark.parametrize("host", HOSTS)
def test_a_recorded_frame_launches_less_than_half_of_stock(host: str) -> None:
    found = launched(host, BLOCKS)
    assert found["balanced recorded"] < 0.4 * found["stock"]
    assert found["turbo recorded"] < 0.5 * found["stock"]


def test_the_page_has_the_launches_recorded(recorded: dict[str, Any]) -> None:
    page = (FILE.parents[2] / "docs" / "cuda-graphs.md").read_text(encoding="utf-8")
    for host, counts in recorded["launches"].items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{host}` |"))
        assert [cell.strip() for cell in row.split("|")[2:-1]] == [f"{count:,}" for count in counts.values()]


@pytest.mark.parametrize(("host", "recipe"), CASES)
def test_a_routed_frame_waits_for_the_device_as_often_as_stock(host: str, recipe: str) -> None:
    stock, sparse = observed(host, None).syncs, observed(host, recipe).syncs
    assert sparse == stock


def test_a_frame_whose_score_gate_fires_waits_no_more() -> None:
    """Attention is looked at as well, and what it says travels with the rest."""
    frame = frame_of("sam2", Recipe.load("balanced", ["routing.object.score_gate=1000"]))
    assert frame.flops > observed("sam2", "balanced").flops
    assert not frame.syncs and len(frame.early) == 2


def test_before_an_encoder_in_one_piece_the_windows_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WindowRouter, "_in_one_piece", True)
    frame = frame_of("sam2", Recipe.load("balanced"))
    assert frame.syncs == {"tolist": 1} and len(frame.early) == 1


def test_a_change_is_named_with_both_counts() -> None:
    before = {"flops": 100, "operators": 1000}
    assert changes("sam2 fast", before, {"flops": 100, "operators": 1020}, ("flops", "operators")) == []
    (said,) = changes("sam2 fast", before, {"flops": 101, "operators": 980}, ("flops", "operators", "graphs"))
    assert said.startswith("sam2 fast: flops rose from 100 to 101") and COMMAND in said
    (said,) = changes("sam2 fast", before, {"flops": 100, "operators": 900}, ("flops", "operators"))
    assert "operators fell from 1,000 to 900" in said


def test_every_wait_is_counted_once() -> None:
    values = torch.arange(4.0)
    with SyncCounter() as counter:
        values.tolist()
        values.sum().item()
        values.cpu()
        values.to("cpu")
        values.numpy()
        float(values[0])
        if values[1] > 0:
            values[values > 1]
        torch.nonzero(values)
        torch.where(values > 1)
    assert dict(counter.syncs) == {
        "tolist": 1, "item": 1, "cpu": 1, "to cpu": 1, "numpy": 1, "__float__": 1, "__bool__": 1, "__getitem__": 1,
        "nonzero": 1, "where": 1,
    }  # fmt: skip
    index = torch.tensor([1, 2])
    with SyncCounter() as counter:
        values[1:].clone()
        values[index] = 0
        values[values > 1] = 0.0
        torch.where(values > 1, values, index[0])
        values.to(values.device).to(torch.float64)
    assert not counter.syncs


def test_a_copy_that_was_started_early_is_no_wait_where_something_was_launched_meanwhile() -> None:
    table = torch.arange(4.0)
    before = Early(table)
    with torch.inference_mode(), SyncCounter() as counter:
        early = Early(table)
        assert early.values() == [0.0, 1.0, 2.0, 3.0]
        assert counter.syncs == {"tolist": 1} and not counter.early, "nothing was launched in between"
        early = Early(table)
        table.add_(1)
        table.reshape(2, 2).mul_(2)
        early.values()
        early.values()
        assert counter.syncs == {"tolist": 1} and counter.early == [2]
        early = Early(table)
        counter.again()
        table.add_(1)
        early.values()
        assert not counter.syncs and counter.early == [1]
        before.values()
        assert counter.syncs == {"tolist": 1}, "nobody saw it start"


def test_operators_and_gathered_bytes() -> None:
    table, index = torch.zeros(10, 4), torch.tensor([1, 2])
    with torch.inference_mode(), OperatorCounter() as counter:
        table.index_select(0, index)
        table[index]
        table.gather(0, index[:, None])
        table + 1
    assert counter.gathered == 4 * (2 * 4 + 2 * 4 + 2)
    assert counter.operators["add"] == 1 and counter.operators["index_select"] == 1
    assert counter.total == sum(counter.operators.values()) >= 4


def test_launches_are_what_makes_or_writes_memory() -> None:
    table = torch.zeros(10, 4)
    with torch.inference_mode(), LaunchCounter() as counter:
        table.reshape(4, 10).t()
        torch.empty(3)
        table.to(table.dtype)
        table.add_(1)
        torch.nn.functional.linear(table, table)
    assert counter.launches == {"add_": 1, "mm": 1}

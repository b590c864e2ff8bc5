"""Random programs on random videos. What must hold: `exact` is the stock model, bit for bit; under every recipe a video
in company (of other videos, threads, copies of itself, errors, second tries) is what it is alone; undo leaves nothing.

SURGERY_FUZZ sets how many programs every test runs, SURGERY_FUZZ_SEED the first one's seed.
"""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import surgery
from surgery.operations import Quantize
from tests.fuzz.company import Company, Noted, difference
from tests.fuzz.programs import TROUBLES, Program, Run, Spawn, program
from tests.hosts.drive import Driver, make

HOSTS = ("sam2", "transformers")
RECIPES = tuple(name for name in surgery.list_recipes() if name != "exact" and "everything" not in name)
COUNT = int(os.environ.get("SURGERY_FUZZ", "1"))
FIRST = int(os.environ.get("SURGERY_FUZZ_SEED", "0"))
PLANS = [
    (seed, HOSTS[(seed + index) % 2], recipe)
    for seed in range(FIRST, FIRST + COUNT)
    for index, recipe in enumerate(RECIPES)
]
"""Two programs put every recipe on both hosts."""


def seed_of(seed: int, recipe: str) -> int:
    """Every recipe has programs of its own, so that a few cover much."""
    return 100 * seed + ("exact", *RECIPES).index(recipe)


def fresh(host: str) -> Driver:
    """A stock model that tracks on either side of its prompts."""
    driver = make(host)
    if host == "sam2":
        # Memory is kept in bf16: without pointers, which are fp32, an fp32 model cannot read it.
        driver.model.only_obj_ptrs_in_the_past_for_eval = False
    return driver


@functools.cache
def stock(host: str) -> Driver:
    """A stock model, never under surgery."""
    return fresh(host)


def under(host: str, recipe: str) -> Driver:
    """A model under a recipe."""
    driver = fresh(host)
    surgery.sparsify(driver.model, recipe)
    return driver


def held(found: dict[int, list[Noted]], expected: dict[int, list[Noted]], only: str = "") -> None:
    """Assert that every video noted the same."""
    assert found.keys() == expected.keys()
    said = {number: difference(noted, expected[number], only) for number, noted in found.items()}
    assert not any(said.values()), said


def alone(driver: Driver, plan: Program, recipe: str | None, numbers: list[int]) -> dict[int, list[Noted]]:
    """What every video notes when it is the only one; the model is under the recipe anew for each."""
    noted = {}
    for number in numbers:
        if recipe is not None:
            surgery.sparsify(driver.model, recipe)
        noted |= Company(driver, plan, recipe, only=number).run()
    return noted


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
@pytest.mark.parametrize("host", HOSTS)
def test_exact_is_stock(host: str, seed: int) -> None:
    plan = program(seed_of(seed, "exact"))
    expected = Company(stock(host), plan, None).run()
    held(alone(stock(host), plan, None, list(expected)), expected)  # else it is the host that does not hold
    company = Company(under(host, "exact"), plan, "exact")
    held(company.run(), expected)
    company.leaves_nothing(stock(host))


@pytest.mark.parametrize(("seed", "host", "recipe"), PLANS)
def test_a_video_in_company_is_what_it_is_alone(seed: int, host: str, recipe: str) -> None:
    plan = program(seed_of(seed, recipe))
    company = Company(under(host, recipe), plan, recipe)
    found = company.run()
    company.leaves_nothing(stock(host))
    # Layers in int8 are so on prompted frames too.
    if surgery.Recipe.load(recipe).find(Quantize) is None:
        held(found, Company(stock(host), plan, None).run(), only="first prompt")
    held(found, alone(company.driver, plan, recipe, list(found)))


@pytest.mark.parametrize(("seed", "host", "recipe"), PLANS[::3])
def test_threads_that_share_a_model(seed: int, host: str, recipe: str) -> None:
    """Each with its own videos, and its own `disabled`."""
    driver = under(host, recipe)
    plans = [program(seed_of(seed, recipe) + 50, roots=(root,), cuts=False) for root in (0, 1)]
    companies = [Company(driver, plan, recipe) for plan in plans]
    with ThreadPoolExecutor(len(plans)) as pool:
        results = list(pool.map(Company.run, companies))
    for plan, found in zip(plans, results, strict=True):
        held(found, alone(driver, plan, recipe, list(found)))
    for company in companies:
        company.leaves_nothing(stock(host))


@pytest.mark.parametrize("host", HOSTS)
def test_surgery_from_another_thread_waits_for_the_frame(host: str) -> None:
    plan = program(seed_of(FIRST, "exact") + 50, cuts=False, dense=False)
    company = Company(under(host, "exact"), plan, "exact")
    model, ended = company.driver.model, threading.Event()

    def operate() -> None:
        while not ended.wait(0.05):
            with company.still:
                surgery.sparsify(model, "exact")
        with company.still:
            surgery.desparsify(model)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(operate)
        try:
            found = company.run()
        finally:
            ended.set()
        other.result()
    held(found, Company(stock(host), plan, None).run())
    company.leaves_nothing(stock(host))


def test_the_programs_have_every_trouble() -> None:
    """Those that run by default; else a test above says nothing of it."""
    steps = [
        step for recipe in ("exact", *RECIPES) for part in program(seed_of(0, recipe)).videos.values() for step in part
    ]
    found = {trouble.kind for step in steps if isinstance(step, Run) for trouble in step.troubles.values()}
    assert found == set(TROUBLES)
    assert {step.pickled for step in steps if isinstance(step, Spawn)} == {False, True}

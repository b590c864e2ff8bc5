"""Whose a model is: hosts answer for exactly their own, what is close to one is told what it lacks, others can join."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import surgery.hosts as registry
from surgery import UnsupportedModelError
from surgery.adapters import read_adapter
from surgery.adapters.card import model_card
from surgery.bench.machine import machine
from surgery.core.host import HostView
from surgery.core.loader import Loader
from surgery.demo import model as demo
from surgery.errors import MissingLibraryError, ModelLoadError
from surgery.hosts import hosts, loader_of, register, view_of
from surgery.hosts.sam21 import Sam21
from surgery.loading import load_model
from surgery.missing import Library

ROOT = Path(__file__).resolve().parents[2]


class SubclassOfNothing(nn.Module):
    pass


class ToyLoader(Loader):
    """Another library's SAM 2.1, as it were: its own saved models, and sizes that it builds."""

    library = Library("click.toy", "the toy host", "pip install click-toy", None)
    title, forms = "the toy", "toy:NAME"

    def reads(self, spec: str) -> bool:
        return spec.startswith("toy:")

    def load(self, spec: str, weights: bool) -> Any:
        return SubclassOfNothing()

    def example(self, base: str | None) -> tuple[str, str]:
        return "import toy", f"toy.open({base!r})"

    def build(self, size: Sam21, vos: bool = False) -> Any:
        return loader_of("sam2").build(size, vos).requires_grad_(False)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_HOSTS", list(registry._HOSTS))


def toy(owner: type[nn.Module]) -> type[HostView]:
    class ToyView(HostView):
        name, models, loader = "toy", f"toy {owner.__name__}", ToyLoader()

        @classmethod
        def matches(cls, model: object) -> bool:
            return isinstance(model, owner)

    ToyView.__abstractmethods__ = frozenset()
    return ToyView


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_a_model_is_of_one_host_and_its_subclasses_too(host: Any) -> None:
    model = demo.build(host)
    assert [each.name for each in hosts() if each.matches(model)] == [host]
    model.__class__ = type("Mine", (type(model),), {})
    assert [each.name for each in hosts() if each.matches(model)] == [host]
    assert view_of(model).name == host


def test_nothing_is_asked_of_what_is_like_no_model() -> None:
    for thing in (None, "demo", nn.Linear(2, 2), SubclassOfNothing()):
        assert not any(each.matches(thing) or each.near_miss(thing) for each in hosts())


@pytest.mark.usefixtures("known")
def test_a_host_from_outside_joins_by_one_call() -> None:
    with pytest.raises(UnsupportedModelError, match="SubclassOfNothing is not a video model of SAM 2 or SAM 3"):
        view_of(SubclassOfNothing())
    register(toy(SubclassOfNothing))
    assert view_of(SubclassOfNothing()).name == "toy"
    with pytest.raises(UnsupportedModelError, match="or toy SubclassOfNothing"):
        view_of(nn.Linear(2, 2))


@pytest.mark.usefixtures("known")
def test_what_builds_models_needs_no_more_than_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match=r"'toy:a' is not a model: expected a Hub id, .*\+CHECKPOINT.pt, random"):
        load_model("toy:a")
    register(toy(SubclassOfNothing))
    for spec in ("toy:a", "demo", "random:tiny"):
        with pytest.raises(MissingLibraryError, match=r"the toy host needs click, .*pip install click-toy"):
            load_model(spec, "toy", "cpu")
    monkeypatch.setitem(sys.modules, "click.toy", sys)
    assert view_of(load_model("toy:a", device="cpu")).name == "toy"
    for spec in ("demo", "random:tiny"):
        ours, other = load_model(spec, "toy", "cpu"), load_model(spec, "sam2", "cpu")
        assert not any(each.requires_grad for each in ours.parameters())
        assert all(map(torch.equal, ours.state_dict().values(), other.state_dict().values()))
    assert loader_of() is loader_of("sam2"), "whoever joins does not become the default"
    with pytest.raises(ModelLoadError, match=r"not a model: expected a Hub id, .*, toy:NAME, random:SIZE or demo"):
        load_model("toi")
    with pytest.raises(
        ModelLoadError, match=r"host 'tyo' is not one of sam2, transformers, .*, toy \(did you mean 'toy'"
    ):
        load_model("demo", "tyo")
    with pytest.raises(ModelLoadError, match="vos=True needs host='sam2': toy has no VOS predictor"):
        load_model("random:tiny", "toy", vos=True)
    for name in ("sam2.sam2_video_predictor", "transformers.models.sam2_video", "click.toy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match=r"none of sam2, transformers, click can be imported.*click-toy"):
        load_model("demo")
    adapter = read_adapter(ROOT / "adapters" / "demo-fast")
    assert "With the toy:\n\n```python\nimport toy\n" in model_card(adapter.config, adapter.recipe, 1)
    assert {"sam2", "transformers", "click"} <= set(machine(torch.device("cpu"))["versions"])


def test_the_command_line_offers_every_host() -> None:
    """In a process of its own: options are made when the commands are imported."""
    code = (
        "import sys; from tests.hosts.test_registry import SubclassOfNothing, register, toy\n"
        "register(toy(SubclassOfNothing)); sys.modules['click.toy'] = sys\n"
        "from surgery.cli.main import main; main()"
    )

    def said(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    shown = said("track", "--help")
    assert (
        "--host [sam2|transformers|transformers_sam3|transformers_sam3_text|toy]" in shown
        and "toy:NAME, random:SIZE or demo" in shown
    )
    assert "sizes: sam2 where it is installed, else transformers where it is installed, else toy; of others" in shown
    assert "demo, sam2 host, 256 px" in said("inspect", "demo", "--host", "toy", "--device", "cpu")


def test_the_command_line_silences_every_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgery.cli.main import main

    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    logging.getLogger("sam2").setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CliRunner().invoke(main, ["recipes"]).exit_code == 0
        warnings.warn("cannot import name '_C' from 'sam2'", UserWarning, stacklevel=1)
    assert logging.getLogger("sam2").level == logging.ERROR
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"


@pytest.mark.usefixtures("known")
def test_two_hosts_of_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a near miss of the first is a model of the second."""
    from transformers import Sam2Config, Sam2Model

    model = Sam2Model(Sam2Config(vision_config=demo.build("transformers").config.vision_config))
    with pytest.raises(UnsupportedModelError, match="Sam2Model is for pictures"):
        view_of(model)
    register(toy(Sam2Model))
    assert view_of(model).name == "toy"


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_sizes_are_read_off_the_model(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 px: 16 x 16 tokens, masks of 64 px, seven memories of 64 channels."""
    view = view_of(demo.build(host))
    sizes = (view.image_size(), view.frame_tokens(), view.mask_side(), view.bank_size(), view.memory_channels())
    assert sizes == (256, 256, 64, 7, 64)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 320)
    view = view_of(demo.build(host))
    assert (view.frame_tokens(), view.mask_side()) == (400, 80)

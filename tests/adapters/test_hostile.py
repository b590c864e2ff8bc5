"""Generated hostile adapters: every one refused before the model is touched, nothing executed, memory bounded."""

from __future__ import annotations

import copy
import json
import math
import pickle
import resource
import shutil
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

import surgery
from surgery import AdapterError
from surgery.adapters import read_adapter
from surgery.adapters.record import CalibrationRecord, Fidelity
from tests.adapters.folders import CONFIG, PREFIX, RECIPE, WEIGHTS, untouched
from tests.hosts.drive import Driver

CASES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
RECORD = CalibrationRecord(
    fit="closed form", steps=0, fit_clips=("a",), fit_frames=10, held_out_clips=("b", "c"), held_out_frames=20,
    max_drop=0.01, max_clip_drop=0.05, kept=True, windows_kept=0.5, keys_kept=None,
    against_dense=Fidelity(
        reference="dense masks", drop=0.004, interval=(0.001, 0.007), worst_drop=0.01, worst_clip="c"
    ),
    against_truth=None, valid_range={"routing.score_gate": (3.0, 6.0)}, seed=0,
)  # fmt: skip

_watching = False
_seen: list[str] = []


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if _watching and event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect"):
        _seen.append(event)


sys.addaudithook(_audit)


@contextmanager
def executing_nothing() -> Iterator[None]:
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _seen


class Folder:
    """An intact adapter with one file replaced at a time."""

    def __init__(self, path: Path, driver: Driver) -> None:
        self.path, self.driver = path, driver
        self.intact = {name: (path / name).read_bytes() for name in (CONFIG, WEIGHTS, RECIPE)}
        self.config = json.loads(self.intact[CONFIG])

    def refuses(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)
        try:
            with executing_nothing(), pytest.raises(AdapterError) as caught:
                surgery.load_adapter(self.driver.model, self.path, force=True)
            assert len(str(caught.value)) < 5000, "the message itself is bounded"
        finally:
            (self.path / name).write_bytes(self.intact[name])

    def accepts(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)
        read_adapter(self.path)
        (self.path / name).write_bytes(self.intact[name])


@pytest.fixture(scope="module")
def hostile(saved: Path, stock: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    path = shutil.copytree(saved, tmp_path_factory.mktemp("hostile") / "adapter")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = Folder(Path(path), stock)
    with untouched(stock.model):
        yield folder
    read_adapter(folder.path)
    unit = 1024**2 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    assert grown < 400, f"{grown:.0f} MB more at the peak"


# ------------------------------------------------------------------------------------------------ safetensors, bytes


@CASES
@given(data=st.data())
def test_truncated_grown_and_overwritten_weights(hostile: Folder, data: st.DataObject) -> None:
    good = hostile.intact[WEIGHTS]
    length = struct.unpack("<Q", good[:8])[0]
    kind = data.draw(st.sampled_from(["cut", "grow", "length", "header", "random", "pickle"]))
    if kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "grow":
        bad = good + data.draw(st.binary(min_size=1, max_size=100))
    elif kind == "length":
        other = data.draw(st.integers(0, 2**64 - 1).filter(lambda value: abs(value - length) > 8))
        bad = struct.pack("<Q", other) + good[8:]
    elif kind == "header":
        start = data.draw(st.integers(8, 8 + length - 9))
        bad = good[:start] + data.draw(st.binary(min_size=8, max_size=8)) + good[start + 8 :]
        if bad == good or _same_header(bad, good):
            return
    elif kind == "random":
        bad = data.draw(st.binary(max_size=3000))
    else:
        bad = pickle.dumps({"a": [1, 2]}, protocol=data.draw(st.integers(0, 5))) + data.draw(st.binary(max_size=50))
    hostile.refuses(WEIGHTS, bad)


def _same_header(one: bytes, two: bytes) -> bool:
    try:
        left, right = (json.loads(text[8 : 8 + struct.unpack("<Q", text[:8])[0]]) for text in (one, two))
    except ValueError:
        return False
    left.pop("__metadata__", None), right.pop("__metadata__", None)
    return left == right


junk = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=30), st.just("../../etc/x"),
    st.lists(st.integers(-(2**65), 2**65), max_size=4), st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.just("1" * 300), st.just([[[[[]]]]]),
)  # fmt: skip


@CASES
@given(data=st.data())
def test_hostile_safetensors_headers(hostile: Folder, data: st.DataObject) -> None:
    good = hostile.intact[WEIGHTS]
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    original = copy.deepcopy(header)
    kind = data.draw(st.sampled_from(["entry", "field", "rename", "extra", "swap", "drop", "many"]))
    if kind == "entry":
        header[name] = data.draw(junk)
    elif kind == "field":
        header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(junk)
    elif kind == "rename":
        header[data.draw(st.sampled_from(["../" + name, "/etc/passwd", name + "\0", "", name.upper()]))] = header.pop(
            name
        )
    elif kind == "extra":
        header[data.draw(st.text(max_size=40).filter(lambda text: text not in header))] = header[name]
    elif kind == "swap":
        one = data.draw(st.sampled_from([key for key in header if key not in (name, "__metadata__")]))
        header[name]["data_offsets"] = header[one]["data_offsets"]
    elif kind == "drop":
        del header[name]
    else:
        header |= {f"{PREFIX}{number}": header[name] for number in range(data.draw(st.sampled_from([100, 3000])))}
    if header == original:
        return
    text = json.dumps(header).encode()
    hostile.refuses(WEIGHTS, struct.pack("<Q", len(text)) + text + good[8 + length :])


@CASES
@given(data=st.data())
def test_well_formed_tensors_of_the_wrong_kind(hostile: Folder, data: st.DataObject) -> None:
    import torch

    tensors = {name: value.clone() for name, value in load_file(hostile.path / WEIGHTS).items()}
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from(["dtype", "shape", "nan", "threshold"]))
    if kind == "dtype":
        wrong = [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
        if tensors[name].dim():
            wrong.append(torch.float64)
        tensors[name] = tensors[name].to(data.draw(st.sampled_from(wrong)))
    elif kind == "shape":
        shape = data.draw(
            st.lists(st.integers(0, 9), max_size=4).filter(lambda s: tuple(s) != tuple(tensors[name].shape))
        )
        tensors[name] = torch.ones(shape, dtype=tensors[name].dtype)
    elif kind == "nan":
        position = data.draw(st.integers(0, tensors[name].numel() - 1))
        tensors[name].view(-1)[position] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    else:
        name = f"thresholds.{data.draw(st.sampled_from(['saliency_mass', 'score_gate']))}"
        value = data.draw(st.floats().filter(lambda x: not math.isclose(x, float(tensors[name]), rel_tol=1e-5)))
        tensors[name] = torch.tensor(value, dtype=torch.float64)
    hostile.refuses(WEIGHTS, save(tensors))


# --------------------------------------------------------------------------------------------------- configuration


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from _leaves(inner, (*path, key))


def _put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


# Free text, and null where nothing is known, are not hostile.
_FREE = {
    ("library_version",),
    ("base_model", "id"),
    ("base_model", "revision"),
    ("base_model", "fingerprint", "sketch"),
}


@CASES
@given(data=st.data())
def test_any_field_of_the_configuration_replaced_by_junk(hostile: Folder, data: st.DataObject) -> None:
    config = copy.deepcopy(hostile.config)
    path = data.draw(st.sampled_from([one for one in _leaves(config) if one not in _FREE]))
    value = data.draw(junk)
    before = config
    for key in path:
        before = before[key]
    allowed_null = value is None and path[-1] not in ("bfloat16", "base_model", "thresholds") and _nullable(path)
    if allowed_null or (type(value) is type(before) and value == before):
        return
    _put(config, path, value)
    hostile.refuses(CONFIG, json.dumps(config).encode())


def _nullable(path: tuple[Any, ...]) -> bool:
    return path[0] in ("calibration", "provenance") or path[:2] == ("base_model", "fingerprint")


@CASES
@given(
    path=st.sampled_from([(), ("base_model",), ("base_model", "fingerprint"), ("thresholds",)]),
    key=st.text(max_size=20).filter(lambda key: key not in ("id", "revision")),
    value=junk,
)
def test_unknown_fields(hostile: Folder, path: tuple[str, ...], key: str, value: Any) -> None:
    config = copy.deepcopy(hostile.config)
    inner = config
    for part in path:
        inner = inner[part]
    if key not in inner:
        inner[key] = value
        hostile.refuses(CONFIG, json.dumps(config).encode())


@CASES
@given(data=st.data())
def test_a_calibration_record_with_nonsense(hostile: Folder, data: st.DataObject) -> None:
    record = json.loads(RECORD.model_dump_json())
    hostile.accepts(CONFIG, json.dumps(hostile.config | {"calibration": record}).encode())
    fidelity, number = (
        ("against_dense",),
        st.sampled_from([math.nan, math.inf, -math.inf, 1e999, "0.1", None, True, []]),
    )
    fields: dict[tuple[str, ...], Any] = {
        ("fit",): st.sampled_from(["magic", "", None, 3]),
        ("steps",): st.sampled_from([-1, 1.5, "3", None, True]),
        ("fit_clips",): st.sampled_from(["abc", [1], None, {"a": 1}]),
        ("held_out_frames",): st.sampled_from([-5, 0.5, None]),
        ("windows_kept",): st.sampled_from([-0.1, 1.1, math.nan, "half"]),
        ("keys_kept",): st.sampled_from([-1, 2, math.inf]),
        ("kept",): st.sampled_from([1, "yes", None]),
        ("max_drop",): number,
        ("max_clip_drop",): number,
        (*fidelity, "drop"): number | st.sampled_from([5.0, -3.0, 0.1]),
        (*fidelity, "worst_drop"): number | st.sampled_from([7.0, -2.0]),
        (*fidelity, "interval"): st.sampled_from([[0.1], [0.01, 0.001], [0.5, 0.6], "0..1", None, [math.nan, 1.0]]),
        (*fidelity, "reference"): st.sampled_from(["guess", None, 1]),
        (*fidelity, "worst_clip"): st.sampled_from([None, 1, ["a"]]),
        ("against_dense",): st.sampled_from([None, [], "none"]),
        ("valid_range",): st.sampled_from([{"a": [2.0, 1.0]}, {"a": [math.nan, 1.0]}, {"a": [1.0]}, [], None]),
        ("seed",): st.sampled_from([-1, 0.5, "0", None]),
        ("extra",): junk,
    }
    path = data.draw(st.sampled_from(sorted(fields)))
    _put(record, path, data.draw(fields[path]))
    hostile.refuses(CONFIG, json.dumps(hostile.config | {"calibration": record}).encode())


@pytest.mark.parametrize("size", [10, 1000, 400_000])
@pytest.mark.parametrize("opening", ["[", '{"a":', '{"schema_version":[', '{"base_model":{"fingerprint":'])
def test_json_bombs(opening: str, size: int, hostile: Folder) -> None:
    tracemalloc.start()
    hostile.refuses(CONFIG, (opening * (size // len(opening) + 1)).encode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


@pytest.mark.parametrize(
    "number", ["1" * 5000, "1" * 900_000, "-" + "9" * 4301, "1e999999", "0." + "0" * 900_000 + "1", "NaN", "Infinity"]
)
@pytest.mark.parametrize("field", ['"channels": 96', '"score_gate": 5.0'])
def test_huge_numbers(number: str, field: str, hostile: Folder) -> None:
    text = hostile.intact[CONFIG].decode()
    assert field in text
    hostile.refuses(CONFIG, text.replace(field, f"{field.split(':')[0]}: {number}").encode())


def test_half_a_million_keys(hostile: Folder) -> None:
    keys = ",".join(f'"{number}":0' for number in range(80_000))
    hostile.refuses(CONFIG, (hostile.intact[CONFIG].decode().rstrip()[:-1] + "," + keys + "}").encode())


# ---------------------------------------------------------------------------------------------------------- recipe

TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:subprocess.Popen [['touch', '{mark}']]",
    "!!python/object/apply:builtins.eval [\"open('{mark}', 'w')\"]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!<tag:yaml.org,2002:python/object/apply:os.remove> ['{mark}']",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!custom {a: 1}",
]


@CASES
@given(
    tag=st.sampled_from(TAGS), place=st.sampled_from(["{}", "schema: {}", "schema: 1\nmetadata: {}\noperations: []"])
)
def test_yaml_tags(hostile: Folder, tag: str, place: str) -> None:
    mark = hostile.path.parent / "executed"
    hostile.refuses(RECIPE, place.format(tag.replace("{mark}", str(mark))).encode())
    assert not mark.exists()


@CASES
@given(data=st.data())
def test_any_field_of_the_recipe_replaced_by_junk(hostile: Folder, data: st.DataObject) -> None:
    recipe = yaml.safe_load(hostile.intact[RECIPE])
    fields = [("operations", number, *path) for number in (0, 1) for path in _leaves(recipe["operations"][number])]
    path = data.draw(st.sampled_from([("schema",), ("metadata",), ("operations",), *fields]))
    value = data.draw(st.sampled_from([math.nan, "no", [], {}, -(10**30), 10**30, "../x", [[1]], "\udcff"[:0] + "é"]))
    # A section without a field is a valid one: all of them have defaults.
    assume(not (value == {} and path[-1] in ("shortcut", "refresh", "object", "skipped", "stages")))
    _put(recipe, path, value)
    hostile.refuses(RECIPE, yaml.safe_dump(recipe).encode())


@pytest.mark.parametrize(
    "text",
    [b"[" * 60_000, b"{a: " * 15_000, b"- " * 30_000, b"a: &a [*a]", b"\xff\xfe\x00", b"a" * 10**6,
     b"%YAML 9.9\n---\n1", b"? [1, [2]]\n: 3", b"'" * 9999, b"schema: 1\nschema: 1", b"&x " * 9999,
     b"!!float " * 999, b"\0"],
    ids=lambda text: repr(text[:10]),
)  # fmt: skip
def test_yaml_bombs(text: bytes, hostile: Folder) -> None:
    hostile.refuses(RECIPE, text)

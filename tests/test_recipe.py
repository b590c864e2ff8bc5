"""Recipes are data from strangers: every shipped one loads, every bad one is one clear `RecipeError`."""

from __future__ import annotations

import copy
import math
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery import Recipe, RecipeError, list_recipes
from surgery.core.operation import known
from surgery.operations import (
    ObjectSettings,
    SkippedSettings,
    SparseMemoryRetrieval,
    SparseWindowRouting,
    StageSettings,
)

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def plain(**operation: Any) -> dict[str, Any]:
    """A valid recipe whose routing operation has the fields `operation`."""
    operations = [{"type": "sparse_window_routing", **operation}, {"type": "sparse_memory_retrieval", "keep": 0.5}]
    return {"schema": 1, "metadata": {"name": "mine", "description": "A test."}, "operations": operations}


def text(operations: str) -> str:
    return f"schema: 1\nmetadata: {{name: mine, description: A test.}}\noperations: {operations}\n"


def refused(data: Any, *words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(data, "here.yaml")
    message = str(caught.value)
    assert message.startswith("here.yaml: ")
    assert all(word in message for word in words), message


# ------------------------------------------------------------------------------------------------ shipped recipes


def test_the_recipes_the_issue_asks_for_are_shipped() -> None:
    wanted = {
        "exact",
        "faithful",
        "balanced",
        "fast",
        "turbo",
        "cpu",
        "memory-only",
        "published-base-plus",
        "published-large",
    }
    assert wanted <= set(list_recipes()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_round_trips_and_bears_its_file_name(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.metadata.name == name
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.load(ROOT / "recipes" / f"{name}.yaml") == recipe
    assert Recipe.load(recipe) == recipe
    assert recipe.metadata.description == list_recipes()[name]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_is_in_the_docs(name: str) -> None:
    page = ROOT / "docs" / "recipes.md"
    if not page.is_file():
        pytest.skip(f"{page} is not written yet")
    assert f"`{name}`" in page.read_text(encoding="utf-8")


def test_published_recipes_hold_the_published_values_and_none_of_the_additions() -> None:
    for name in ("published-base-plus", "published-large"):
        recipe = Recipe.load(name)
        routing, retrieval = recipe.find(SparseWindowRouting), recipe.find(SparseMemoryRetrieval)
        assert routing is not None
        assert retrieval is not None
        assert routing.object.model_dump() == {
            "saliency_mass": 0.7, "score_gate": 5.0, "dilation": 5, "motion": 0.0, "candidates": "all",
            "max_wait": None, "background": 0.5, "unsure": None,
        }  # fmt: skip
        assert routing.skipped.model_dump() == {
            "temporal": False, "shortcut": {"type": "bottleneck"}, "padding": "published",
        }  # fmt: skip
        assert (routing.stages, routing.rolling, routing.round_to) == (StageSettings(), 0, 1)
        assert routing.refresh.model_dump() == {"start": True, "every": 0, "scene_cut": None, "lost": "never"}
        assert routing.budget == 1.0
        assert retrieval.model_dump(exclude={"type"}) == {
            "keep": 0.05, "keep_conditioning": 1.0, "saliency": "mean", "warm_up": True, "unsure": None,
            "query_stride": 1,
        }  # fmt: skip


number = st.floats(0.01, 1.0) | st.just(1)
routings = st.builds(
    SparseWindowRouting,
    windows=st.sampled_from(["object", "all"]),
    object=st.builds(
        ObjectSettings,
        saliency_mass=number,
        score_gate=st.floats(-1e9, 1e9) | st.floats(-1e-9, 1e-9),
        dilation=st.integers(0, 127).map(lambda half: 2 * half + 1),
        candidates=st.sampled_from(["all", "best"]),
    ),
    skipped=st.builds(SkippedSettings, temporal=st.booleans()),
    rolling=st.integers(0, 25),
    round_to=st.integers(1, 25),
)
retrievals = st.builds(SparseMemoryRetrieval, keep=number, query_stride=st.integers(1, 64))
shown = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
words, lines = st.text(shown, min_size=1, max_size=60), st.text(shown | st.just("\n"), min_size=1, max_size=60)


@few
@given(operations=st.permutations([0, 1]), routing=routings, retrieval=retrievals, name=words, description=lines)
def test_any_valid_recipe_survives_yaml(
    operations: list[int], routing: SparseWindowRouting, retrieval: SparseMemoryRetrieval, name: str, description: str
) -> None:
    chosen = [(routing, retrieval)[position] for position in operations]
    recipe = Recipe(metadata={"name": name, "description": description}, operations=chosen)
    again = Recipe.parse(recipe.to_yaml())
    assert again == recipe
    assert again.find(SparseWindowRouting) == routing


# ------------------------------------------------------------------------------------------------ refusals, by key


@pytest.mark.parametrize(
    ("where", "typo", "meant"),
    [
        ((), "metadat", "metadata"),
        (("metadata",), "descripton", "description"),
        (("operations", 0), "salience_mass", "object.saliency_mass"),
        (("operations", 0), "lost", "refresh.lost"),
        (("operations", 0), "stage", "stages"),
        (("operations", 0, "object"), "salience_mass", "saliency_mass"),
        (("operations", 0, "skipped"), "temporl", "temporal"),
        (("operations", 0, "refresh"), "scene_cuts", "scene_cut"),
        (("operations", 0, "shortcut"), "typ", "type"),
        (("operations", 1), "keeps", "keep"),
    ],
)
def test_unknown_key_names_where_it_is_and_the_nearest(where: tuple[Any, ...], typo: str, meant: str) -> None:
    data = plain(refresh={"every": 0}, shortcut={"type": "identity"}, object={}, skipped={})
    target: Any = data
    for step in where:
        target = target[step]
    target[typo] = 1
    refused(data, f"{typo}: unknown key (did you mean {meant!r}?)")


FIELDS = ("saliency_mass", "score_gate", "dilation", "rolling", "round_to", "refresh", "shortcut", "windows", "object")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "0.7", "1", True, False, None, [], [1], 10**400, 0.5j, b"1"], ids=str
)
def test_no_field_takes_what_is_not_its_type(field: str, value: Any) -> None:
    refused(plain(**{field: value}), f".{field}")
    group, _, name = SparseWindowRouting.moved.get(field, field).rpartition(".")
    refused(plain(**({group: {name: value}} if group else {field: value})), f"{group}.{name}")


@pytest.mark.parametrize("value", [0, 1, 1.0, "yes", "true", None])
def test_a_number_or_a_word_is_not_a_boolean(value: Any) -> None:
    refused(plain(skipped={"temporal": value}), ".skipped.temporal")


OUT_OF_RANGE = """
saliency_mass: 0 | saliency_mass: -0.1 | saliency_mass: 1.0001 | dilation: 0 | dilation: -5 | dilation: 257
dilation: 4 | dilation: 5.0 | rolling: -1 | rolling: 1.0 | rolling: 9000000 | round_to: 0 | round_to: 9000000
windows: some | candidates: worst | padding: zero | shortcut: {type: conv} | shortcut: {type: null} | type: x
refresh: {every: -1} | refresh: {every: true} | refresh: {every: 9000000} | refresh: {every: 2.0}
refresh: {scene_cut: 0} | refresh: {scene_cut: -1.0} | refresh: {scene_cut: .nan} | refresh: {scene_cut: .inf}
refresh: {scene_cut: true} | refresh: {scene_cut: "0.6"} | refresh: {lost: sometimes} | refresh: {lost: no}
keep: 0 | keep: 1.5 | keep: -0.05 | keep: .nan | keep: .inf | keep: true | keep: "5%" | keep: "0.05" | keep: null
query_stride: 0 | query_stride: 2.0 | query_stride: true | query_stride: 9000000
"""


@pytest.mark.parametrize("setting", OUT_OF_RANGE.strip().replace("\n", " | ").split(" | "))
def test_value_out_of_range_is_refused(setting: str) -> None:
    field = setting.split(":")[0]
    data = plain()
    data["operations"][1 if field in ("keep", "query_stride") else 0].update(yaml.safe_load(setting))
    refused(data, "type" if field == "type" else f".{field}")


def test_published_padding_refuses_the_temporal_shortcut() -> None:
    refused(plain(skipped={"padding": "published", "temporal": True}), "skipped: ", "temporal: false")
    refused(plain(saliency_mass=2, dilatoin=3), "saliency_mass", "did you mean 'object.dilation'")  # both are told


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stages": {"span": "tiles"}}, "span: tiles needs skipped.temporal: true"),
        ({"stages": {"stage4": "routed"}}, "stage4: routed needs skipped.temporal: true"),
        ({"budget": 0.5}, "budget: 0.5 needs skipped.temporal: true"),
        ({"stages": {"early": 0.5}}, "stages: early: 0.5 needs span: tiles"),
    ],
)
def test_what_a_setting_needs_is_told(fields: dict[str, Any], words: str) -> None:
    refused(plain(**fields), words)
    stages = {"span": "tiles", **fields.get("stages", {})}
    with_it = plain(**{**fields, "stages": stages, "skipped": {"temporal": True}})
    assert Recipe.from_dict(with_it).find(SparseWindowRouting) is not None


def test_extra_pieces_do_not_go_with_a_shortcut_over_windows() -> None:
    skipped = {"temporal": True, "shortcut": {"type": "attention"}}
    assert Recipe.from_dict(plain(stages={"span": "tiles"}, skipped=skipped)).approximate
    words = "early: 0.5 needs skipped.shortcut.type: bottleneck, ffn or identity"
    refused(plain(stages={"span": "tiles", "early": 0.5}, skipped=skipped), words)


RETRIEVAL = {"type": "sparse_memory_retrieval"}


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        *(("schema", value, "schema") for value in (2, 0, "1", True, 1.0, None, [1])),
        *(("metadata", value, "metadata") for value in (None, "x", [], {"name": "x", "description": ""})),
        *(("metadata", {"name": name, "description": "d"}, "name") for name in ("", 5, b"x", None, "\ud800", "a\n")),
        *(("metadata", {"name": "x", "description": f"a{char}b"}, "printable") for char in "\x1b\x85\u2028\r"),
        ("metadata", {"name": "x"}, "metadata.description: missing"),
        *(("operations", value, "non-empty list") for value in ([], (), None, "all", 3, RETRIEVAL)),
        *(("operations", [value], "operation 0") for value in (None, "x", [], {}, {"keep": 0.5})),
        ("operations", [{"type": None}], "unknown type"),
        ("operations", [RETRIEVAL, {"type": "sparse_window_rout"}], "1: unknown type 'sparse_window_rout' (did you"),
        ("operations", [RETRIEVAL, RETRIEVAL], "each operation type may appear once"),
        ("operations", [{**RETRIEVAL, 1: 2}], "Keys should be strings"),
        (7, 1, "Keys should be strings"),
    ],
)
def test_malformed_structure_is_refused(section: Any, value: Any, words: str) -> None:
    refused({**plain(), section: value}, words)


def test_missing_sections_and_what_is_not_a_mapping() -> None:
    refused({"schema": 1}, "metadata: missing", "operations: missing")
    for data in (None, [], "balanced", 3):
        refused(data, "expected a mapping")


def test_a_recipe_cannot_be_changed_in_place() -> None:
    recipe = Recipe.load("balanced")
    assert recipe.find(SparseWindowRouting) is not None
    with pytest.raises(ValueError, match="frozen"):
        recipe.find(SparseWindowRouting).object.dilation = 3


# ------------------------------------------------------------------------------------------------ hostile text


def test_python_tags_never_execute(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for tag in ("object/apply:os.system", "object/new:os.system"):
        value = f"!!python/{tag} ['touch {canary}']"
        for where in (value, text(f"[{value}]"), text(f"[{{type: sparse_memory_retrieval, keep: {value}}}]")):
            with pytest.raises(RecipeError, match="not valid YAML"):
                Recipe.parse(where)
        with pytest.raises(RecipeError, match="not a YAML value"):
            Recipe.load("balanced", [f"routing.score_gate={value}"])
    assert not canary.exists()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9)
)


@pytest.mark.parametrize("bomb", [BOMB, BOMB + "operations: *a8\n", text("&a [*a]"), text("[&a {}, {<<: *a}]")])
def test_aliases_are_refused_before_they_unfold(bomb: str) -> None:
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="alias"):
        Recipe.parse(bomb)
    assert time.perf_counter() - start < 2


def test_a_key_given_twice_is_refused() -> None:
    operation = "{type: sparse_memory_retrieval, keep: 1.0"
    assert Recipe.parse(text(f"[{operation}}}]")).find(SparseMemoryRetrieval) is not None
    for twice in (f"[{operation}, keep: 0.1}}]", f"[{operation}}}]\nschema: 1", f"[{operation}, 'keep': 0.1}}]"):
        with pytest.raises(RecipeError, match="twice"):
            Recipe.parse(text(twice))


def test_scientific_notation_is_a_number() -> None:
    """YAML 1.1 reads 5e-2 as a word; people who write recipes do not."""
    for written, value in (("5e-2", 0.05), ("1E-1", 0.1), ("5.0e-2", 0.05), ("1", 1.0)):
        recipe = Recipe.parse(text(f"[{{type: sparse_memory_retrieval, keep: {written}}}]"))
        assert recipe.find(SparseMemoryRetrieval) == SparseMemoryRetrieval(keep=value)
        overridden = Recipe.load("memory-only", [f"retrieval.keep={written}"])
        assert overridden.find(SparseMemoryRetrieval) == recipe.find(SparseMemoryRetrieval)
    named = Recipe(metadata={"name": "5e2", "description": "1E3"}, operations=[SparseMemoryRetrieval()])
    assert Recipe.parse(named.to_yaml()) == named, "and a word that looks like one is quoted"


BROKEN = """a: 2020-13-45 / a: 0x_ / !!bool x / !!timestamp x / !!int x / !!float x / !!binary x / !!set [1] / [1, 2 / =
*a / ? [a]: b / <<: 3 / a: !<x> y / --- 1 --- 2 / %TAG ! x / \x00 / \t- a / schema: 1: 2 / &a / - [}"""


@pytest.mark.parametrize("broken", ["", "a: " + "9" * 5000, *re.split(" / |\n", BROKEN)])
def test_broken_yaml_is_a_recipe_error(broken: str) -> None:
    with pytest.raises(RecipeError, match=r"^here: "):
        Recipe.parse(broken, "here")


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "[{a: "])
def test_deep_nesting_is_a_recipe_error(opening: str) -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        Recipe.parse(opening * 12_000)


def test_a_large_text_is_refused_unread(tmp_path: Path) -> None:
    large = text("[{type: sparse_memory_retrieval}]") + "# filler\n" * 200_000
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="larger than"):
        Recipe.parse(large)
    path = tmp_path / "large.yaml"
    path.write_text(large)
    with pytest.raises(RecipeError, match="larger than"):
        Recipe.load(path)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"schema: \xe9\n", b"\x80abc", b"\x1f\x8b\x08\x00"])
def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "binary.yml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"binary\.yml"):
        Recipe.load(path)


def test_paths_that_are_no_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere.yaml")
    for name in ("folder.yaml", "dangling.yaml", "none.yml", "a\0.yaml", "a" * 300 + ".yaml"):
        with pytest.raises(RecipeError, match=r"no recipe file|too long"):
            Recipe.load(tmp_path / name)
    for name in (tmp_path, "", ".", "/", "../recipes/exact", "a" * 5000, "exact.yam"):
        with pytest.raises(RecipeError, match="unknown recipe"):
            Recipe.load(name)
    with pytest.raises(RecipeError, match="did you mean 'balanced'"):
        Recipe.load("balancd")


PIECES = """schema: 1~|metadata: |{name: x, description: y}~|operations:~|- type: sparse_memory_retrieval~|  keep: |0.5~
&a |*a |!!int |!!bool |!!python/name:os.system |<<: |? |: |[|]|{|}|, |~|  |'|"|# |null|---~|2020-99-99"""
pieces = st.sampled_from([piece.replace("~", "\n") for piece in re.split(r"\||\n", PIECES)])


@settings(few, max_examples=200)
@given(st.lists(pieces, max_size=12).map("".join) | st.text(max_size=80) | st.binary(max_size=60))
def test_any_text_gives_a_recipe_or_a_recipe_error(content: Any) -> None:
    with suppress(RecipeError):
        assert isinstance(Recipe.parse(content), Recipe)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(list(known()))
keys = (
    st.sampled_from(["type", "keep", "refresh", "shortcut", "every", "skipped", "temporal"])
    | st.text(max_size=4)
    | st.integers()
)
trees = st.recursive(
    leaves | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(few, max_examples=150)
@given(st.sampled_from(["schema", "metadata", "operations", "operation", "extra"]), trees)
def test_any_data_gives_a_recipe_or_a_recipe_error(key: str, value: Any) -> None:
    data = plain()
    if key == "operation":
        data["operations"] = [value]
    else:
        data[key] = value
    before = copy.deepcopy(data)
    with suppress(RecipeError):
        assert isinstance(Recipe.from_dict(data), Recipe)
    assert repr(data) == repr(before), "the caller's data is not touched"


# ------------------------------------------------------------------------------------------------ overrides


def test_overrides_set_nested_fields_and_leave_the_original() -> None:
    before = Recipe.load("balanced")
    changes = ["routing.object.score_gate=3", "sparse_window_routing.refresh.scene_cut=null", "retrieval.keep=0.2"]
    after = before.with_overrides(
        [*changes, "routing.object.score_gate=-1.5", " routing.skipped.shortcut.type = identity"]
    )
    assert after.find(SparseWindowRouting) is not None
    assert before == Recipe.load("balanced")
    assert after.find(SparseWindowRouting).object.score_gate == -1.5
    assert after.find(SparseWindowRouting).refresh.scene_cut is None
    assert after.find(SparseWindowRouting).skipped.shortcut.type == "identity"
    assert before.find(SparseMemoryRetrieval) is not None
    assert after.find(SparseMemoryRetrieval) == before.find(SparseMemoryRetrieval).model_copy(update={"keep": 0.2})
    assert Recipe.load("balanced", []) == before == before.with_overrides(())
    assert before.with_overrides("routing.rolling=3") == before.with_overrides(["routing.rolling=3"])
    with pytest.raises(RecipeError, match=r"no operation 'routing'.*it has: retrieval"):
        Recipe.load("memory-only", ["routing.object.score_gate=3"])


OVERRIDES = """
routing -> expected; routing=3 -> expected; routing.score_gate -> expected; =3 -> expected; 3 -> expected
routing.score_gate= -> expected; routing.refresh.scene_cut=   -> expected; rooting.rolling=3 -> did you mean 'routing'
budget=0.3 -> did you mean 'routing.budget'?; bugdet=1 -> 'routing.budget'; refresh.every=2 -> 'routing.refresh.every'
metadata.name=x -> no operation 'metadata'; routing.score_gates=3 -> did you mean 'object.score_gate'
routing.refresh.evry=3 -> did you mean 'every'; routing.refresh=3 -> is a group; routing..rolling=3 -> no field ''
routing.type=x -> no field 'type'; routing.score_gate.x=3 -> 'score_gate' is a value; routing.dilation=4 -> odd
routing.score_gate='3' -> valid number; routing.score_gate=true -> valid number; routing.temporal=1 -> valid boolean
routing.score_gate=.nan -> finite; routing.score_gate=[ -> not a YAML value; routing.score_gate=!!bool x -> not a YAML
routing.score_gate=*a -> not a YAML value; routing.skipped=3 -> is a group; routing.object.score_gates=3 -> 'score_gate'
routing.skipped.temporal=1 -> .skipped.temporal: Input; routing.temporal=1 -> sparse_window_routing.temporal: Input
routing.shortcut=3 -> routing.skipped.shortcut.type; routing.lost=once -> did you mean 'refresh.lost'
score_gate=3 -> did you mean 'routing.object.score_gate'?"""
LINES = [" -> expected", *OVERRIDES.strip().replace("\n", "; ").split("; "), f"routing.rolling={'[' * 5000} -> not a"]


@pytest.mark.parametrize("line", LINES)
def test_bad_override_is_told_apart(line: str) -> None:
    override, words = line.split(" -> ")
    with pytest.raises(RecipeError, match=r"^override") as caught:
        Recipe.load("balanced", [override])
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


@few
@given(st.text(max_size=12), st.text(max_size=12))
def test_any_override_gives_a_recipe_or_a_recipe_error(key: str, value: str) -> None:
    recipe = Recipe.load("balanced")
    for override in (f"{key}={value}", f"routing.{key}={value}", f"routing.object.saliency_mass={value}", key):
        with suppress(RecipeError):
            assert isinstance(recipe.with_overrides([override]), Recipe)


def test_dumped_yaml_is_plain() -> None:
    """No tags and no aliases, so that any YAML reader reads what we write."""
    for name in NAMES:
        written = Recipe.load(name).to_yaml()
        assert "!!" not in written
        assert yaml.safe_load(written) == Recipe.load(name).to_dict()


def test_a_searched_value_may_clash_with_the_recipe_of_now_but_must_be_one_of_the_field() -> None:
    plain = ["routing.skipped.temporal=false", "routing.budget=1.0", "routing.fill=false"]
    plain.append("routing.stages.globals=packed")
    assert Recipe.load("balanced", plain).calibration == Recipe.load("balanced").calibration
    data = Recipe.load("balanced").to_dict()
    for search, words in (
        ({"routing.budget": [0.5, 1.5]}, "less than or equal to 1"),
        ({"routing.object.dilation": [4]}, "odd kernel size"),
        ({"routing.bugdet": [0.5]}, "did you mean 'budget'"),
        ({"retrieval.keep": []}, "non-empty list"),
        ({"queries.margin": [1]}, "no operation 'queries'"),
    ):
        with pytest.raises(RecipeError, match=words):
            Recipe.from_dict({**data, "calibration": {"search": search}})

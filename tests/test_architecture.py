"""Who may import whom, read from the source; and what a bare `import surgery` may load."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "surgery").rglob("*.py"))
MAX_LINES = 400
LIBRARIES = ("sam2", "transformers")  # of hosts
HOSTS = tuple(sorted(view.parent.name for view in (ROOT / "surgery" / "hosts").glob("*/view.py")))  # their folders
HOST_WORDS = {
    "add_inputs_to_inference_session", "add_new_frame", "add_new_mask", "add_new_points_or_box", "backbone_fpn",
    "backbone_stride", "cached_features", "cond_frame_outputs", "conv_s0", "conv_s1", "cross_attn_image",
    "forward_image", "fpn_hidden_states", "frames_tracked_per_obj", "get_image_features", "inference_session",
    "inference_state", "init_state", "mask_decoder_config", "maskmem_features", "maskmem_pos_enc",
    "max_obj_ptrs_in_encoder", "max_object_pointers_in_encoder", "mem_dim", "memory_temporal_stride_for_eval",
    "non_cond_frame_outputs", "num_maskmem", "obj_id_to_idx", "obj_idx_to_id", "obj_with_new_inputs",
    "output_dict", "output_dict_per_obj", "pred_masks", "processed_frames", "propagate_in_video",
    "propagate_in_video_iterator", "prompt_encoder_config", "sam_mask_decoder", "sam_prompt_encoder",
    "stage_ends", "vision_config", "vision_encoder",
}  # fmt: skip
"""Attributes, arguments and keys of hosts: outside of a host's folder `HostView` and `Driver` are asked instead."""
HOST_CLASS = re.compile(r"_?(Sam2|SAM2|Sam3|SAM3|EdgeTam)[A-Z]\w*")
ROOMS = ("core", "operations", "hosts")
"""Those that know nothing of `surgery` but core, errors and themselves, and an operation nothing of another one."""
BASE = ("torch", "numpy", "pydantic", "pydantic_core", "typing_extensions")
CHANGES = tuple(f"surgery.core.{name}" for name in ("patching.patch", "patching.unpatch", "engine.cut", "engine.undo"))
CHANGERS = ("core", "engine.py")
BESIDE = ("benchmarks", "tests")
HEAVY = {"torch", "torchvision", "transformers", "sam2", "huggingface_hub", "av", "matplotlib", "click"}


def imports(source: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, "now", "lazy" in a function or "types") of every import; `from a import b` yields `a.b`."""

    def visit(node: ast.AST, when: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.removesuffix(".py").split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", when) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, when
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            when = "lazy"
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            when = "types"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, when)

    yield from visit(ast.parse(source), "now")


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def may_know(path: str, name: str, when: str) -> bool:
    """Whether a file of one of the `ROOMS` may import `name`."""
    room, library = path.split("/")[1], name.split(".")[0]
    if library != "surgery":
        own = {"hosts": (*LIBRARIES, "hydra", "PIL"), "operations": ("torchao",)}.get(room, ())
        return library in sys.stdlib_module_names or library in (*BASE, *own)
    if room == "core" and when == "types" and name == "surgery.recipe.Recipe":
        return True  # what an operation is bound under has a name
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    # An operation is one file or one folder. A host may share modules with another one of its library.
    own = ".".join(parts[:3] if room == "operations" else parts[:2])
    return within(name, "surgery.core", "surgery.errors", "surgery.missing", own)


def knowledge(source: str) -> Iterator[str]:
    """What a file knows of hosts: their words, classes and names, and how their sizes follow from each other."""
    for node in ast.walk(ast.parse(source)):
        word = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "arg", None)
        word = node.value if isinstance(node, ast.Constant) else word
        if isinstance(word, str) and (
            word in HOST_WORDS or (HOST_CLASS.fullmatch(word) and not isinstance(node, ast.Constant))
        ):
            yield word
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
            asked = {getattr(each, "attr", getattr(each, "id", None)) for each in compared} & {"host", "name"}
            named = {each.value for each in compared if isinstance(each, ast.Constant)} & {*HOSTS}
            if asked and named:
                yield f"the host {named.pop()}"
        listed = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        if len({each.value for each in listed if isinstance(each, ast.Constant)} & {*HOSTS}) > 1:
            yield "hosts by name"
        left = getattr(node.left, "func", None) if isinstance(node, ast.BinOp) else None
        if left is not None and getattr(left, "attr", None) == "image_size":
            yield "a size made of the image's"


def violations(path: str, source: str) -> list[str]:
    """Broken rules of one file; `path` is relative to the repository, with forward slashes."""
    room = path.split("/")[1]
    of_host = room == "hosts" and path.count("/") == 3
    broken = []
    if not of_host:
        broken += [f"{path}: knows {word}; only the host's folder does" for word in knowledge(source)]
    libraries: set[str] = set()
    for name, when in imports(source, path):
        top = name.split(".")[0]
        if top in LIBRARIES:
            libraries.add(top)
            if not of_host:
                broken.append(f"{path}: only the folder of a host imports {top}")
        if name.startswith(tuple(f"surgery.hosts.{host}." for host in HOSTS)) and not of_host:
            broken.append(f"{path}: asks surgery.hosts for a view, and does not import {name}")
        if room in ROOMS and not may_know(path, name, when):
            broken.append(f"{path}: {room} knows core and what is its own, not {name}")
        if room not in CHANGERS and name in CHANGES:
            broken.append(f"{path}: only core's engine changes a model, asked by surgery.engine; not by {name}")
        if room == "recipe.py" and name.startswith("surgery.operations."):
            broken.append(f"{path}: a recipe knows no operation by name, {name} is one")
        if room != "cli" and within(name, "surgery.cli"):
            broken.append(f"{path}: nothing imports surgery.cli")
        if top in BESIDE:
            broken.append(f"{path}: {name} is no part of the installed package")
    if of_host and len(libraries) > 1:
        broken.append(f"{path}: a host is of one library, not of {', '.join(sorted(libraries))}")
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        broken.append(f"{path}: {lines} lines, {MAX_LINES} are allowed")
    return broken


def circles(sources: dict[str, str]) -> list[tuple[str, ...]]:
    """Modules that import each other, by way of others too; imports inside functions count, those for types do not."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        names = [name for name, _ in imports(ast.unparse(tree), module.replace(".", "/") + ".py")]
        found = {name if name in sources else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if name in sources and name != module}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph[module]
        return seen

    everything = {module: reached(module) for module in graph}
    return sorted({tuple(sorted(other for other in found if module in everything[other]))
                   for module, found in everything.items() if module in found})  # fmt: skip


def test_no_imports_in_a_circle() -> None:
    names = {file: file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in FILES}
    sources = {name.removesuffix(".__init__"): file.read_text(encoding="utf-8") for file, name in names.items()}
    assert not circles(sources)
    lazy = {"surgery.a": "def f():\n    from surgery.b import x", "surgery.b": "from surgery import a"}
    assert circles(lazy) == [("surgery.a", "surgery.b")]
    typed = {"surgery.a": "if TYPE_CHECKING:\n    from surgery.b import x", "surgery.b": "from surgery import a"}
    assert not circles(typed)


def test_every_file_keeps_the_rules() -> None:
    assert FILES, "no source found"
    broken = [
        line
        for file in FILES
        for line in violations(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not broken, "\n".join(dict.fromkeys(broken))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("surgery/api.py", "import sam2.build_sam"),
        ("surgery/api.py", "def f():\n    from transformers import Sam2VideoModel"),
        ("surgery/api.py", "from importlib import import_module\nimport_module('sam2')"),
        ("surgery/core/host.py", "import transformers"),
        ("surgery/hosts/sam2.py", "import sam2"),
        ("surgery/hosts/sam2/view.py", "import sam2\nimport transformers"),
        ("surgery/demo/model.py", "from sam2.build_sam import build_sam2_video_predictor"),
        ("surgery/demo/model.py", "class A:\n    import transformers"),
        ("surgery/core/session.py", "from surgery.operations.compile import CompileParts"),
        ("surgery/core/session.py", "def f():\n    from surgery.hosts import view_of"),
        ("surgery/core/session.py", "from surgery.recipe import Recipe"),
        ("surgery/core/session.py", "if TYPE_CHECKING:\n    from surgery.hosts.sam2.view import Sam2View"),
        ("surgery/core/session.py", "def f():\n    import yaml"),
        ("surgery/core/session.py", "import surgery"),
        ("surgery/operations/window_routing/span.py", "from surgery.recipe import Recipe"),
        ("surgery/operations/window_routing/span.py", "from ...recipe import Recipe"),
        ("surgery/operations/window_routing/span.py", "from surgery import recipe"),
        ("surgery/operations/window_routing/span.py", "from surgery.operations.memory_retrieval import bank"),
        ("surgery/operations/window_routing/span.py", "from surgery.operations import Precision"),
        ("surgery/operations/precision.py", "if TYPE_CHECKING:\n    from surgery.operations import compile"),
        ("surgery/operations/precision.py", "from surgery.hosts import view_of"),
        ("surgery/operations/precision.py", "from surgery.core.patching import unpatch"),
        ("surgery/hosts/sam2/root.py", "from surgery.operations.window_routing.blocks import Stages12Block"),
        ("surgery/hosts/sam2/root.py", "def f():\n    from surgery.engine import current_surgery"),
        ("surgery/hosts/sam2/root.py", "from surgery.core.patching import patch"),
        ("surgery/bench/pair.py", "from surgery.core.engine import cut"),
        ("surgery/recipe.py", "from surgery.operations.precision import Precision"),
        ("surgery/video/frames.py", "from surgery.cli.main import main"),
        ("surgery/report/build.py", "from surgery.hosts.sam2 import view"),
        ("surgery/bench/timing.py", "import surgery.hosts.transformers.driver"),
        ("surgery/hosts/__init__.py", "from surgery.hosts.sam2.view import Sam2View"),
        ("surgery/bench/modules.py", "def f(model):\n    return model.sam_mask_decoder"),
        ("surgery/bench/modules.py", "def f(model):\n    return getattr(model, 'sam_prompt_encoder')"),
        ("surgery/warm.py", "def f(view):\n    return view.model.num_maskmem"),
        ("surgery/api.py", "def f(inference_state):\n    pass"),
        ("surgery/api.py", "def f(model):\n    return isinstance(model, Sam2VideoModel)"),
        ("surgery/engine.py", "def f(view):\n    return view.image_size() // 4"),
        ("surgery/bench/pair.py", "def f(view):\n    return view.name == 'sam2'"),
        ("surgery/tracking.py", "RUNS = {'sam2': 1, 'transformers': 2}"),
        ("surgery/cli/common.py", "HOSTS = click.Choice(['sam2', 'transformers'])"),
        ("surgery/bench/machine.py", "PACKAGES = ('torch', 'transformers', 'sam2', 'numpy')"),
        ("surgery/loading.py", "def f():\n    import transformers"),
        ("surgery/demo/model.py", "def f():\n    from surgery.hosts.sam2.loader import Sam2Loader"),
        ("surgery/demo/model.py", "def f():\n    from benchmarks.training import train"),
        ("surgery/errors.py", "x = 1\n" * (MAX_LINES + 1)),
    ],
)
def test_the_checker_sees_what_is_forbidden(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("surgery/hosts/sam2/root.py", "from sam2.modeling.sam2_base import SAM2Base"),
        ("surgery/hosts/transformers/view.py", "from transformers import Sam2VideoModel\nfrom .. import register"),
        ("surgery/hosts/sam3/view.py", "import transformers\nfrom surgery.hosts.transformers.modules import A"),
        ("surgery/bench/settings.py", "def f(protocol):\n    return protocol == 'sam2'"),
        (
            "surgery/core/engine.py",
            "import math\nimport torch\nfrom surgery.errors import X\nfrom . import patching",
        ),
        ("surgery/core/engine.py", "if TYPE_CHECKING:\n    from surgery.recipe import Recipe"),
        ("surgery/operations/__init__.py", "from surgery.operations.precision import Precision"),
        ("surgery/operations/window_routing/span.py", "from surgery.core import host\nfrom . import router"),
        ("surgery/operations/precision.py", "import torch\nfrom pydantic import Field\nfrom surgery.core import parts"),
        ("surgery/hosts/sam2/root.py", "from surgery.core.patching import Patched\nfrom .session import Sam2Session"),
        ("surgery/recipe.py", "import surgery.operations"),
        ("surgery/engine.py", "from surgery.core.engine import cut"),
        ("surgery/cli/track.py", "from surgery.cli.main import main\nfrom ..api import sparsify"),
    ],
)
def test_the_checker_lets_pass_what_is_allowed(path: str, source: str) -> None:
    assert not violations(path, source)


def test_a_host_is_of_one_library() -> None:
    assert {*HOSTS} >= {"sam2", "transformers"}
    for host in HOSTS:
        sources = [file.read_text(encoding="utf-8") for file in (ROOT / "surgery" / "hosts" / host).glob("*.py")]
        names = [name for source in sources for name, _ in imports(source, "")]
        shared = [name.removeprefix("surgery.hosts.") for name in names if name.startswith("surgery.hosts.")]
        found = {name.split(".")[0] for name in (*names, *shared)}
        assert len(found & {*LIBRARIES}) == 1, host


def _in_a_fresh_process(code: str) -> set[str]:
    """Top-level modules that `code` loads in a new interpreter, and "CUDA context" if one was made."""
    code += (
        "\nimport json, sys\nloaded = {name.split('.')[0] for name in sys.modules}"
        "\ntorch = sys.modules.get('torch')"
        "\nif torch is not None and torch.cuda.is_initialized(): loaded.add('CUDA context')"
        "\nprint(json.dumps(sorted(loaded)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_surgery_is_lean() -> None:
    found = _in_a_fresh_process("import surgery") & HEAVY
    assert not found


def test_the_public_names_load_no_host_library_and_no_cuda() -> None:
    code = "import surgery\nfor name in getattr(surgery, '__all__', ()): getattr(surgery, name)"
    found = _in_a_fresh_process(code) & {*LIBRARIES, "click", "matplotlib", "CUDA context"}
    assert not found

"""The shortcut checkpoints that Efficient-SAM2 was released with, as adapters.

They are pickles: `bypass_bottleneck_{base,large}.pth`, an ordered dictionary of six fp32 tensors.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.adapters.config import AdapterConfig, BaseModelInfo, Provenance, require_small, thresholds_of
from surgery.adapters.files import Adapter
from surgery.adapters.fingerprint import fingerprint
from surgery.adapters.folder import require_replaceable, write_folder
from surgery.adapters.tensors import shapes_of
from surgery.adapters.warned import UnprovenBaseWarning
from surgery.core.host import finite
from surgery.errors import AdapterError
from surgery.hosts import view_of
from surgery.hosts.sam21 import HUB, SIZES, Sam21
from surgery.operations import SparseWindowRouting
from surgery.operations.window_routing.geometry import span_of
from surgery.operations.window_routing.shortcut import SHORTCUTS
from surgery.recipe import Recipe

_MAX_BYTES = 8_000_000
_PROJECT = "github.com/jingjing0419/Efficient-SAM2, bypass/ckpt"


@dataclass(frozen=True)
class _Release:
    """The model a released shortcut was trained for. file: its name in the project; sha256: of that file."""

    size: Sam21
    file: str
    sha256: str


_RELEASES = (
    _Release(
        SIZES["base-plus"],
        "bypass_bottleneck_base.pth",
        "5e415e3d207f09ffe94216b1472a83518de5c54425ab55bdef8f331761af1c65",
    ),
    _Release(
        SIZES["large"],
        "bypass_bottleneck_large.pth",
        "fa2a22b31979bf840786cf82ce8c3fda9780d35c00b3763afafe1e6014e09c06",
    ),
)


def import_published(checkpoint: str | Path, out: str | Path, *, model: Any = None) -> Adapter:
    """Turn a released Efficient-SAM2 shortcut into an adapter with the matching `published-*` recipe.

    Args:
        checkpoint: `bypass_bottleneck_base.pth` (202,272 parameters) or `bypass_bottleneck_large.pth` (333,792);
            which one is told from the shapes.
        out: adapter folder to write: absent, empty or an older adapter.
        model: the base model in any host, to record its fingerprint. Without it the fingerprint stays unrecorded,
            and every load warns that the base could not be compared.

    Returns:
        The adapter that was written.

    Raises:
        AdapterError: not such a checkpoint, or `out` cannot be written.
        AdapterMismatchError: `model` has another structure than the checkpoint's base.
        UnsupportedModelError: `model` is not a SAM 2 video model.

    Warns:
        UnprovenBaseWarning: no model was given, so no fingerprint is recorded.
    """
    from surgery import __version__

    path, target = Path(checkpoint), Path(out)
    require_replaceable(target)
    require_small(path, _MAX_BYTES, "a released shortcut, which is about 1 MB")
    content = path.read_bytes()
    tensors = _tensors(path, content)
    release = _release(path, tensors)
    size, base = release.size, f"{HUB}{release.size.name}"
    recipe = Recipe.load(f"published-{size.name}")
    routing = recipe.find(SparseWindowRouting)
    assert routing is not None
    digest = hashlib.sha256(content).hexdigest()
    config = AdapterConfig(
        library_version=__version__,
        base_model=BaseModelInfo(id=base, fingerprint=None),
        # From behind the block that pools for stage 3, to the last global one.
        entry_block=sum(size.blocks[:2]) + 1,
        exit_block=size.global_blocks[-1],
        channels=size.widths[2],
        window=size.windows[2],
        shortcut=routing.skipped.shortcut.type,
        thresholds=thresholds_of(routing),
        provenance=Provenance(origin=_origin(release, digest), sha256=digest),
    )
    adapter = Adapter(source=str(target), config=config, recipe=recipe, tensors=tensors)
    if model is not None:
        view = view_of(model)
        adapter.match(view)
        config.base_model.fingerprint = fingerprint(view, span_of(view))
    else:
        warnings.warn(
            f"{target}: no model was given, so no fingerprint of {base} is recorded and loading cannot check "
            "that it is loaded on that base",
            UnprovenBaseWarning,
            stacklevel=2,
        )
    write_folder(target, adapter.files())
    return adapter


def _origin(release: _Release, digest: str) -> str:
    """The project's file when it is that file; a retrained one of the same form is not given its name."""
    if digest == release.sha256:
        return f"{_PROJECT}/{release.file}"
    return f"a checkpoint in the form of {release.file}, but not the released file"


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        # Not the older format, whose restricted unpickler had holes before torch 2.6.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise AdapterError(f"{path}: unpacks to more than a released shortcut holds")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise AdapterError(f"{path}: not a torch checkpoint in the zip format: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, OSError) as error:
        raise AdapterError(f"{path}: not readable as plain tensors; nothing was executed: {error!s:.300}") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise AdapterError(f"{path}: holds a {type(state).__name__}, expected a dictionary of tensors by name")
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.layout != torch.strided:
            kind = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise AdapterError(f"{path}: {name!r:.80} is a {kind}, expected a dense float32 tensor")
        if not finite(value):
            raise AdapterError(f"{path}: {name!r:.80} has values that are not finite")
    return {name: value.detach().clone().contiguous() for name, value in sorted(state.items())}


def _release(path: Path, tensors: dict[str, Tensor]) -> _Release:
    found = shapes_of(tensors)
    for release in _RELEASES:
        with torch.device("meta"):
            wanted = SHORTCUTS["bottleneck"](release.size.widths[2]).state_dict()
        if found == shapes_of(wanted):
            return release
    known = " or ".join(f"{release.size.widths[2]} ({release.file})" for release in _RELEASES)
    shown = ", ".join(f"{name} {shape}" for name, shape in list(found.items())[:8])
    raise AdapterError(
        f"{path}: holds {shown or 'nothing'}; expected norm, down_project and up_project of a bottleneck of width "
        f"{known}"
    )

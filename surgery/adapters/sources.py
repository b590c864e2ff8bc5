"""Adapters by name: a folder or a Hub id, read, and put on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from surgery.adapters.files import AnyAdapter, read_adapter
from surgery.adapters.hub import download, is_repo_id, safe_subfolder
from surgery.engine import apply
from surgery.errors import AdapterError
from surgery.recipe import Recipe

M = TypeVar("M")


def load_adapter(
    model: M,
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    recipe: str | Path | Recipe | None = None,
    force: bool = False,
) -> M:
    """Put `model` under the surgery an adapter describes; the same as `sparsify(model, recipe, adapter=...)`.

    Args:
        model: see `sparsify`.
        path: adapter folder, or a Hub id. A `Path` is always a folder; so is a string that exists as a path. Any other
            string of the form "user/name" is a Hub id; write "./user/name" to mean a folder that may be missing.
        revision: branch, tag or commit on the Hub; default: the default branch. Refused for a local folder.
        token: Hub access token; default: HF_TOKEN or the one stored by `hf auth login`; False: none.
        cache_dir: where downloads are kept; default: the Hub client's.
        local_files_only: use what has been downloaded before, without network.
        subfolder: folder inside the repository (or inside `path`) that holds the adapter.
        recipe: use this recipe with the adapter's shortcut; default is the adapter's own.
        force: accept an adapter fitted on other weights of the same structure.

    Raises:
        HubError: the Hub could not be reached, refused, or has no such repository, revision or adapter.
        AdapterError, AdapterMismatchError and whatever `sparsify` raises. After any of these the model is as it was.

    Warns:
        RoundedBaseWarning, UnprovenBaseWarning: see `Adapter.check`.
    """
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    adapter = open_adapter(path, revision=revision, subfolder=subfolder, **hub)
    chosen = Recipe.load(recipe) if recipe is not None else adapter.recipe
    return apply(model, chosen, adapter, force)


def open_adapter(
    path: str | Path, *, revision: str | None = None, subfolder: str | None = None, **hub: Any
) -> AnyAdapter:
    """Read an adapter from a folder or the Hub; arguments and errors as in `load_adapter`."""
    inside = safe_subfolder(subfolder)
    if is_repo_id(path):
        return read_adapter(*download(str(path), revision=revision, subfolder=inside, **hub))
    if revision is not None:
        raise AdapterError(
            f"revision {revision!r:.80} was given, but {str(path)!r:.200} is a local folder, or no Hub id (user/name)"
        )
    return read_adapter(Path(path, inside) if inside else path)

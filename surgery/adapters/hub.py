"""Adapters on the Hugging Face Hub: one commit up, four known files down, every failure a `HubError`."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from surgery.adapters.config import CARD, CONFIG, FILES, RECIPE, WEIGHTS, read_json
from surgery.adapters.files import AnyAdapter, read_adapter, saved_of
from surgery.adapters.folder import require_replaceable, write_folder
from surgery.errors import AdapterError, HubError, SurgeryError

_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


_HINTS = {
    401: "not authorised (401): no such repository, or it is private; pass token=, set HF_TOKEN or log in. ",
    403: "forbidden (403): the token lacks this permission. ",
    404: "no such repository, revision or file (404), or it is private. ",
    412: "somebody else changed the repository meanwhile (412); look at what is there and push again. ",
    429: "too many requests (429): wait some minutes. ",
}


class CardKeptWarning(UserWarning):
    """The repository already had a README.md, which was left as it is."""


@dataclass(frozen=True)
class Pushed:
    """Where an adapter went. commit: 40 hex digits; the one already there when nothing had changed. pr_url: of the pull
    request, or None. card_kept: an existing README.md was not overwritten.
    """

    repo_id: str
    revision: str
    commit: str
    url: str
    pr_url: str | None
    card_kept: bool


def is_repo_id(path: str | Path) -> bool:
    """Whether `path` means a Hub repository: a string "user/name" that does not exist as a local path."""
    return isinstance(path, str) and _ID.fullmatch(path) is not None and not os.path.lexists(path)


def safe_subfolder(subfolder: str | None) -> str | None:
    """`subfolder` itself, None for none. Raises AdapterError when it would leave the repository."""
    if not subfolder or subfolder == ".":
        return None
    parts = PurePosixPath(subfolder).parts
    if ".." in parts or subfolder.startswith("/") or re.search(r"[\\:\x00-\x1f]", subfolder):
        raise AdapterError(
            f"subfolder {subfolder!r:.200}: expected a relative path inside the repository, such as 'large'"
        )
    return "/".join(parts)


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
) -> tuple[Path, str]:
    """The folder of an adapter in the client's cache and what it calls itself; arguments and errors as `load_adapter`.

    All files are of the one commit that `revision` names when the call begins.
    """
    _require_id(repo_id)
    from huggingface_hub import snapshot_download

    inside = f"{subfolder}/" if subfolder else ""
    with in_words("load", repo_id, revision):
        root = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=[inside + name for name in FILES],
                endpoint=_endpoint(),
            )
        )
    commit = root.name[:12]
    absent = [name for name in (CONFIG, RECIPE, WEIGHTS) if not (root / inside / name).is_file()]
    if absent:
        raise HubError(f"{repo_id}@{commit} has no {inside}{absent[0]}: not an adapter of surgery")
    return root / inside, f"{repo_id}@{commit}" + (f"/{subfolder}" if subfolder else "")


def pull_adapter(repo_id: str, out: str | Path, *, subfolder: str | None = None, **how: Any) -> AnyAdapter:
    """Download an adapter, validate it and put its files, byte for byte, into the folder `out`.

    Args:
        repo_id: "user/name". out: absent, empty or an older adapter, which is replaced in one step.
        how: revision, token, cache_dir, local_files_only, as in `load_adapter`.

    Raises:
        HubError, AdapterError; `out` is then as it was.
    """
    target = Path(out)
    require_replaceable(target)
    folder, source = download(repo_id, subfolder=safe_subfolder(subfolder), **how)
    adapter = read_adapter(folder, source)
    write_folder(target, _own_files(folder))
    return adapter


def push_adapter(
    model: Any,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Upload an adapter to the Hub in one commit; the repository and the branch are made when absent.

    Args:
        model: a model under surgery, or the path of an adapter folder (no model is needed then).
        repo_id: "user/name".
        revision: branch to push to; default: the default branch.
        private: visibility of a new repository; default: the account's setting. True is refused for an existing
            public one.
        token: Hub access token with write permission; default: HF_TOKEN or the one stored by `hf auth login`.
        create_pr: open a pull request against the default branch instead of committing to it.
        commit_message: default: "Upload adapter with surgery <version>".
        overwrite_card: replace an existing README.md; by default it is kept and a `CardKeptWarning` says so.

    Returns:
        Where it went.

    Raises:
        HubError: not reachable, not permitted, not a Hub id, changed by somebody else during the push, offline mode, or
            a repository that holds another library's adapter.
        AdapterError, ModelStateError, WeightsError: nothing valid to push; the Hub is not contacted.
    """
    from surgery import __version__

    _require_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise HubError(f"a pull request goes to the default branch; revision {revision!r:.80} cannot be given with it")
    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise HubError(f"revision {revision} is a commit, which cannot change; give a branch")
    files = _files_to_push(model, repo_id)
    from huggingface_hub import CommitOperationAdd, HfApi

    with in_words("push to", repo_id, revision):
        api = HfApi(endpoint=_endpoint(), token=token, library_name="surgery", library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and api.repo_info(repo_id).private is False:
            raise HubError(f"{repo_id} exists and is public, private=True was asked: make it private on the Hub first")
        if revision is not None:
            if revision in {tag.name for tag in api.list_repo_refs(repo_id).tags}:
                raise HubError(f"revision {revision!r:.80} of {repo_id} is a tag, which cannot change; give a branch")
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = str(api.repo_info(repo_id, revision=revision).sha)
        present = set(api.list_repo_files(repo_id, revision=head))
        if CONFIG in present:
            _require_ours(repo_id, api.hf_hub_download(repo_id, CONFIG, revision=head))
        kept = CARD in present and not overwrite_card
        if kept:
            del files[CARD]
        done = api.create_commit(
            repo_id,
            operations=[CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=commit_message or f"Upload adapter with surgery {__version__}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    if kept:
        warnings.warn(
            f"{repo_id} already has a README.md; it was kept, and may describe an older adapter. "
            "overwrite_card=True replaces it",
            CardKeptWarning,
            stacklevel=2,
        )
    return Pushed(repo_id, revision or "main", done.oid, done.commit_url, done.pr_url, kept)


def _files_to_push(model: Any, repo_id: str) -> dict[str, bytes]:
    """The four files. A card that somebody wrote goes up as it is; one of ours gets the repository's name."""
    if not isinstance(model, (str, os.PathLike)):
        return saved_of(model).files(repo_id)
    folder = Path(model)
    adapter, files = read_adapter(folder), _own_files(folder)
    ours = adapter.files()[CARD]
    if files.get(CARD, ours) == ours:
        files[CARD] = adapter.files(repo_id)[CARD]
    return files


def _own_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def _require_ours(repo_id: str, config: str) -> None:
    try:
        library = dict(read_json(Path(config))).get("library")
    except (AdapterError, TypeError, ValueError) as error:
        raise HubError(f"{repo_id} has an {CONFIG} that is not one of surgery's; choose another repository") from error
    if library != "surgery":
        raise HubError(
            f"{repo_id} holds another library's adapter ({CONFIG}: library {library!r:.40}); choose another repository"
        )


def _require_id(repo_id: str) -> None:
    if not isinstance(repo_id, str) or _ID.fullmatch(repo_id) is None:
        raise HubError(f"{repo_id!r:.200} is not a Hub id; expected user/name")


def _endpoint() -> str | None:
    """HF_ENDPOINT as it is now; None for the Hub client's own."""
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


@contextmanager
def in_words(task: str, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Whatever the Hub client raises becomes a HubError that says what failed, on which repository, and its words."""
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:  # the client's own errors, its HTTP library's (which has changed) and OSError
        at = repo_id + (f" at revision {revision!r:.80}" if revision else "")
        raise HubError(f"cannot {task} {at}: {_hint(error)}{' '.join(str(error).split())}") from error


def _hint(error: BaseException | None) -> str:
    """What to do about the status that the Hub answered, said first."""
    while error is not None and getattr(error, "response", None) is None:
        error = error.__cause__ or error.__context__
    return _HINTS.get(getattr(getattr(error, "response", None), "status_code", 0), "")

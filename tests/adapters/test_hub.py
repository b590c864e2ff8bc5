"""Push and load through the real Hub client and a Hub on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

import surgery
from surgery import AdapterError, HubError
from surgery.adapters import CardKeptWarning, open_adapter, pull_adapter, push_adapter, read_adapter
from tests.adapters.folders import CARD, CONFIG, FILES, RECIPE, WEIGHTS, content, edit_config, fitted, untouched
from tests.adapters.hub_server import READER, TOKEN, Fault, Hub, serving
from tests.hosts.drive import Driver, make

NAME = "ann/fox"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's waits between its retries
        yield running
        assert not running.leaked, "the token reached the storage host"


@pytest.fixture
def published(hub: Hub, saved: Path) -> Hub:
    hub.create(NAME, **content(saved))
    return hub


# ---------------------------------------------------------------------------------------------------------- push


@pytest.mark.parametrize("large", [True, False], ids=["lfs", "regular"])
def test_a_model_goes_up_in_one_commit_and_comes_back_bit_for_bit(large: bool, hub: Hub, saved: Path) -> None:
    hub.large = large
    driver = fitted("sam2")
    done = push_adapter(driver.model, NAME, token=TOKEN, private=True, commit_message="first")
    head = hub.head(NAME)
    assert (done.commit, done.revision, done.pr_url, done.card_kept) == (head.sha, "main", None, False)
    assert hub.repos[NAME].private
    assert (head.message, len(hub.repos[NAME].commits)) == ("first", 2), "one commit after the initial one"
    assert set(head.files) == FILES | {".gitattributes"}
    assert {name: head.files[name] for name in FILES - {CARD}} == {
        name: data for name, data in content(saved).items() if name != CARD
    }
    assert f'"{NAME}")' in head.files[CARD].decode(), "the card's example loads from this repository"
    again = make("transformers")
    surgery.load_adapter(again.model, NAME, token=TOKEN)
    assert surgery.status(again.model).adapter == f"{NAME}@{done.commit[:12]}"
    loaded = open_adapter(NAME, token=TOKEN)
    assert all(torch.equal(loaded.tensors[key], value) for key, value in read_adapter(saved).tensors.items())


def test_a_folder_goes_up_without_a_model_and_an_unchanged_one_makes_no_commit(hub: Hub, saved: Path) -> None:
    first = push_adapter(saved, NAME, token=TOKEN)
    with pytest.warns(CardKeptWarning):
        second = push_adapter(str(saved), NAME, token=TOKEN)
    assert first.commit == second.commit == hub.head(NAME).sha
    assert len(hub.repos[NAME].commits) == 2


def test_a_card_that_is_there_is_kept_unless_asked_and_the_caller_told(hub: Hub, saved: Path) -> None:
    hub.create(NAME, **{CARD: b"# mine"})
    with pytest.warns(CardKeptWarning, match="overwrite_card=True"):
        assert push_adapter(saved, NAME, token=TOKEN).card_kept
    assert hub.head(NAME).files[CARD] == b"# mine"
    with warnings.catch_warnings():
        warnings.simplefilter("error", CardKeptWarning)
        assert not push_adapter(saved, NAME, token=TOKEN, overwrite_card=True).card_kept
    assert hub.head(NAME).files[CARD].startswith(b"---\n")


def test_a_card_written_by_hand_goes_up_as_it_is(hub: Hub, folder: Path) -> None:
    (folder / CARD).write_text("---\nlicense: mit\n---\n# Mine\n")
    push_adapter(folder, NAME, token=TOKEN)
    assert hub.head(NAME).files[CARD] == (folder / CARD).read_bytes()


def test_branches_and_pull_requests(hub: Hub, saved: Path) -> None:
    hub.create(NAME)
    before = hub.head(NAME).sha
    done = push_adapter(saved, NAME, revision="trial", token=TOKEN)
    assert (hub.head(NAME).sha, hub.head(NAME, "trial").sha) == (before, done.commit)
    pull = push_adapter(saved, NAME, create_pr=True, token=TOKEN)
    assert pull.pr_url == f"{hub.url}/{NAME}/discussions/1"
    assert hub.repos[NAME].pulls == [pull.commit]
    assert hub.head(NAME).sha == before
    hub.repos[NAME].tags["v1"] = before
    for fixed, words in (("v1", "is a tag"), (before, "is a commit")):
        with pytest.raises(HubError, match=words):
            push_adapter(saved, NAME, revision=fixed, token=TOKEN)
    with pytest.raises(HubError, match="revision 'trial' cannot be given"):
        push_adapter(saved, NAME, create_pr=True, revision="trial", token=TOKEN)


def test_what_is_no_adapter_is_not_sent(hub: Hub, folder: Path, stock: Driver) -> None:
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(AdapterError, match=WEIGHTS):
        push_adapter(folder, NAME, token=TOKEN)
    with pytest.raises(surgery.ModelStateError):
        push_adapter(stock.model, NAME, token=TOKEN)
    for name in ("fox", "a/b/c", "../fox", "ann/", "ann fox/x", "", "https://huggingface.co/ann/fox", "ann/fox\n"):
        with pytest.raises(HubError, match="expected user/name"):
            push_adapter(folder, name, token=TOKEN)
    assert hub.log == []


def test_another_librarys_adapter_is_not_overwritten(hub: Hub, saved: Path) -> None:
    for text in (b'{"peft_type": "LORA"}', b"not json"):
        hub.create(NAME, **{CONFIG: text})
        with pytest.raises(HubError, match="choose another repository"):
            push_adapter(saved, NAME, token=TOKEN)
        assert hub.head(NAME).files[CONFIG] == text


def test_private_is_refused_where_the_repository_is_public(hub: Hub, saved: Path) -> None:
    hub.create(NAME)
    with pytest.raises(HubError, match="is public, private=True was asked"):
        push_adapter(saved, NAME, private=True, token=TOKEN)
    assert len(hub.repos[NAME].commits) == 1


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(hub: Hub, saved: Path) -> None:
    repo = hub.create(NAME)
    hub.fail("POST .*/preupload", 503, times=1)
    original, calls = time.sleep, []

    def intrude(_: float) -> None:
        calls.append(repo.add("main", hub.head(NAME).sha, {CARD: b"theirs"}, "theirs"))

    time.sleep = intrude  # type: ignore[assignment]
    try:
        with pytest.raises(HubError, match="somebody else changed the repository"):
            push_adapter(saved, NAME, token=TOKEN)
    finally:
        time.sleep = original
    assert calls and hub.head(NAME).message == "theirs"


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "not authorised (401)"), (READER, "forbidden (403)"), ("hf_wrong", "not authorised (401)")],
)
def test_pushing_without_permission(token: str | None, words: str, hub: Hub, saved: Path) -> None:
    hub.create(NAME)
    with pytest.raises(HubError) as caught:
        push_adapter(saved, NAME, token=token if token else False)
    assert words in str(caught.value) and NAME in str(caught.value)
    assert token is None or token not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- load


def test_load_by_branch_tag_and_commit(published: Hub) -> None:
    repo = published.repos[NAME]
    old = published.head(NAME).sha
    repo.tags["v1"] = old
    config = json.loads(repo.commits[old].files[CONFIG])
    changed = repo.commits[old].files | {CONFIG: json.dumps(config | {"library_version": "9.9"}).encode()}
    repo.add("next", old, changed, "newer")
    assert {open_adapter(NAME, revision=revision).config.library_version for revision in (None, "v1", old)} == {
        surgery.__version__
    }
    assert open_adapter(NAME, revision="next").config.library_version == "9.9"
    assert open_adapter(NAME, revision="next").source == f"{NAME}@{repo.branches['next'][:12]}"


def test_only_our_files_are_downloaded(published: Hub, tmp_path: Path) -> None:
    published.large = False  # large files come from the storage host, where they have no name
    published.head(NAME).files.update({"evil.py": b"x", "pytorch_model.bin": b"x", "../../x": b"x"})
    open_adapter(NAME)
    pull_adapter(NAME, tmp_path / "out")
    assert published.fetched() == FILES
    assert set(content(tmp_path / "out")) == FILES


def test_all_files_come_from_one_commit_even_if_the_branch_moves_meanwhile(published: Hub, folder: Path) -> None:
    repo = published.repos[NAME]
    first = published.head(NAME)
    edit_config(folder, lambda config: config.update(library_version="9.9"))
    (folder / RECIPE).write_text("broken")
    log, moved = published.log, []

    class Watch(list):  # type: ignore[type-arg]
        def append(self, entry: tuple[str, str, str | None]) -> None:
            super().append(entry)
            if entry[1].endswith(RECIPE) and not moved:
                moved.append(repo.add("main", first.sha, content(folder), "newer"))

    published.log = Watch(log)
    assert open_adapter(NAME).source == f"{NAME}@{first.sha[:12]}"
    assert moved


def test_a_subfolder_of_a_repository_and_of_a_folder(hub: Hub, saved: Path) -> None:
    hub.create(NAME, **{f"sizes/large/{name}": data for name, data in content(saved).items()})
    assert open_adapter(NAME, subfolder="sizes/large/").config.channels == 96
    assert open_adapter(saved.parent, subfolder=saved.name).config.channels == 96
    with pytest.raises(HubError, match=f"has no {CONFIG}: not an adapter of surgery"):
        open_adapter(NAME)
    for outside in ("..", "a/../../b", "/etc", "a\\b", "C:", "a\0b"):
        with pytest.raises(AdapterError, match="relative path"):
            open_adapter(NAME, subfolder=outside)


def test_private_repositories_need_the_token(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    published.repos[NAME].private = True
    with pytest.raises(HubError, match=r"not authorised \(401\)"):
        open_adapter(NAME)
    with pytest.raises(HubError, match=r"no such repository, .*\(404\)"):
        open_adapter(NAME, token=READER)
    assert open_adapter(NAME, token=TOKEN).config.channels == 96
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_adapter(NAME).config.channels == 96, "a token set after the import counts"


def test_offline_from_the_cache(published: Hub) -> None:
    with pytest.raises(HubError, match="outgoing traffic has been disabled"):
        open_adapter(NAME, local_files_only=True)
    assert published.log == []
    online = open_adapter(NAME)
    asked = len(published.log)
    assert open_adapter(NAME, local_files_only=True).source == online.source
    sha = published.head(NAME).sha
    assert open_adapter(NAME, revision=sha, local_files_only=True).source == online.source
    assert len(published.log) == asked, "not one request"


def test_a_commit_that_is_cached_needs_no_request(published: Hub) -> None:
    sha = published.head(NAME).sha
    open_adapter(NAME, revision=sha)
    asked = len(published.log)
    open_adapter(NAME, revision=sha)
    assert len(published.log) == asked


def test_an_own_cache_folder(published: Hub, tmp_path: Path) -> None:
    open_adapter(NAME, cache_dir=tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("chunk", [1000, None], ids=["resumed", "restarted"])
def test_an_interrupted_download_is_completed(
    chunk: int | None, published: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client resumes at its last whole chunk; by default that is 10 MB, so that an adapter is fetched anew."""
    if chunk is not None:
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", chunk)
    published.faults.append(Fault(r"GET /cdn/", 2, cut=10_000))
    found, expected = open_adapter(NAME).tensors, read_adapter(saved).tensors
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    ranges = [wanted for method, path, wanted in published.log if method == "GET" and "/cdn/" in path]
    assert ranges == ([None, "bytes=10000-", "bytes=20000-"] if chunk else [None, None, None])


def test_a_download_that_never_completes_leaves_no_adapter(published: Hub) -> None:
    published.faults.append(Fault(r"GET /cdn/", 1000, cut=0))
    with pytest.raises(HubError, match=NAME):
        open_adapter(NAME)
    published.faults.clear()
    assert open_adapter(NAME).config.channels == 96


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "not authorised (401)"),
        (403, "forbidden (403)"),
        (404, "no such repository, revision or file (404)"),
        (429, "too many requests (429)"),
        (500, "500 Internal Server Error"),
        (503, "503 Service Unavailable"),
    ],
)
def test_server_errors_say_what_failed_and_what_to_do(
    status: int, words: str, published: Hub, saved: Path, stock: Driver, sparse: Driver
) -> None:
    published.fail(".", status)
    for driver in (stock, sparse):
        with untouched(driver.model), pytest.raises(HubError) as caught:
            surgery.load_adapter(driver.model, NAME)
        assert words in str(caught.value)
        assert f"cannot load {NAME}" in str(caught.value)
    with pytest.raises(HubError) as caught:
        push_adapter(saved, NAME, token=TOKEN)
    assert words in str(caught.value) and f"cannot push to {NAME}" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_an_error_half_way_through_a_push_leaves_the_repository(published: Hub, saved: Path) -> None:
    before = published.head(NAME).sha
    published.fail("POST .*/commit/", 500)
    with pytest.raises(HubError, match="500 Internal"):
        push_adapter(saved, NAME, token=TOKEN, overwrite_card=True)
    assert published.head(NAME).sha == before


def test_no_such_repository_revision_or_adapter(published: Hub) -> None:
    with pytest.raises(HubError, match=r"cannot load ann/none: no such repository, .*\(404\)"):
        open_adapter("ann/none", token=TOKEN)
    with pytest.raises(HubError, match=r"at revision 'v9': no such repository, revision or file \(404\)"):
        open_adapter(NAME, revision="v9")
    published.create("ann/empty")
    with pytest.raises(HubError, match=f"has no {CONFIG}"):
        open_adapter("ann/empty")
    files = published.head(NAME).files
    published.create("ann/half", **{CONFIG: files[CONFIG], RECIPE: files[RECIPE]})
    with pytest.raises(HubError, match=WEIGHTS):
        open_adapter("ann/half")


def test_connection_refused(published: Hub, monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", nowhere + "/")
        for call in (lambda: open_adapter(NAME), lambda: push_adapter(saved, NAME, token=TOKEN)):
            with pytest.raises(HubError) as caught:
                call()
            assert "Connection refused" in str(caught.value)


def test_an_endpoint_that_is_no_hub(published: Hub) -> None:
    published.fail(".", 200)
    with pytest.raises(HubError, match=f"cannot load {NAME}"):
        open_adapter(NAME)


def test_a_damaged_adapter_on_the_hub_is_refused_and_the_model_left(published: Hub, stock: Driver) -> None:
    published.head(NAME).files[WEIGHTS] = b"\x80\x04"
    with untouched(stock.model), pytest.raises(AdapterError, match=WEIGHTS):
        surgery.load_adapter(stock.model, NAME)


# ------------------------------------------------------------------------------------------------ names and places


def test_a_local_folder_of_that_name_wins(
    published: Hub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_adapter(NAME).source.startswith(f"{NAME}@")
    asked = len(published.log)
    surgery.save_adapter(fitted("sam2").model, NAME)
    assert open_adapter(NAME).source == NAME
    with pytest.raises(AdapterError, match="revision 'v1' was given"):
        open_adapter(NAME, revision="v1")
    for absent in ("./ann/none", Path("ann/none"), "bob", "ann/none/x", "~/fox"):
        with pytest.raises(AdapterError, match="no adapter folder"):
            open_adapter(absent)
    assert len(published.log) == asked, "none of these is a Hub id"


def test_pull_writes_the_very_bytes_and_replaces_an_older_adapter(published: Hub, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pull_adapter(NAME, out)
    assert content(out) == content(saved)
    pull_adapter(NAME, out)
    (out / "notes").write_text("mine")
    with pytest.raises(AdapterError, match="choose another path"):
        pull_adapter(NAME, out)
    del published.head(NAME).files[CARD]
    pull_adapter(NAME, tmp_path / "cardless", cache_dir=tmp_path / "fresh")
    assert set(content(tmp_path / "cardless")) == FILES - {CARD}
    with pytest.raises(HubError, match="expected user/name"):
        pull_adapter(str(out), tmp_path / "x")


def test_sparsify_takes_a_hub_id_too(published: Hub) -> None:
    driver = make("sam2")
    surgery.sparsify(driver.model, "fast", adapter=NAME)
    assert surgery.status(driver.model).adapter == f"{NAME}@{published.head(NAME).sha[:12]}"


def test_the_client_is_loaded_only_when_needed(saved: Path) -> None:
    code = (
        "import sys, surgery.adapters; surgery.adapters.read_adapter(sys.argv[1]);"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('huggingface_hub', 'httpx', 'requests')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Jobs whose videos and outputs lie at addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from surgery.errors import JobError, ManifestError
from surgery.jobs import JobSummary, Line, Prompts, track
from surgery.jobs import folder as folders
from tests.jobs.conftest import BOX, masks, write_manifest

JOB: dict[str, Any] = {"model": "demo", "recipe": "none", "prompts": Prompts(boxes=(BOX,)), "progress": False}


@pytest.fixture
def store(videos: Path) -> Iterator[Any]:
    """A file system in memory with the folder of videos at memory://in."""
    system = fsspec.filesystem("memory")
    system.put(f"{videos}/", "/in/", recursive=True)
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_what_lies_elsewhere_is_fetched_and_written_there(store: Any, videos: Path, tmp_path: Path) -> None:
    track([videos / "v0", videos / "v1"], out=tmp_path / "here", **JOB)
    manifest = write_manifest(tmp_path / "m.jsonl", [{"video": "memory://in/v0"}, {"video": str(videos / "v1")}])
    there = track(manifest, out="memory://out/job", **JOB)
    assert there.videos["done"] == 2 and JobSummary.model_validate_json(store.cat("/out/job/summary.json")) == there
    store.get("/out/job/", f"{tmp_path}/back/", recursive=True)
    assert masks(tmp_path / "back") == masks(tmp_path / "here")
    assert (tmp_path / "back/report.html").exists()
    with pytest.raises(JobError, match="not empty"):
        track(manifest, out="memory://out/job", **JOB)
    assert track(manifest, out="memory://out/job", resume=True, **JOB).videos["skipped"] == 2
    store.pipe("/in/v0/00001.png", store.cat("/in/v0/00002.png"))
    again = track(manifest, out="memory://out/job", resume=True, **JOB)
    assert (again.videos["skipped"], again.videos["done"]) == (1, 1)


def test_half_an_upload_is_none(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", [{"video": "memory://in/v0"}])
    track(manifest, out="memory://out", **JOB)
    whole = {path: store.cat(path) for path in store.find("/out/v0/masks")}
    monkeypatch.setattr(type(store), "put_file", lambda self, *_, **__: (_ for _ in ()).throw(OSError("gone")))
    failed = track(manifest, out="memory://out", overwrite=True, **JOB)
    assert "gone" in failed.failed[0].error and not store.exists(f"/out/v0/{folders.NOTE}")
    monkeypatch.undo()
    assert track(manifest, out="memory://out", resume=True, **JOB).videos["done"] == 1
    assert {path: store.cat(path) for path in store.find("/out/v0/masks")} == whole


@pytest.mark.usefixtures("store")
def test_addresses_that_lead_nowhere_are_told_at_once(tmp_path: Path) -> None:
    sources = [Line(video="memory://in/nope.mp4"), Line(video="nope://in/v0"), "memory://in/x*"]
    with pytest.raises(ManifestError) as caught:
        track(sources, out=tmp_path / "out", **JOB)
    text = str(caught.value)
    assert "no such file or folder: memory://in/nope.mp4" in text and "Protocol not known: nope" in text
    assert "memory://in/x*: nothing is called so" in text
    found = track("memory://in/v[01]", out=tmp_path / "out", **JOB)
    assert found.videos["done"] == 2 and len(masks(tmp_path / "out")) == 3 + 4

"""`surgery track` of many videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from surgery.cli.common import counted, out, print_json
from surgery.cli.options import Asked
from surgery.jobs import Prompts, track


def track_many(
    asked: Asked, videos: Sequence[str], prompts: Prompts, folder: str, as_json: bool, **settings: Any
) -> None:
    """Run the job and say what became of it; exit code 1 if a video failed.

    Args:
        settings: as of `surgery.jobs.track`.
    """
    recipe = "none" if asked.recipe == "none" else asked.chosen()
    summary = track(
        videos, model=asked.model, out=folder, recipe=recipe, adapter=asked.adapter, prompts=prompts, host=asked.host,
        device=asked.device, **settings,
    )  # fmt: skip
    if as_json:
        print_json(summary.model_dump(mode="json"))
    else:
        counts = summary.videos
        out.print(
            f"{counted(counts['done'], 'video')} tracked, {counts['skipped']} done before, {counts['failed']} failed; "
            f"{counted(summary.frames, 'frame')} in {summary.seconds:.1f} s, {summary.frames_per_second:.2f} a second; "
            f"{folder}/summary.json"
        )
        for one in summary.failed:
            out.print(f"{one.name}: {one.error}")
    if summary.failed:
        raise click.exceptions.Exit(1)

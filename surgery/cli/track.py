"""`surgery track`: follow objects through a video and write masks, an overlay and a summary."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from surgery import jobs
from surgery.cli.common import Command, OutPath, counted, out, print_json
from surgery.cli.options import SAVED, Asked, asking, json_option, on_ray
from surgery.cli.run_folder import RunFolder
from surgery.cli.track_run import TrackRun
from surgery.jobs.manifest import are_many
from surgery.jobs.remote import is_url
from surgery.progress import progress_bar
from surgery.video import open_video


@click.command(cls=Command)
@click.argument("videos", type=click.Path(), nargs=-1, required=True, metavar="VIDEO...")
@click.option("--model", required=True, help=f"Model: {SAVED}, random:SIZE or demo.")
@asking(stock=True)
@click.option("--mask", "masks", multiple=True, metavar="PNG[@FRAME]", help="Label PNG: one object per value.")
@click.option("--box", "boxes", multiple=True, metavar="X0,Y0,X1,Y1[@FRAME][#ID]", help="Box in pixels.")
@click.option("--point", "points", multiple=True, metavar="X,Y[,LABEL][@FRAME][#ID]", help="Click; label 1 on, 0 off.")
@click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Output folder.")
@click.option(
    "--resume",
    is_flag=True,
    help="Many videos: those that are done stay. One: go on with the run in OUT: its masks stay, and tracking starts "
    "anew behind the last one from your first prompts and the last masks; other memory is lost, so masks may differ "
    "from those of a run in one go.",
)
@click.option("--overwrite", is_flag=True, help="Start the run in OUT over: its masks and overlay are removed.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Stop after this many frames, resumed ones included.")
@click.option("--fps", type=click.FloatRange(min=0.1), help="Overlay frame rate; default the video's, else 24.")
@click.option("--show-windows", is_flag=True, help="Darken the windows that were not computed in the overlay.")
@click.option("--overlay/--no-overlay", default=None, help="Write overlay.mp4; default: of one video, not of many.")
@on_ray
@json_option
def track(
    videos: tuple[str, ...], asked: Asked, masks: tuple[str, ...], boxes: tuple[str, ...], points: tuple[str, ...],
    folder: str, resume: bool, overwrite: bool, max_frames: int | None, fps: float | None, show_windows: bool,
    overlay: bool | None, as_json: bool, **cluster: Any,
) -> None:  # fmt: skip
    """Track objects through VIDEO (a folder of pictures or a video file), or through many.

    Of one it writes OUT/masks/*.png (DAVIS palette), OUT/overlay.mp4 and OUT/summary.json. A mask is called as its
    frame: by the picture's name, or in a video file by its number from 00000. After "@", FRAME is such a name, or,
    where no frame has exactly this name, an index from 0.

    Several, a folder of videos, a pattern in quotes or a manifest.jsonl (video, prompts, name) are a job. It writes
    OUT/NAME/masks of every video, whole or not at all, and OUT/summary.json. Prompts given here are for all that have
    none of their own.

    \b
    surgery track clip.mp4 --model facebook/sam2.1-hiera-large --recipe balanced --box 10,20,200,180 --out run
    surgery track frames/ --model demo --recipe none --mask first.png --out run
    surgery track manifest.jsonl --model demo --recipe balanced --out job --resume
    """
    started = time.perf_counter()
    if resume and overwrite:
        raise click.UsageError("--resume goes on and --overwrite starts over: expected one of them")
    given = jobs.Prompts(boxes=boxes, points=points, masks=masks)
    if len(videos) > 1 or are_many(videos[0]) or is_url(folder) or cluster["ray"] is not None:
        if fps is not None or show_windows:
            raise click.UsageError("--fps and --show-windows are for one video, here are many")
        done = jobs.track(
            videos, model=asked.model, out=folder, recipe=asked.chosen() or asked.recipe, adapter=asked.adapter,
            prompts=given, host=asked.host, device=asked.device, resume=resume, overwrite=overwrite,
            max_frames=max_frames, overlay=bool(overlay), **cluster,
        )  # fmt: skip
        print_json(done.model_dump(mode="json")) if as_json else _say_many(done, folder)
        if done.failed:
            raise click.exceptions.Exit(1)
        return
    with progress_bar(True) as bars:
        with bars.stage("starting"):
            source = open_video(videos[0])
            prompts = given.read(source)
            place = RunFolder(Path(folder), source, min(prompt.frame for prompt in prompts), resume, overwrite)
        chosen = asked.chosen()
        model = asked.operate(asked.load(bars), chosen)
        run = TrackRun(place, model, source, prompts, started, {"model": asked.model, "video": videos[0]})
        with place.held:
            run.track(bars, max_frames, (fps or source.fps or 24.0) if overlay is not False else None, show_windows)
    print_json(run.summary) if as_json else _say(run)


def _say(run: TrackRun) -> None:
    def share(value: float | None) -> str:
        return "all" if value is None else f"{value:.0%}"

    summary = run.summary
    out.print(
        run.written(),
        f"{summary['seconds']:.1f} s end to end, {summary['frames_per_second']:.2f} frames a second; the model takes "
        f"{summary['ms_per_frame']['median']:.0f} ms a frame (median)",
        f"windows computed {share(summary['windows_kept'])}, memory keys read {share(summary['keys_kept'])}",
        *(f"dense frames, {reason}: {count}" for reason, count in (summary["dense_frames"] or {}).items()),
        sep="\n",
    )


def _say_many(summary: jobs.JobSummary, folder: str) -> None:
    counts = summary.videos
    out.print(
        f"{counted(counts['done'], 'video')} tracked, {counts['skipped']} done before, {counts['failed']} failed; "
        f"{counted(summary.frames, 'frame')} in {summary.seconds:.1f} s, {summary.frames_per_second:.2f} a second; "
        f"{folder}/summary.json"
    )
    for one in summary.failed:
        out.print(f"{one.name}: {one.error}")

"""`surgery track`: follow objects through a video and write masks, an overlay and a summary."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import click

from surgery.cli.common import Command, OutPath, out, print_json
from surgery.cli.options import SAVED, chosen_recipe, model_options, recipe_options
from surgery.cli.run_folder import RunFolder
from surgery.cli.stops import held
from surgery.cli.track_summary import document, head_of, row_of
from surgery.errors import VideoError
from surgery.progress import Bars, progress_bar
from surgery.video.prompts import Prompt


@click.command(cls=Command)
@click.argument("video", type=click.Path())
@click.option("--model", "spec", required=True, help=f"Model: {SAVED}, random:SIZE or demo.")
@recipe_options(stock=True)
@model_options
@click.option("--mask", "masks", multiple=True, metavar="PNG[@FRAME]", help="Label PNG: one object per value.")
@click.option("--box", "boxes", multiple=True, metavar="X0,Y0,X1,Y1[@FRAME][#ID]", help="Box in pixels.")
@click.option("--point", "points", multiple=True, metavar="X,Y[,LABEL][@FRAME][#ID]", help="Click; label 1 on, 0 off.")
@click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Output folder.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in OUT: its masks stay, and tracking starts anew behind the last one from your first "
    "prompts and the last masks; other memory is lost, so masks may differ from those of a run in one go.",
)
@click.option("--overwrite", is_flag=True, help="Start the run in OUT over: its masks and overlay are removed.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Stop after this many frames, resumed ones included.")
@click.option("--fps", type=click.FloatRange(min=0.1), help="Overlay frame rate; default the video's, else 24.")
@click.option("--show-windows", is_flag=True, help="Darken the windows that were not computed in the overlay.")
@click.option("--overlay/--no-overlay", default=True, help="Write overlay.mp4.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def track(
    video: str, spec: str, recipe: str | None, overrides: tuple[str, ...], adapter: str | None, host: str | None,
    device: str | None, masks: tuple[str, ...], boxes: tuple[str, ...], points: tuple[str, ...], folder: str,
    resume: bool, overwrite: bool, max_frames: int | None, fps: float | None, show_windows: bool, overlay: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Track objects through VIDEO (a folder of pictures or a video file).

    Writes OUT/masks/*.png (DAVIS palette), OUT/overlay.mp4 and OUT/summary.json. A mask is called as its frame: by the
    picture's name, or in a video file by its number from 00000. After "@", FRAME is such a name, or, where no frame has
    exactly this name, an index from 0.

    \b
    surgery track clip.mp4 --model facebook/sam2.1-hiera-large --recipe balanced --box 10,20,200,180 --out run
    surgery track frames/ --model demo --recipe none --mask first.png --out run
    """
    started = time.perf_counter()
    if resume and overwrite:
        raise click.UsageError("--resume goes on and --overwrite starts over: expected one of them")
    with progress_bar(True) as bars:
        with bars.stage("starting"):
            from surgery.video import check, open_video

            source = open_video(video)
            prompts = _prompts(masks, boxes, points, source.names)
            check(prompts, source.size, source.num_frames)
            place = RunFolder(Path(folder), source, min(prompt.frame for prompt in prompts), resume, overwrite)
        with bars.stage(f"loading {spec}"):
            model = _model(spec, host, device, recipe, overrides, adapter)
        head = head_of(model, spec, video, source, prompts)
        place.check_same(head)
        run = _Run(place, model, source, prompts, head, started)
        try:
            run.track(bars, max_frames, (fps or source.fps or 24.0) if overlay else None, show_windows)
        finally:
            place.end()
    print_json(run.summary) if as_json else _say(run.summary, place)


def _prompts(
    masks: tuple[str, ...], boxes: tuple[str, ...], points: tuple[str, ...], names: tuple[str, ...] | None
) -> list[Prompt]:
    from surgery.video import merge_points, parse_box, parse_mask, parse_point

    found: list[Prompt] = [prompt for text in masks for prompt in parse_mask(text, names)]
    found += [parse_box(text, names) for text in boxes]
    found += merge_points([parse_point(text, names) for text in points])
    return found


def _model(
    spec: str, host: str | None, device: str | None, recipe: str | None, overrides: tuple[str, ...], adapter: str | None
) -> Any:
    from surgery.api import sparsify
    from surgery.loading import load_model

    chosen = chosen_recipe(recipe, overrides, adapter)
    model = load_model(spec, host, device)
    return model if recipe == "none" else sparsify(model, chosen, adapter=adapter)


class _Run:
    """Tracks what is left and writes it as it comes.

    Attributes:
        summary: as last written, or as found where nothing was left to track.
    """

    def __init__(
        self, place: RunFolder, model: Any, video: Any, prompts: list[Prompt], head: dict[str, Any], started: float
    ) -> None:
        self.place, self.model, self.video, self.head, self.started = place, model, video, head, started
        self.given, self.prompts = prompts, prompts
        self.summary: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.run: dict[str, Any] = {"after": None, "masks_as_prompts": []}
        if place.last is not None:
            self._take_up(place.last)

    def track(self, bars: Bars, max_frames: int | None, fps: float | None, show_windows: bool) -> None:
        """Track, write, and say what was written if that is cut short.

        Args:
            fps: of the overlay; None for none.

        Raises:
            VideoError: a frame that cannot be read, or none was tracked.
        """
        from surgery.tracking import track as run_tracker
        from surgery.video import VideoWriter

        place, after = self.place, self.place.first - 1 if self.place.last is None else self.place.last
        ends = [self.video.num_frames, None if max_frames is None else place.first + max_frames]
        stop = min((end for end in ends if end is not None), default=None)
        left = None if stop is None else max(stop - after - 1, 0)
        if place.last is not None and left != 0:
            bars.say(
                f"going on after frame {self.run['after']} from its masks and the first prompts; "
                "what the model remembered of other frames is lost"
            )
        self._note = "objects; outlined: out of sight" + "; dark: windows not computed" * show_windows
        results = iter(()) if left == 0 else run_tracker(self.model, self.video, self.prompts, after)
        # What a file declares may be less than it holds; only the caller's limit cuts it short.
        limit = None if max_frames is None else max(place.first + max_frames - after - 1, 0)
        cause: BaseException | None = None
        with ExitStack() as stack:
            writer: VideoWriter | None = None
            try:
                with bars.stage(f"tracking {self.video.name}", left) as step:
                    for result in islice(results, limit):
                        if not self.rows:
                            place.begin(fps is not None)
                            self._summarise(complete=False)
                            if fps is not None:
                                writer = stack.enter_context(VideoWriter(place.overlay, fps))
                                self._redraw(bars, writer)
                        with held():
                            self._write(result, writer, show_windows)
                        step()
            except BaseException as error:
                if not self.rows:
                    bars.say("no new mask was written")
                    raise
                # What is there is finished first; then the error goes on its way.
                cause = error
            if writer is not None:
                with bars.stage("finishing overlay.mp4"):
                    stack.close()
        if self.rows:
            self._summarise(cause is None, None if cause is None else str(cause) or type(cause).__name__)
        elif place.before is None:
            raise VideoError(f"{self.video.name}: no frame was tracked")
        else:
            bars.say("nothing left to track")
            self.summary = place.before
        if cause is not None:
            bars.say(_written(self.summary, place))
            bars.say("the same command goes on with --resume, and starts over with --overwrite")
            raise cause

    def _take_up(self, last: int) -> None:
        from surgery.video import MaskPrompt, continued

        self.prompts = continued(self.given, last, self.place.read)
        self.run = {
            "after": self.video.name_of(last),
            "masks_as_prompts": [
                {"frame": self.video.name_of(prompt.frame), "object": prompt.obj_id}
                for prompt in self.prompts
                if isinstance(prompt, MaskPrompt) and not any(prompt is one for one in self.given)
            ],
        }

    def _write(self, result: Any, writer: Any, show_windows: bool) -> None:
        from surgery.tracking import windows_drawn
        from surgery.video import labels_from_logits

        labels = labels_from_logits(result.logits)
        self.place.write(result.index, labels)
        self.rows.append(row_of(result, self.video.name_of(result.index), labels))
        if writer is not None:
            windows = show_windows and result.record is not None
            self._draw(writer, windows_drawn(result.frame, result.record) if windows else result.frame, labels)

    def _redraw(self, bars: Bars, writer: Any) -> None:
        """The overlay of a run that goes on starts with what was tracked before; its windows are not known any more."""
        if self.place.last is None:
            return
        first, stop = self.place.first, self.place.last + 1
        with bars.stage("drawing what was tracked before", stop - first) as step:
            for index, frame in enumerate(islice(self.video, stop)):
                if index >= first:
                    self._draw(writer, frame, self.place.read(index))
                    step()

    def _draw(self, writer: Any, frame: Any, labels: Any) -> None:
        from surgery.video import draw_ids, draw_masks, with_legend

        shown = {obj_id for obj_id in self._ids if (labels == obj_id).any()}
        writer.write(with_legend(draw_ids(draw_masks(frame, labels), labels), self._ids, shown, self._note))

    @property
    def _ids(self) -> list[int]:
        return sorted({prompt.obj_id for prompt in self.given})

    def _summarise(self, complete: bool, stopped: str | None = None) -> None:
        run = {**self.run, "frames": len(self.rows), "seconds": time.perf_counter() - self.started, "stopped": stopped}
        last = self.place.last
        before = (self.place.before or {}) if last is not None else {}
        rows = [row for row in before.get("per_frame", []) if last is not None and row["frame"] <= last]
        already = 0 if last is None else last + 1 - self.place.first
        self.summary = document(
            self.model, self.head, complete, already + len(self.rows), [*before.get("runs", []), run],
            [*rows, *self.rows],
        )  # fmt: skip
        self.place.write_summary(self.summary)


def _say(summary: dict[str, Any], place: RunFolder) -> None:
    def share(value: float | None) -> str:
        return "all" if value is None else f"{value:.0%}"

    lines = [
        _written(summary, place),
        f"{summary['seconds']:.1f} s end to end, {summary['frames_per_second']:.2f} frames a second; the model takes "
        f"{summary['ms_per_frame']['median']:.0f} ms a frame (median)",
        f"windows computed {share(summary['windows_kept'])}, memory keys read {share(summary['keys_kept'])}",
        *(f"dense frames, {reason}: {count}" for reason, count in (summary["dense_frames"] or {}).items()),
    ]
    for line in lines:
        out.print(line)


def _written(summary: dict[str, Any], place: RunFolder) -> str:
    files = [path.name for path in (place.overlay, place.note) if path.exists()]
    return f"{summary['frames']} masks in {place.masks}, beside {' and '.join(files)}"

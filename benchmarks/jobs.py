"""Many short videos: two actors against two plain processes and one, what the engine adds, and the driver's memory.

Run as `python -m benchmarks.jobs`. All that is compared is loaded before, and takes turns. Where cores are shared with
other work the wall clock says little, so processor time is measured beside it: of both plain processes, and of the
driver with Ray's own processes and the actors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.long_memory import resident_mb
from surgery import sparsify
from surgery.bench.machine import machine
from surgery.demo.clips import make_clip
from surgery.jobs import Line, PoolSettings, Prompts, Setup, job, track
from surgery.jobs.alone import Alone, Worker, nothing
from surgery.jobs.folder import JobFolder, VideoRow, key_of
from surgery.jobs.manifest import Task
from surgery.jobs.pool import Pool
from surgery.jobs.worker import Asked, Tracker
from surgery.loading import load_model
from surgery.recipe import Recipe
from surgery.tracking import track as track_one
from surgery.tracking_everything import EverythingFrame
from surgery.video import labels_from_logits, open_video, write_label_png

RECIPE = "faithful"
MASK = np.zeros((256, 256), dtype=np.uint8)
MASK[30:90, 20:80] = 1


def main() -> None:
    """Run all parts and write the JSON, after each part anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of two actors and two plain processes, in turn")
    parser.add_argument("--long", type=int, default=100, help="frames of the videos that the engine's share is of")
    parser.add_argument("--pairs", type=int, default=6, help="of these videos, with the engine and without, in turn")
    parser.add_argument("--lines", type=int, default=10_000, help="of the manifest")
    parser.add_argument(
        "--ray", default="local", help="or the address of a cluster of no other job; none: memory without"
    )
    parser.add_argument("--part", choices=[part.__name__ for part in PARTS], help="only this; the others' rows stay")
    parser.add_argument("--plain", type=Path, nargs=3, metavar=("VIDEOS", "OUT", "LIST"), help="be a plain process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "jobs-demo-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.plain:
        plain(*options.plain)
        return
    names = ("videos", "frames", "rounds", "long", "pairs", "lines", "ray")
    given = [f"--{name}={getattr(options, name)}" for name in names]
    for part in PARTS:
        if options.part in (None, part.__name__):
            with tempfile.TemporaryDirectory() as folder:
                found = part(Path(folder), options)
            # Read after the work: parts may run beside each other.
            result = json.loads(options.out.read_text()) if options.out.exists() else {}
            result |= {
                "kind": "jobs", "schema": 1, "date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device("cpu")),
                "model": f"embedded demo model, 256 px, fp32, recipe {RECIPE}, one thread a process",
                part.__name__: {"command": " ".join(["python -m benchmarks.jobs", *given]), **found},
            }  # fmt: skip
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps({part.__name__: found}), flush=True)


def write_videos(folder: Path, count: int, frames: int) -> list[Task]:
    """Synthetic clips of one object as folders of pictures, with a box on the first frame."""
    tasks = []
    for number in range(count):
        clip = make_clip(900_000 + number, frames, difficulty="easy", objects=1)
        name = f"v{number:04d}"
        (folder / name).mkdir(parents=True)
        for index, frame in enumerate(clip.frames):
            Image.fromarray(frame).save(folder / name / f"{index:05d}.png")
        rows, columns = (clip.labels[0] == 1).nonzero()
        box = ",".join(str(int(edge)) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        (folder / f"{name}.box").write_text(box)
        tasks.append(Task(name, str(folder / name), Prompts(boxes=(box,)), name, frames))
    return tasks


def track_plainly(model: Any, video: Path, prompts: Prompts, out: Path) -> None:
    """What a script without the engine does with a video."""
    opened = open_video(video)
    out.mkdir(parents=True, exist_ok=True)
    for found in track_one(model, opened, prompts.read(opened)):
        write_label_png(out / f"{opened.name_of(found.index)}.png", labels_from_logits(found.logits))


def plain(videos: Path, out: Path, listed: Path) -> None:
    """A process that tracks what is listed, every time it gets a line, and says how long that took."""
    model = sparsify(load_model("demo"), RECIPE)
    names = listed.read_text().split()
    print("ready", flush=True)
    for _ in sys.stdin:
        shutil.rmtree(out, ignore_errors=True)
        began, spent = time.perf_counter(), time.process_time()
        for name in names:
            track_plainly(model, videos / name, Prompts(boxes=((videos / f"{name}.box").read_text(),)), out / name)
        print(json.dumps([time.perf_counter() - began, time.process_time() - spent]), flush=True)


def two_actors(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and processor seconds of two actors and of two plain processes in turn, and whether the bytes are those
    of one process."""
    videos = folder / "many"
    tasks = write_videos(videos, options.videos, options.frames)
    processes = []
    for half in (0, 1):
        listed = folder / f"half{half}"
        listed.write_text("\n".join(task.name for task in tasks[half::2]))
        given = [str(each) for each in (videos, folder / f"plain{half}", listed)]
        command = [sys.executable, "-m", "benchmarks.jobs", "--plain", *given]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def lines() -> list[str]:
        return [process.stdout.readline() for process in processes]  # type: ignore[union-attr]

    assert lines() == ["ready\n"] * 2
    rounds = []
    actors = folder / "actors"
    recipe = Recipe.load(RECIPE)
    with Pool(PoolSettings(options.ray, 2, 1), Tracker, Setup("demo", recipe), str(actors), None, False) as pool:
        made_by = pool.load()
        while len(pool._idle) < 2:
            list(pool._news(deque()))
        for _ in range(options.rounds):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            ours = [json.loads(line) for line in lines()]
            shutil.rmtree(actors, ignore_errors=True)
            place = JobFolder(str(actors), False, False)
            place.begin()
            began, spent = time.perf_counter(), processor_seconds()
            asked = ((task, key_of(task, made_by)) for task in tasks)
            assert not any(isinstance(outcome.result, Exception) for outcome in pool.outcomes(asked))
            rounds.append({
                "plain": {"seconds": max(wall for wall, _ in ours), "processor": sum(cpu for _, cpu in ours)},
                "actors": {
                    "seconds": time.perf_counter() - began, "processor": processor_seconds() - spent,
                },
            })  # fmt: skip
            place.held.close()
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    alone = folder / "alone"
    lines_of = [Line(video=task.video, prompts=task.prompts) for task in tasks]
    summary = track(lines_of, model="demo", recipe=RECIPE, out=alone, progress=False)
    found = {path.relative_to(actors): path.read_bytes() for path in actors.glob("*/masks/*.png")}
    same = {path.relative_to(alone): path.read_bytes() for path in alone.glob("*/masks/*.png")} == found
    return {
        "videos": len(tasks), "frames": summary.frames, "masks_of_one_process": same, "masks": len(found),
        "throughput": {
            kind: statistics.median(each["plain"][kind] / each["actors"][kind] for each in rounds)
            for kind in ("seconds", "processor")
        },
        "rounds": rounds,
    }  # fmt: skip


def processor_seconds() -> float:
    """Of this process, of Ray's on this machine, and of all below them that are there, but for the plain ones."""
    below: dict[int, list[int]] = {}
    spent, family = {}, [os.getpid()]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        number = int(stat.parent.name)
        if b"--plain" not in command:
            below.setdefault(int(fields[1]), []).append(number)
            spent[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if b"/ray/core/src/" in command:
            family.append(number)
    for each in family:
        family += [child for child in below.get(each, []) if child not in family]
    return sum(spent[each] for each in family)


def engine_share(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Processor time of long videos with the engine, over that without it, in one process and in turn."""
    tasks = write_videos(folder / "long", options.pairs, options.long)
    setup = Setup("demo", Recipe.load(RECIPE))
    out = folder / "engine"
    place = JobFolder(str(out), False, False)
    place.begin()
    ratios, times = [], []
    worker = Tracker(setup, str(out), None, False)
    with Alone[Asked, VideoRow](worker) as engine:
        made_by = engine.load()

        def with_engine(task: Task) -> None:
            (outcome,) = engine.outcomes(iter([(task, key_of(task, made_by))]))
            assert not isinstance(outcome.result, Exception)

        def without(task: Task) -> None:
            assert task.prompts is not None
            track_plainly(worker.model, Path(task.video), task.prompts, folder / "bare" / task.name)

        without(write_videos(folder / "warm", 1, 10)[0])
        for number, task in enumerate(tasks):
            arms: list[Callable[[Task], None]] = [without, with_engine]
            spent = {}
            for arm in arms if number % 2 else arms[::-1]:
                began = time.process_time()
                arm(task)
                spent[arm] = time.process_time() - began
            ratios.append(spent[with_engine] / spent[without])
            times.append([spent[without], spent[with_engine]])
    place.held.close()
    return {"frames": options.long, "ratio": statistics.median(ratios), "ratios": ratios, "processor_seconds": times}


class Drawn(Tracker):
    """Writes the same mask for every frame, without asking the model."""

    def _tracked(self, task: Task, video: Any) -> Any:
        for index, frame in enumerate(video):
            yield EverythingFrame(index, frame, MASK, (), (), 0, 0.0)


def engine_alone(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds that the engine adds to a video: the same masks written with it and without, in turn."""
    video = folder / "video"
    video.mkdir()
    for index in range(options.long):
        Image.new("RGB", (256, 256)).save(video / f"{index:05d}.png")
    task = Task("v", str(video), Prompts(boxes=("20,30,80,90",)), "v", options.long)
    place = JobFolder(str(folder / "out"), False, False)
    place.begin()
    worker = Drawn(Setup("demo"), place.place, None, False)
    made_by = worker.load()
    added = []
    for number in range(10):
        began = time.process_time()
        worker.run((task, key_of(task, made_by)))
        between = time.process_time()
        opened, masks = open_video(video), folder / f"plain{number}"
        assert task.prompts is not None
        task.prompts.read(opened)
        masks.mkdir()
        for index, _ in enumerate(opened):
            write_label_png(masks / f"{opened.name_of(index)}.png", MASK)
        added.append(between - began - (time.process_time() - between))
    place.held.close()
    return {"frames": options.long, "processor_seconds": statistics.median(added), "runs": added}


class Stub(Worker[Asked, VideoRow]):
    """Tracks nothing, and says what a worker says."""

    def __init__(self, setup: Setup, *_: object) -> None:
        super().__init__(setup)

    def load(self, threads: int | None = None) -> dict[str, Any]:
        return {"host": "none", "device": "cpu"}

    def run(self, asked: Asked, step: Callable[[], None] = nothing) -> VideoRow:
        task, key = asked
        return VideoRow(
            key=key, name=task.name, video=task.video, size=(1, 1), frames=1, objects=1, lost={1: 1}, windows_kept=None,
            keys_kept=None, dense_frames={"first frame": 1}, seconds=1.0, model_seconds=1.0,
        )  # fmt: skip


def driver_memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Resident MB of a job whose workers track nothing: before it, after its first video, and after every tenth of
    them."""
    (folder / "video").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "video/00000.png")
    manifest = folder / "manifest.jsonl"
    with manifest.open("w") as file:
        for number in range(options.lines):
            line = {"video": "video", "name": f"v{number:06d}", "prompts": {"boxes": ["2,2,9,9"]}}
            file.write(json.dumps(line) + "\n")
    samples = [resident_mb()]
    count, tracker, done = job._Run._count, job.Tracker, 0

    def counted(run: Any, outcome: Any) -> None:
        nonlocal done
        count(run, outcome)
        done += 1
        if done == 1 or done % (options.lines // 10) == 0:
            samples.append(resident_mb())

    job._Run._count, job.Tracker = counted, Stub  # type: ignore[method-assign, assignment, misc]
    try:
        here = options.ray == "none"
        pool: dict[str, Any] = {} if here else {"ray": options.ray, "actors": 2, "threads": 1}
        summary = track(manifest, model="none", recipe="none", out=folder / "out", progress=False, **pool)
    finally:
        job._Run._count, job.Tracker = count, tracker  # type: ignore[method-assign, misc]
    return {
        "lines": options.lines, "workers": "in this process" if here else "two actors", "done": summary.videos["done"],
        "resident_mb": [round(sample, 1) for sample in samples],
    }  # fmt: skip


PARTS = (driver_memory, engine_alone, engine_share, two_actors)

if __name__ == "__main__":
    main()

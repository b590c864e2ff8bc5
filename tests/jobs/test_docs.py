"""The snippets of docs/jobs.md: they are YAML and JSON, and call what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import yaml

from surgery.cli.main import main
from surgery.jobs import Line

PAGE = (Path(__file__).resolve().parents[2] / "docs/jobs.md").read_text(encoding="utf-8")
COMMANDS = [text.rstrip('"') for text in re.findall(r"surgery (?:track|eval|calibrate) [^#\n]*--out [^#\n]*", PAGE)]


def snippet(first: str) -> object:
    (text,) = re.findall(rf"```yaml\n# {first}\n(.*?)```", PAGE, re.S)
    return yaml.safe_load(text)


def test_the_lines_of_the_manifest_are_lines() -> None:
    lines = [Line.model_validate_json(text) for text in re.findall(r'^{"video".*$', PAGE, re.M)]
    assert [line.name for line in lines] == [None, "kitchen", None] and lines[2].prompts == "everything"


def test_the_commands_are_taken() -> None:
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        _, name, *arguments = shlex.split(command)
        asked = main.commands[name]
        with click.Context(asked) as context:
            asked.parse_args(context, arguments)


def test_rays_cluster_file() -> None:
    cluster = snippet("cluster.yaml")
    assert isinstance(cluster, dict) and cluster["provider"]["type"] == "local"
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    for start in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "--disable-usage-stats" in start[-1] and "--object-store-memory=" in start[-1]


def test_kuberays_job() -> None:
    job = snippet("job.yaml")
    assert isinstance(job, dict) and (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["entrypoint"] in COMMANDS
    spec = job["spec"]["rayClusterSpec"]
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (spec["headGroupSpec"], workers):
        assert group["rayStartParams"]["disable-usage-stats"] == "true"
        (container,) = group["template"]["spec"]["containers"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in group["template"]["spec"]["volumes"]}

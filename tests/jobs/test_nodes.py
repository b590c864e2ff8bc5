"""One of two nodes is lost in the middle of a job: nothing is doubled, half written or left out."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from surgery.jobs import Prompts, track
from tests.jobs.conftest import BOX, masks, write_frames

pytest.importorskip("ray", reason="Ray is not installed: it has no wheel for this Python, or was left out")
pytestmark = pytest.mark.slow  # a cluster of its own


def test_the_videos_of_a_killed_node_run_again_on_the_other(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    for number in range(6):
        write_frames(tmp_path / "videos" / f"v{number}", 12, 5 * number)
    job: dict[str, Any] = {
        "model": "demo", "recipe": "faithful", "prompts": Prompts(boxes=(BOX,)), "progress": False,
    }  # fmt: skip
    alone, both = tmp_path / "alone", tmp_path / "both"
    track(tmp_path / "videos", out=alone, **job)
    store = 100 * 2**20
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "object_store_memory": store, "include_dashboard": False})
    killed: list[int] = []

    def kill(node: Any) -> None:
        while (busy := len(list(both.glob(".*.part/masks/*.png")))) < 2 or len(list(both.glob(".*.part"))) < 2:
            time.sleep(0.01)
        killed.append(busy)
        cluster.remove_node(node, allow_graceful=False)

    try:
        lost = cluster.add_node(num_cpus=1, object_store_memory=store)
        cluster.wait_for_nodes()
        threading.Thread(target=kill, args=(lost,), daemon=True).start()
        summary = track(tmp_path / "videos", out=both, ray=cluster.address, actors=2, threads=1, **job)
        assert [node.head for node in cluster.list_all_nodes()] == [True]
    finally:
        cluster.shutdown()
    assert killed and summary.complete and summary.videos == {"asked": 6, "done": 6, "skipped": 0, "failed": 0}
    assert masks(both) == masks(alone) and summary.frames == 72 and not list(both.glob(".*"))

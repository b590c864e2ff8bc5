"""Many videos: manifests, jobs that lose nothing, one process or a Ray cluster."""

from surgery.jobs.alone import Setup
from surgery.jobs.job import JobSummary, track
from surgery.jobs.manifest import Line, Prompts
from surgery.jobs.mapped import clips_on, evaluate
from surgery.jobs.pool import PoolSettings

__all__ = ["JobSummary", "Line", "PoolSettings", "Prompts", "Setup", "clips_on", "evaluate", "track"]

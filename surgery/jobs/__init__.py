"""Many videos: manifests, jobs that lose nothing, one process or a Ray cluster."""

from surgery.jobs.alone import Setup as Setup
from surgery.jobs.job import JobSummary as JobSummary
from surgery.jobs.job import track as track
from surgery.jobs.manifest import Line as Line
from surgery.jobs.manifest import Prompts as Prompts
from surgery.jobs.mapped import clips_on as clips_on
from surgery.jobs.mapped import evaluate as evaluate
from surgery.jobs.pool import PoolSettings as PoolSettings

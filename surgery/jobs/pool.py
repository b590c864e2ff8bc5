"""A job on a Ray cluster: an actor for every GPU or core, and a new one for every one that dies."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic

from surgery.errors import JobError, SurgeryError
from surgery.jobs.alone import A, Outcome, R, Setup, Worker, told
from surgery.missing import require

LOCAL = "local"
# Frames never travel between processes; Ray's least is about 75 MiB.
_OBJECT_STORE = 100 * 2**20
# Seconds between looks for a signal.
_PAUSE = 1.0


@dataclass(frozen=True)
class PoolSettings:
    """address: "local" for this machine, or that of a cluster, as of `ray.init`. actors: models at once; default one
    for every GPU, or core where there is none. threads: of each, default the cores over the actors. tries: how often
    what an actor died of is begun.
    """

    address: str
    actors: int | None = None
    threads: int | None = None
    tries: int = 3


@dataclass
class _Job(Generic[A]):
    asked: A
    tries: int = 0


class Pool(Generic[A, R]):
    """Context manager: actors that each load the model once, and are handed work as they become free.

    What an actor died of, or what failed by anything but a `SurgeryError`, is begun again on a fresh actor.

    Args:
        worker: what an actor is, made of `setup` and `more`.

    Raises:
        MissingLibraryError: no Ray.
        JobError: no cluster at the address.
    """

    def __init__(self, settings: PoolSettings, worker: type[Worker[A, R]], setup: Setup, *more: Any) -> None:
        require("ray")
        self._ray: Any = import_module("ray")
        self._settings, self._worker, self._setup, self._more = settings, worker, setup, more
        self._doing: dict[Any, tuple[Any, _Job[A] | None]] = {}
        self._idle: list[Any] = []
        self._alike: dict[str, Any] | None = None
        self._stillborn = 0
        self._owned = False
        self.size = 1

    def __enter__(self) -> Pool[A, R]:
        self._connect()
        have = self._ray.cluster_resources()
        gpus = 0 if self._setup.device == "cpu" else int(have.get("GPU", 0))
        cores = int(have.get("CPU", 1))
        self.size = self._settings.actors or gpus or cores
        self._threads = self._settings.threads or max(1, cores // self.size)
        # Of a GPU machine the threads are not reserved: cores without a GPU would stay idle, and GPUs without cores.
        share = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": self._threads}
        self._actor = self._ray.remote(self._worker).options(max_restarts=0, **share)
        return self

    def __exit__(self, *_: object) -> None:
        for actor in (*self._idle, *(actor for actor, _ in self._doing.values())):
            self._ray.kill(actor)
        self._doing, self._idle = {}, []
        if self._owned:
            self._ray.shutdown()

    def load(self) -> dict[str, Any]:
        """Start all actors and wait for the first that is ready; see `Worker.load`.

        Raises:
            SurgeryError: the model cannot be loaded.
            JobError: actors die before they are ready, or other nodes have other code or weights.
        """
        for _ in range(self.size):
            self._hire()
        while not self._idle:
            list(self._news(deque()))
        assert self._alike is not None
        return self._alike

    def outcomes(self, asked: Iterator[A]) -> Iterator[Outcome[A, R]]:
        """Do them, as many at once as there are actors, in the order in which they end."""
        again: deque[_Job[A]] = deque()
        coming = map(_Job, asked)
        while True:
            while self._idle and (job := again.popleft() if again else next(coming, None)) is not None:
                actor = self._idle.pop()
                job.tries += 1
                self._doing[actor.run.remote(job.asked)] = actor, job
            if not again and not any(job for _, job in self._doing.values()) and self._idle:
                return
            yield from self._news(again)

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self._settings.address == LOCAL:
            least = (self._settings.actors or 1) * (self._settings.threads or 1)
            how |= {
                "num_cpus": max(os.cpu_count() or 1, least),
                "object_store_memory": _OBJECT_STORE,
                "include_dashboard": False,
            }
        try:
            ray.init(address=self._settings.address, **how)
        except Exception as error:
            raise JobError(
                f"no Ray cluster at {self._settings.address!r} ({told(error)}), expected 'local', or the address that "
                "`ray start --head` prints"
            ) from error
        self._owned = True

    def _hire(self) -> None:
        actor = self._actor.remote(self._setup, *self._more)
        self._doing[actor.load.remote(self._threads)] = actor, None

    def _news(self, again: deque[_Job[A]]) -> Iterator[Outcome[A, R]]:
        """Wait a little, and take in what has come; jobs to be begun anew go to `again`."""
        ready, _ = self._ray.wait([*self._doing], num_returns=1, timeout=_PAUSE)
        for reference in ready:
            actor, job = self._doing.pop(reference)
            try:
                result = self._ray.get(reference)
            except Exception as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, SurgeryError):
                    if job is None:
                        raise cause from error
                    self._idle.append(actor)
                    yield Outcome(job.asked, cause, job.tries)
                    continue
                # Dead, or not to be trusted: a GPU that failed once fails with every video.
                self._ray.kill(actor)
                reason = told(cause if isinstance(cause, Exception) else error).splitlines()[0]
                if job is None:
                    self._stillborn += 1
                elif job.tries < self._settings.tries:
                    again.append(job)
                else:
                    lost = JobError(f"given up after {job.tries} tries, the last: {reason}")
                    yield Outcome(job.asked, lost, job.tries)
                if self._stillborn < self._settings.tries:
                    self._hire()
                elif not self._doing and not self._idle:
                    raise JobError(f"{self._stillborn} actors died while they loaded the model: {reason}") from error
                continue
            self._idle.append(actor)
            if job is not None:
                yield Outcome(job.asked, result, job.tries)
            else:
                self._stillborn = 0
                self.check(result)

    def check(self, made_by: dict[str, Any]) -> None:
        """Actors must be as this says, or, if nothing was said, as the first of them. Raises JobError."""
        self._alike = self._alike or made_by
        other = [name for name, value in made_by.items() if value != self._alike[name]]
        if other:
            name = other[0]
            raise JobError(
                f"the nodes differ in their {name} ({self._alike[name]} and {made_by[name]}), expected the same of all"
            )

"""The same jobs on a Ray cluster, by Ray Data: actors that hold a Stylizer each.

Ray gives the pictures of a lost actor to another one. A picture may then be made twice, with the
same bytes; it is in the journal once.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nst_fast.batch import work
from nst_fast.batch.jobs import Engine, Job
from nst_fast.batch.journal import Row
from nst_fast.batch.pool import Watch
from nst_fast.batch.runner import Execute, Rows
from nst_fast.batch.storage import StorageFullError
from nst_fast.errors import BatchError

MOST_BLOCKS = 10_000  # Ray's own work grows with them; below, each picture is retried by itself


class Maker:
    """An actor: makes the pictures that Ray Data hands to it."""

    def __init__(self, engine: Engine, retries: int, tag: str) -> None:
        """Create the Stylizer, once for all pictures."""
        self._stylizer, self._styles = engine.stylizer(), work.Styles()
        self._retries, self._tag = retries, tag
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Rows in JSON of a batch of pickled jobs; a full disk is {"stop": message}."""
        return {"row": [self._end(pickle.loads(job)) for job in batch["job"]]}

    def _end(self, job: Job) -> str:
        try:
            return replace(self._make(job), worker=self._name).to_json()
        except StorageFullError as error:
            return json.dumps({"stop": str(error)})

    def _make(self, job: Job) -> Row:
        for attempt in range(1, self._retries + 2):
            try:
                made = work.make(self._stylizer, work.load(job, self._styles))
                return replace(work.write(made, self._tag), attempts=attempt)
            except StorageFullError:
                raise
            except Exception as error:
                if work.is_final(error) or attempt > self._retries:
                    return work.failure(job, work.describe(error), attempt)
        raise AssertionError("the last attempt returns")


def cluster(address: str | None = None, retries: int = 2, actors: int | None = None) -> Execute:
    """Execution by actors of a Ray cluster; contents, styles and outputs must be reachable there.

    Args:
        address: of the cluster, as ``ray.init`` takes it; None starts one on this machine.
        retries: as for ``stylize_many``; lost actors are Ray's to replace.
        actors: at most so many, of ``Engine.threads`` cores each; None: as the cluster grows.

    Raises:
        BatchError: Ray is missing or cannot be reached.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BatchError(
            f'--engine ray needs {error.name}; run: pip install "nst-fast[ray]"'
        ) from None

    def execute(jobs: Sequence[Job], engine: Engine, tag: str, watch: Watch) -> Rows:
        if any(job.after for job in jobs):
            raise BatchError("--warm-start is for --engine local: frames follow each other")
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise BatchError(f"--address {address} cannot be reached ({reason})") from None
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"job": pickle.dumps(job)} for job in jobs]
        made = ray.data.from_items(
            items, override_num_blocks=min(len(items), MOST_BLOCKS)
        ).map_batches(
            Maker,
            fn_constructor_args=(engine, retries, tag),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=engine.threads,
        )
        for item in made.iter_rows():
            if item["row"].startswith('{"stop"'):
                raise BatchError(json.loads(item["row"])["stop"])
            yield Row.from_json(item["row"])

    return execute

"""The same jobs on a Ray cluster, by Ray Data: actors that hold a Stylizer each.

Ray gives the pictures of a lost actor to another one, without end. Attempts are therefore counted
in an actor of its own beside the driver, which the death of a maker does not reach. A picture whose
row was lost with a machine is made twice, with the same bytes; it is in the journal once.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from nst_fast.batch import work
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import Row
from nst_fast.batch.machine import Layout, largest, recording, worker_memory
from nst_fast.batch.pool import Watch
from nst_fast.batch.runner import Rows
from nst_fast.batch.storage import StorageFullError
from nst_fast.batch_options import BatchOptions
from nst_fast.config import EngineOptions
from nst_fast.errors import BatchError, one_line, with_kind
from nst_fast.host import save_memory
from nst_fast.stylizer import Stylizer

SHAPES = 2  # whose sessions an actor keeps
MOST_BLOCKS = 10_000  # Ray's own work grows with them; below, each picture is retried by itself
CONNECT = 5.0  # seconds for a machine of the cluster to answer


class Attempts:
    """An actor: how often each picture was begun that has not ended."""

    def __init__(self) -> None:
        """Start with none."""
        self._begun = Counter[str]()

    def begin(self, output: str) -> int:
        """The number of this attempt, from 1."""
        self._begun[output] += 1
        return self._begun[output]

    def end(self, output: str) -> None:
        """Forget a picture that has a row; where the row is lost, it starts anew."""
        del self._begun[output]


class Maker:
    """An actor: makes the pictures that Ray Data hands to it."""

    def __init__(self, engine: EngineOptions, retries: int, tag: str, attempts: Any) -> None:
        """Create the Stylizer, once for all pictures; ``attempts`` is a handle of Attempts."""
        save_memory()
        # Not grouped by shape, but nearly all pictures are wide or tall.
        self._stylizer, self._styles = Stylizer(engine, shapes=SHAPES), work.StyleCache()
        self._retries, self._tag, self._attempts = retries, tag, attempts
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Rows in JSON of a batch of pickled jobs; a full disk is {"stop": message}."""
        return {"row": [self._end(pickle.loads(job)) for job in batch["job"]]}

    def _end(self, job: Job) -> str:
        try:
            row = self._make(job)
        except StorageFullError as error:
            return json.dumps({"stop": str(error)})
        self._attempts.end.remote(job.output)
        return replace(row, worker=self._name).to_json()

    def _begin(self, job: Job) -> int:
        import ray

        attempt: int = ray.get(self._attempts.begin.remote(job.output))
        return attempt

    def _make(self, job: Job) -> Row:
        while (attempt := self._begin(job)) <= self._retries + 1:
            try:
                made = work.make(self._stylizer, work.load(job, self._styles))
                return replace(work.write(made, self._tag), attempts=attempt)
            except StorageFullError:
                raise
            except Exception as error:
                if work.is_final(error) or attempt > self._retries:
                    return work.failure(job, with_kind(error), attempt)
        return work.failure(
            job, f"{job.content}: its actor died, perhaps for want of memory", attempt - 1
        )


class RayExecutor:
    """Execution by actors of a Ray cluster; contents, styles and outputs must be reachable there.

    Each actor has the engine's threads as cores, ``THREADS`` where it names none, a GPU where its
    device asks for one, and the memory of a worker. Lost actors are Ray's to replace.
    """

    def __init__(self, engine: EngineOptions, options: BatchOptions) -> None:
        """Connect to the cluster; without an address one starts here with the first picture.

        Raises:
            BatchError: Ray is missing or cannot be reached.
        """
        try:
            import ray.data  # noqa: F401 - whether it is there
        except ImportError as error:
            raise BatchError(
                f'--executor ray needs {error.name}; run: pip install "nst-fast[ray]"'
            ) from None
        self._engine = replace(engine, threads=Layout.choose(engine, options).threads)
        self._options = options
        if options.address is not None:
            _connect(options.address)

    def __call__(self, jobs: Sequence[Job], tag: str, watch: Watch) -> Rows:
        """Yield the row of each job; nobody is told who starts with what."""
        import ray

        if any(job.after for job in jobs):
            raise BatchError("--warm-start is for --executor local: frames follow each other")
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"job": pickle.dumps(job)} for job in jobs]
        made = ray.data.from_items(
            items, override_num_blocks=min(len(items), MOST_BLOCKS)
        ).map_batches(
            Maker,
            fn_constructor_args=(self._engine, self._options.retries, tag, _attempts()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self._options.workers),
            num_cpus=self._engine.threads,
            # Ray hides the GPUs from an actor that did not ask for one.
            num_gpus=int(self._engine.device.startswith("cuda")),
            memory=_memory(jobs, self._engine),
        )
        for item in made.iter_rows():
            if item["row"].startswith('{"stop"'):
                raise BatchError(json.loads(item["row"])["stop"])
            yield Row.from_json(item["row"])


def _memory(jobs: Sequence[Job], engine: EngineOptions) -> float:
    """Bytes that an actor asks for, so that a machine has no more of them than it can hold.

    What no machine has is not asked for, as the actor would be waited for without end: one works
    there, as on a machine by itself.
    """
    import ray

    most = max((node["Resources"].get("memory", 0.0) for node in ray.nodes()), default=0.0)
    return min(worker_memory(engine, largest(jobs), SHAPES) + recording(jobs), most)


def _attempts() -> Any:
    """Start Attempts on the machine of the driver: where that is lost, so is the run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()


def _connect(address: str) -> None:
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    try:
        # That of a cluster that is ending, too, as long as a process of it is there.
        found = canonicalize_bootstrap_address(address) if address == "auto" else address
        parts = urlsplit(found if "://" in found else f"ray://{found}")
        if parts.port is not None:  # ray.init would try for minutes
            socket.create_connection((parts.hostname or "", parts.port), CONNECT).close()
        ray.init(address=found, ignore_reinit_error=True, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise BatchError(
            f"--address {address} cannot be reached ({one_line(error)}); "
            "give HOST:PORT as ray start --head printed it"
        ) from None

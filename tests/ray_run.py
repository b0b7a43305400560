"""A batch on two Ray nodes, of which one is killed once both have made pictures.

One picture is filmed, compared and saves its state; one is damaged; another kills whichever actor
begins it, as long as a file lies beside it. What the runs came to is left in ``told.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from batches import ENGINE, make_jobs

from nst_fast.batch import BatchOptions, BatchRunner, Job, MakingOptions, Row, work


def poison_actors() -> None:
    """Let this process die of a picture with a .poison file; Ray calls it in each worker."""
    load = work.load

    def deadly(job: Job, styles: work.StyleCache) -> work.Loaded:
        if Path(job.content).with_suffix(".poison").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return load(job, styles)

    work.load = deadly


class KillNode:
    def __init__(self, kill) -> None:
        self.workers: set[str] = set()
        self.killed = False
        self._kill = kill

    def begin(self, todo: int, done: int) -> None:
        pass

    def started(self, worker: str, content: str) -> None:
        pass

    def ended(self, row: Row) -> None:
        self.workers |= {row.worker} - {""}
        if len(self.workers) == 2 and not self.killed:
            self.killed = True
            self._kill()


def main(root: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    memory = {"num_cpus": 1, "object_store_memory": 100_000_000}
    nodes = Cluster(initialize_head=True, head_node_args=memory | {"include_dashboard": False})
    second = nodes.add_node(**memory)
    nodes.wait_for_nodes(60)
    watcher = KillNode(lambda: nodes.remove_node(second, allow_graceful=False))
    jobs = make_jobs(root / "in", 60, steps=150)
    film, compared = (str(root / "besides" / f"p003.{ending}") for ending in ("webp", "png"))
    besides = MakingOptions(record=film, compare=compared, save_every=50)
    jobs[3] = replace(jobs[3], making=besides)
    Path(jobs[5].content).write_bytes(b"no picture")
    poison = Path(jobs[7].content).with_suffix(".poison")
    poison.touch()
    ray.init(nodes.address, runtime_env={"worker_process_setup_hook": poison_actors})
    options = BatchOptions(executor="ray", address=nodes.address, retries=1)
    first = BatchRunner(jobs, root / "out", engine=ENGINE, options=options).run([watcher])
    poison.unlink()
    again = BatchRunner(jobs, root / "out", engine=ENGINE, options=options).run()
    told = {"killed": watcher.killed, "first": vars(first), "again": vars(again)}
    (root / "told.json").write_text(json.dumps(told))
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

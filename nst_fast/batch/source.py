"""Jobs of any iterable, read in a thread: who takes them never waits for where they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from multiprocessing import Pipe
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread

from nst_fast.batch.jobs import Job


class Source:
    """One job after another, each read when it is asked for; use it as ``contextlib.closing`` does.

    Attributes:
        bell: a connection that is readable once something has come.
        ended: whether everything was taken.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        """Start the thread; it reads nothing yet."""
        self.bell, self._ring = Pipe(duplex=False)
        self.ended = False
        self._asked, self._waiting, self._closed = Semaphore(0), False, False
        self._came: SimpleQueue[Job | BaseException | None] = SimpleQueue()
        Thread(target=self._read, args=(iter(jobs),), daemon=True, name="jobs").start()

    def take(self) -> Job | None:
        """The next job; None where none has come yet, or none will.

        Raises:
            BaseException: what the iterable raised.
        """
        if self.ended:
            return None
        if not self._waiting:
            self._waiting = True
            self._asked.release()
        try:
            came = self._came.get_nowait()
        except Empty:
            return None
        self._waiting = False
        self.bell.recv_bytes()
        if isinstance(came, Job):
            return came
        self.ended = True
        if came is not None:
            raise came
        return None

    def close(self) -> None:
        """Let the thread end, and the iterable with it; one that blocks is not waited for."""
        self._closed = True
        self._asked.release()
        self.bell.close()

    def _read(self, jobs: Iterator[Job]) -> None:
        came: Job | BaseException | None = None
        while True:
            self._asked.acquire()
            if self._closed:
                break
            try:
                came = next(jobs, None)
            except BaseException as error:
                came = error
            self._came.put(came)
            with contextlib.suppress(OSError):  # closed meanwhile
                self._ring.send_bytes(b"!")
            if not isinstance(came, Job):
                break
        self._ring.close()
        if hasattr(jobs, "close"):  # a generator may hold files or threads
            jobs.close()

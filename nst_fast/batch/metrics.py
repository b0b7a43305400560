"""Prometheus metrics of a run, served as text at ``/metrics``."""

from __future__ import annotations

from types import TracebackType

from nst_fast.batch.journal import Row
from nst_fast.errors import BatchError, one_line


class Metrics:
    """An Observer that counts; use it as a context manager, which ends the server."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Serve on a port of the interface that has this address; "0.0.0.0" is all of them.

        Raises:
            BatchError: prometheus_client is missing, or the port cannot be had.
        """
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise BatchError(
                '--metrics-port needs prometheus_client; run: pip install "nst-fast[metrics]"'
            ) from None
        registry = prometheus.CollectorRegistry()
        self._pictures = prometheus.Counter(
            "nst_fast_pictures", "Pictures that ended.", ["status"], registry=registry
        )
        self._seconds = prometheus.Counter(
            "nst_fast_seconds", "Time of workers by part.", ["part"], registry=registry
        )
        self._bytes = prometheus.Counter("nst_fast_bytes", "Written.", registry=registry)
        self._attempts = prometheus.Counter("nst_fast_attempts", "Tries.", registry=registry)
        self._left = prometheus.Gauge("nst_fast_left", "Pictures to do.", registry=registry)
        for status in ("done", "failed"):
            self._pictures.labels(status)
        try:
            self._server, self._thread = prometheus.start_http_server(port, host, registry=registry)
        except (OSError, OverflowError) as error:
            raise BatchError(
                f"--metrics-port {port} cannot be had on {host} ({one_line(error)}); take another, "
                "or another --metrics-host"
            ) from None

    def begin(self, todo: int, done: int) -> None:
        """See Observer."""
        self._left.set(todo)

    def started(self, worker: str, content: str) -> None:
        """See Observer."""

    def ended(self, row: Row) -> None:
        """See Observer."""
        self._pictures.labels(row.status).inc()
        self._attempts.inc(row.attempts)
        self._bytes.inc(row.length)
        self._left.dec()
        for part, seconds in row.seconds.items():
            self._seconds.labels(part).inc(seconds)

    def __enter__(self) -> Metrics:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

"""Sessions on a GPU: one graph of fixed shapes in arrays of the device; running only enqueues."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nst_fast import forks
from nst_fast.device import DeviceArray, Launcher
from nst_fast.errors import DeviceMemoryError, ProviderError, one_line
from nst_fast.gpu import providers
from nst_fast.graph.graph import Graph
from nst_fast.library import GPU_PROVIDERS, Precision, Provider, onnxruntime

logger = logging.getLogger(__name__)
# As CUDA, and the arena of onnxruntime, put it.
OUT_OF_MEMORY = re.compile(
    r"out.of.memory|failed to allocate memory|MemoryAllocation", re.IGNORECASE
)
WARM_UP = 3  # runs: cuDNN searches its kernels in the first, a graph is captured in the next


class DeviceSession:
    """One graph on a GPU provider, bound to arrays of the device; ``run`` only enqueues.

    Attributes:
        inputs: arrays to fill before :meth:`run`, by name, of the graph's dtypes.
        outputs: arrays that :meth:`run` overwrites, by name.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        provider: Provider,
        precision: Precision,
        launcher: Launcher,
        buffers: Mapping[str, DeviceArray] | None = None,
        recorded: bool = True,
    ) -> None:
        """Compile the graph, bind its buffers, and capture its run as a CUDA graph.

        Where capturing fails, or a replay does not see new inputs, it runs without.

        Args:
            graph: with the shapes and dtypes of its inputs and outputs set.
            provider: "cuda" or "tensorrt"; "cpu" for a Launcher on the host.
            precision: that the graph was written for.
            launcher: holds the arrays; the session enqueues on its stream.
            buffers: arrays to bind instead of new ones, so that sessions can share them.
            recorded: as a CUDA graph of its own; else a run can be part of a larger one, as it
                neither waits nor allocates.

        Raises:
            DeviceMemoryError: it does not fit into the GPU's memory.
            ProviderError: the session could not be created, or runs on another provider.
        """
        self.provider = provider
        self._process = forks.hold(self)
        given = buffers or {}

        def arrays(ends: Mapping[str, tuple[int, ...]]) -> dict[str, DeviceArray]:
            return {
                name: given[name] if name in given else launcher.zeros(shape, graph.dtype(name))
                for name, shape in ends.items()
            }

        self.inputs, self.outputs = arrays(graph.inputs), arrays(graph.outputs)
        self._launcher = launcher
        open_session = functools.partial(
            providers.open_session, graph.to_model(), provider, precision, launcher
        )
        self._run = self._open(open_session, recorded=recorded)

    def run(self) -> None:
        """Enqueue the computation of every output; the host does not wait.

        Raises:
            ProviderError: the provider failed, for instance for want of memory; or this is a
                fork of the process that made the session.
        """
        forks.require(self._process, f"a session of provider {self.provider}")
        try:
            self._run()
        except Exception as error:
            raise self._failure("failed", error) from None

    def _failure(self, what: str, error: Exception) -> ProviderError:
        kind = DeviceMemoryError if OUT_OF_MEMORY.search(str(error)) else ProviderError
        return kind(
            f"provider {self.provider} {what}: {one_line(error)}; "
            "try a smaller size or another provider"
        )

    def _open(self, open_session: Callable[..., Any], *, recorded: bool) -> Callable[[], None]:
        if recorded and self.provider in GPU_PROVIDERS:
            run, reason = self._capture(open_session)
            if run is not None:
                return run
            logger.warning("%s: no CUDA graph, going on without: %s", self.provider, reason)
        try:
            run = self._bind(open_session(graphs=False), captured=False)
            for _ in range(WARM_UP):
                run()
        except ProviderError:
            raise
        except Exception as error:
            raise self._failure("could not load the graph", error) from None
        return run

    def _capture(self, open_session: Callable[..., Any]) -> tuple[Callable[[], None] | None, str]:
        """What replays a CUDA graph of the session; or None, and why there is none."""
        try:
            run = self._bind(open_session(graphs=True), captured=True)
            if self._sees_new_inputs(run):
                return run, ""
            return None, "a replay gave the result of older inputs"
        except ProviderError:
            raise
        except Exception as error:
            if OUT_OF_MEMORY.search(str(error)):
                raise self._failure("failed", error) from None
            return None, one_line(error)

    def _bind(self, session: Any, *, captured: bool) -> Callable[[], None]:
        binding = session.io_binding()
        device, index = self._launcher.ort_device
        for bind, arrays in (
            (binding.bind_input, self.inputs),
            (binding.bind_output, self.outputs),
        ):
            for name, array in arrays.items():
                address = self._launcher.address(array)
                bind(name, device, index, array.dtype.type, array.shape, address)
        run_options = onnxruntime().RunOptions()
        run_options.log_severity_level = 3
        # Ordered by the stream that sessions and kernels share; the host goes on.
        run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if captured:  # without a name for the graph, every run raises and catches an exception
            run_options.add_run_config_entry("gpu_graph_id", "0")
        return functools.partial(session.run_with_iobinding, binding, run_options)

    def _sees_new_inputs(self, run: Callable[[], None]) -> bool:
        """Whether a captured run computes from what the inputs hold now.

        Some replays gave the first inputs' result for ever (onnxruntime#20050).
        """
        smallest = min(self.outputs.values(), key=lambda array: int(array.size))
        found: list[Any] = []
        for value in (0.0, 0.5):
            # No two alike: a loss of the difference of two inputs would not move.
            for index, array in enumerate(self.inputs.values(), 1):
                self._launcher.fill(array, value * index)
            for _ in range(WARM_UP):
                run()
            found.append(self._launcher.download(smallest))
        for array in self.inputs.values():
            self._launcher.fill(array, 0.0)
        # What is not a number tells nothing; the check of the gradient has the last word.
        return not np.array_equal(found[0], found[1])

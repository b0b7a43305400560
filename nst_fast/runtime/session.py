"""Sessions: one graph of fixed shapes on one provider, in buffers that never move.

Inputs and outputs are arrays allocated once and bound once by address; ``run`` allocates and
copies nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nst_fast import forks
from nst_fast.errors import ProviderError, one_line
from nst_fast.graph.graph import Graph
from nst_fast.host import Float32, aligned_zeros
from nst_fast.library import (
    CPU_EP,
    Precision,
    Provider,
    onnxruntime,
    session_options,
)
from nst_fast.limits import memory_hint
from nst_fast.runtime import compiled, openvino


class Session:
    """One graph on a provider of the CPU, bound to numpy arrays.

    Attributes:
        inputs: arrays to fill before :meth:`run`, by name, float32.
        outputs: arrays that :meth:`run` overwrites, by name, float32.
        provider: where it runs.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        provider: Provider,
        precision: Precision,
        threads: int,
        buffers: Mapping[str, Float32] | None = None,
    ) -> None:
        """Compile the graph and bind its buffers.

        Args:
            graph: with the shapes of its inputs and outputs set.
            provider: "cpu" or "openvino".
            precision: "bf16" needs OpenVINO.
            threads: of the provider, for this session.
            buffers: arrays to bind instead of new ones, so that sessions can share them.

        Raises:
            ProviderError: the session could not be created, or runs on another provider.
        """
        self.provider = provider
        self._process = forks.hold(self)
        given = buffers or {}
        self.inputs = {k: _buffer(k, s, given) for k, s in graph.inputs.items()}
        self.outputs = {k: _buffer(k, s, given) for k, s in graph.outputs.items()}
        try:
            self._run = self._bind(graph.to_model(), precision, threads)
        except ProviderError:
            raise
        except Exception as error:
            raise ProviderError(
                f"provider {provider} could not load the graph: {one_line(error)}{memory_hint()}"
            ) from None

    def run(self) -> None:
        """Compute every output from the inputs; blocks until they are written.

        Raises:
            ProviderError: the provider failed, for instance for want of memory; or this is a
                fork of the process that made the session.
        """
        forks.require(self._process, f"a session of provider {self.provider}")
        try:
            self._run()
        except Exception as error:
            raise ProviderError(
                f"provider {self.provider} failed: {one_line(error)}; "
                f"try a smaller size or another provider{memory_hint()}"
            ) from None

    def _bind(self, model: bytes, precision: Precision, threads: int) -> Callable[[], None]:
        if self.provider == "openvino":
            config = openvino.config(precision, threads)
            device = openvino.plugin_device()
            if device is None:
                return self._bind_openvino(model, config)
            options = session_options(threads)
            load_config = json.dumps({"CPU": config})
            options.add_provider_for_devices([device], {"load_config": load_config})
            return self._bind_onnxruntime(model, options, openvino.OPENVINO_EP)
        if self.provider != "cpu":
            raise ProviderError(f"provider {self.provider} runs on arrays of a GPU")
        if precision != "fp32":
            raise ProviderError("onnxruntime's CPU provider computes in float32 only")
        options = session_options(threads)
        options.enable_mem_pattern = False  # halves the peak of a joint graph at the same speed
        return self._bind_onnxruntime(model, options, CPU_EP)

    def _bind_onnxruntime(self, model: bytes, options: Any, expected: str) -> Callable[[], None]:
        runtime = onnxruntime()
        chosen = {"providers": [CPU_EP]} if expected == CPU_EP else {}
        session = runtime.InferenceSession(model, options, **chosen)
        actual = session.get_providers()[0]
        if actual != expected:
            raise ProviderError(f"asked for {expected}, onnxruntime chose {actual}")
        binding = session.io_binding()
        for bind, arrays in (
            (binding.bind_input, self.inputs),
            (binding.bind_output, self.outputs),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        run_options = runtime.RunOptions()
        run_options.log_severity_level = 3
        return functools.partial(session.run_with_iobinding, binding, run_options)

    def _bind_openvino(self, model: bytes, config: dict[str, str]) -> Callable[[], None]:
        from openvino import Tensor

        request = compiled.compile_model(model, config).create_infer_request()
        for name, array in {**self.inputs, **self.outputs}.items():
            request.set_tensor(name, Tensor(array, shared_memory=True))

        def run() -> None:
            request.infer()

        return run


def _buffer(name: str, shape: tuple[int, ...], given: Mapping[str, Float32]) -> Float32:
    if name not in given:
        return aligned_zeros(shape)
    array = given[name]
    if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ProviderError(
            f"buffer {name}: expected contiguous float32 {shape}, found {array.dtype} {array.shape}"
        )
    return array

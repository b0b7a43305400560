"""What is tried next where something cannot be made on a GPU.

Where TensorRT fails, CUDA takes its place from then on, if the user left the choice open. Where
memory does not hold an image as a whole, it is seen in windows, half as large each time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from nst_fast.backend import Backend
from nst_fast.encoders import Encoder
from nst_fast.errors import DeviceMemoryError, ProviderError
from nst_fast.graph.parts import Shape
from nst_fast.losses import Objective
from nst_fast.tiles import halo, smaller

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


class Fallback:
    """The backend in use, and the side of the windows that each size of image needs.

    Attributes:
        backend: where things are made; changes where TensorRT fails.
    """

    def __init__(self, encoder: Encoder, backend: Backend, *, cuda_instead: bool) -> None:
        """Start with whole images; ``cuda_instead``: CUDA may take the place of TensorRT."""
        self.backend = backend
        self._encoder = encoder
        self._cuda_instead = cuda_instead
        # By height, width and margin: sides are multiples of the margin.
        self._sides: dict[tuple[int, int, int], int] = {}

    def attempt(
        self,
        objective: Objective,
        shape: Shape,
        make: Callable[[int | None], Value],
        side: int | None = None,
    ) -> Value:
        """Make something for images, again and again until it works or nothing is left to try.

        Args:
            objective: what it is to serve.
            shape: N, H, W of the images.
            make: makes it on ``backend``; takes the side of the windows in pixels, None for whole
                images.
            side: of the windows to begin with.

        Raises:
            DeviceMemoryError: several images do not fit together, or not even small windows do.
            ProviderError: the provider failed, and no other may take its place.
        """
        n, height, width = shape
        margin = halo(self._encoder, objective.taps)
        window = height, width, margin
        while True:
            side = self._sides.get(window, side)
            try:
                return make(side)
            except DeviceMemoryError as error:
                less = smaller(side or max(height, width), margin)
                if n > 1 or less is None:
                    raise
                reason = str(error)
            except ProviderError as error:
                if not self._cuda_instead or self.backend.provider != "tensorrt":
                    raise
                logger.warning("going on with CUDA: %s", error)
                self.backend = replace(self.backend, provider="cuda")
                continue
            # Only now: the error holds on to what was allocated before it.
            if self.backend.launcher is not None:
                self.backend.launcher.give_memory_back()
            logger.warning("%s; going on in windows of %d pixels", reason, less)
            self._sides[window] = less

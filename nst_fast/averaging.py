"""The mean of the points that an optimiser went through.

    z̄_t = z̄_(t−1) + (z_t − z̄_(t−1)) / min(t, K)

The plain mean of the first K points, then an exponential one that forgets at the rate 1/K: what a
step overshoots, the next ones take back. After Polyak and Juditsky 1992, "Acceleration of
stochastic approximation by averaging"; it can be asked for at any step. The picture is linear in z,
so this is the mean of the pictures.
"""

from __future__ import annotations

import numpy as np

from nst_fast.device import DeviceArray, Memory
from nst_fast.state import Arrays, State


class Average:
    """The mean of z, on the CPU or on a GPU.

    Attributes:
        mean: of the points so far, like z; the first z before there are any.
    """

    def __init__(self, z: DeviceArray, steps: int, memory: Memory) -> None:
        """Begin at ``z``, float32, which comes from ``memory``; ``steps`` are K, at least 1."""
        self.mean = memory.zeros(z.shape)
        self._scaled = memory.zeros(z.shape)
        memory.copy(z, self.mean)
        self._memory, self._steps = memory, steps
        self._count = 0

    def add(self, z: DeviceArray) -> None:
        """Take a point in; on a GPU that is enqueued."""
        self._count += 1
        share = 1.0 / min(self._count, self._steps)
        self._memory.copy(self.mean, self.mean, 1.0 - share)
        self._memory.copy(z, self._scaled, share)
        self._memory.add(self._scaled, self.mean)

    def state(self) -> Arrays:
        """The mean, and of how many points it is."""
        return {"mean": self._memory.download(self.mean), "averaged": np.array([self._count])}

    def restore(self, state: State) -> None:
        """Go on from a state; raises StateError where it does not fit."""
        state.into({"mean": self.mean}, self._memory)
        count = np.array([self._count])
        state.into({"averaged": count})
        self._count = int(count[0])

"""Per-step noise from one Brownian path per sample, so that more steps refine the picture instead of changing it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.ops import Draw
from fewstep.core.plan import as_plan
from fewstep.core.process import process_from_config
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "brownian",
        kind="noise",
        paper="Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)",
        arxiv="2206.00364",
        claim="noise from one path per sample: another step count gives nearly the same picture",
        use="BrownianNoise",
    ),
)

LEAST = -12  # the path's log-SNR starts here; what lies before is one draw
_BEFORE = 1 << 30  # the draw's number for it


class BrownianNoise:
    """A source of per-step noise for one plan: `plan.run(model, noise, source=BrownianNoise(plan, seed, first))`.

    The reverse SDE's step from a to b adds the increment of a Brownian motion W in the clock `c = (alpha / sigma)^2`,
    from c_a to c_b, whatever the grid: two half steps add up to the whole one. So `normal` gives
    `(W(c_b) - W(c_a)) / sqrt(c_b - c_a)`, standard normal, and plans with other steps see the same path at other
    points. (That is exact for the SDE with eta = 1; for another eta the increments of a step would be weighted a
    little differently.) Noise that is no stretch of the path, as that of churn, is `Noise`'s own.

    c runs over many orders of magnitude, so each factor of e^2 in it has a path of its own (`torchsde.BrownianTree`,
    which does not depend on where it was evaluated before), from a seed made of `seed`, the sample's number and the
    factor's.

    Raises:
        ValueError: a plan that draws no noise.
        ModuleNotFoundError: torchsde is missing, with the extra that brings it.
    """

    def __init__(self, sampler: Sampler, seed: int = 0, first: int = 0):
        plan = as_plan(sampler)
        self._noise = Noise(seed, first)
        try:
            import torchsde
        except ModuleNotFoundError:
            raise ModuleNotFoundError("Brownian paths need torchsde: pip install 'fewstep[sde]'") from None
        if not plan.stochastic:
            raise ValueError(f"the plan {plan.name!r} adds no noise of a fixed step, so it has no Brownian path")
        self._tree = torchsde.BrownianTree
        process = process_from_config(dict(plan.process))
        self._spans = {
            op.draw: (max(process.log_snr(op.span[0]), LEAST), process.log_snr(op.span[1]))
            for op in plan.ops
            if isinstance(op, Draw) and op.span is not None
        }
        self._paths: dict[tuple[int, int], Any] = {}

    def _path(self, sample: int, part: int, size: int) -> Any:
        """The sample's path for log-SNRs from `part` to `part + 1`, its clock running from 0 to 1."""
        key = (sample, part)
        if key not in self._paths:
            entropy = _entropy(self._noise.seed, sample, part)
            zero = torch.zeros(size, dtype=torch.float64)
            self._paths[key] = self._tree(t0=0.0, w0=zero, t1=1.0, entropy=entropy, tol=1e-5)
        return self._paths[key]

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals of `shape` `(B, *sample)`, row i those of sample `first + i`."""
        if draw not in self._spans:
            return self._noise.normal(draw, shape, device, dtype)
        low, high = self._spans[draw]
        size = math.prod(shape[1:])
        parts = range(math.floor(low), math.ceil(high))
        for key in [key for key in self._paths if key[1] < parts.start]:  # times fall: what is past is not asked again
            del self._paths[key]
        total = torch.zeros(shape[0], size, dtype=torch.float64)
        variance = -math.expm1(2 * (low - high))  # of the whole increment, in units of c at the end
        if low == LEAST:  # the path before LEAST, from c = 0
            before = self._noise.normal(_BEFORE, shape, "cpu", torch.float64).reshape(shape[0], size)
            total += before * math.exp(low - high)
            variance = 1.0
        for part in parts:
            scale = math.exp(part - high) * math.sqrt(math.expm1(2.0))  # sqrt of this factor's length in c
            u, v = (_position(min(max(x, part), part + 1) - part) for x in (low, high))
            if v > u:
                for i in range(shape[0]):
                    total[i] += scale * self._path(self._noise.first + i, part, size)(u, v)
        return (total / math.sqrt(variance)).reshape(shape).to(device, dtype)


def _position(x: float) -> float:
    """Where the log-SNR `part + x` lies on its factor's clock."""
    return math.expm1(2 * x) / math.expm1(2.0)


def _entropy(seed: int, sample: int, part: int) -> int:
    """A seed of its own for each sample and factor."""
    import numpy as np

    return int(
        np.random.SeedSequence((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, sample, part - LEAST)).generate_state(1)[0]
    )

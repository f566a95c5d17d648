"""Relic: rounded latents, whose rounding error is taken for the noise of a level and denoised from there."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.operators.operator import LinearOperator
from fewstep.restoration.arithmetic import Adaptive, decode, encode
from fewstep.restoration.codec import batches
from fewstep.restoration.dmid import tail
from fewstep.sampling.build import plan as make_plan

METHODS = (
    Method(
        "relic",
        kind="codec",
        paper="Lossy Image Compression with Foundation Diffusion Models (Relic et al., 2024)",
        arxiv="2404.08580",
        claim="rounded samples, denoised from the level that their rounding error has",
        use="Relic",
    ),
)

LEVEL, CHANNEL = struct.Struct("<f"), struct.Struct("<ffiH")  # a channel: its middle, its scale, the least, how many
MOST = (1 << 16) - 1  # whole numbers that a channel may run through


@dataclass(frozen=True)
class Relic:
    """States, each channel less its mean and divided by `step` times its deviation, rounded, and coded with frequencies
    that are learnt on the way; the tail of a plan from the level, `sigma / alpha`, that is the root mean square of
    what rounding changed.

    A channel is an index of a sample's first axis; means, deviations and the level are those of all pictures that are
    coded together, and are sent.

    Args:
        step: of the rounding, in deviations of a channel.
        solver, nfe: of the tail, at even times of the process; with 0 evaluations the rounded states are the result.
    """

    step: float = 1.0
    nfe: int = 4
    solver: str = "ddim"

    def __post_init__(self) -> None:
        if not 0 < self.step < float("inf"):
            raise ValueError(f"step must be above 0, got {self.step}")
        check_whole("nfe", self.nfe, 0)

    def encode(
        self, model: Denoiser, y: Tensor, operator: LinearOperator | None, condition: Mapping[str, Any], rows: int
    ) -> bytes:
        """The states `(B, *shape)` as bytes.

        Raises:
            ValueError: steps so small that a channel has over 65,535 values, or so large that the process has no level
                of their error; a solver that has no plan.
        """
        scales = [_scale(channel, self.step) for channel in y.double().cpu().unbind(1)]
        whole, rounded = quantised(y, scales)
        level = float((rounded - y.double().cpu()).square().mean().sqrt())
        self.plan(model, level)  # which says what is wrong before anything is written
        head = [LEVEL.pack(level)]
        symbols: list[int] = []
        sizes = []
        for (middle, scale), numbers in zip(scales, whole.unbind(1), strict=True):
            least, size = int(numbers.min()), int(numbers.max() - numbers.min()) + 1
            if size > MOST:
                raise ValueError(
                    f"a channel runs through {size} steps, at most {MOST}: step={self.step:g} is too small"
                )
            head.append(CHANNEL.pack(middle, scale, least, size))
            symbols += (numbers - least).flatten().tolist()
            sizes.append(size)
        return b"".join(head) + encode(symbols, _laws(sizes, whole[:, 0].numel()))

    def decode(self, model: Denoiser, payload: bytes, count: int, condition: Mapping[str, Any], rows: int) -> Tensor:
        """States `(count, *shape)`: the rounded ones, denoised from their level."""
        level, rounded = self.rounded(model, payload, count)
        return self.denoised(model, rounded, level, condition, rows)

    def rounded(self, model: Denoiser, payload: bytes, count: int) -> tuple[float, Tensor]:
        """The level and the rounded states `(count, *shape)` that bytes hold."""
        channels, *rest = model.shape or ()
        (level,), end = LEVEL.unpack_from(payload), LEVEL.size + channels * CHANNEL.size
        told = list(CHANNEL.iter_unpack(payload[LEVEL.size : end]))
        each = torch.Size((count, *rest)).numel()
        symbols = decode(payload[end:], _laws([size for *_, size in told], each))
        whole = torch.tensor(symbols).view(channels, count, *rest).transpose(0, 1)
        parts = [
            middle + scale * (own + least).double()
            for own, (middle, scale, least, _) in zip(whole.unbind(1), told, strict=True)
        ]
        return level, torch.stack(parts, 1).float()

    def plan(self, model: Denoiser, level: float) -> Plan | None:
        """The tail from a level; None where there is nothing to denoise, or no evaluation to do it."""
        if self.nfe == 0 or level == 0:
            return None
        made = make_plan(model.process, self.solver, timesteps=tail(model.process, level, self.nfe))
        if not isinstance(made, Plan):
            raise ValueError(f"'relic' runs the tail of a plan, and {self.solver!r} is none")
        return made

    def denoised(
        self, model: Denoiser, rounded: Tensor, level: float, condition: Mapping[str, Any], rows: int = 256
    ) -> Tensor:
        """The states from a level on; as they are where nothing was changed by rounding, or without evaluations."""
        plan = self.plan(model, level)
        if plan is None:
            return rounded.to(model.device)
        made = []
        for part, named in batches(model, len(rounded), condition, rows):
            x = rounded[part].to(model.device)
            made.append(plan(model, torch.zeros_like(x), init=x, first=part.start, **named))
        return torch.cat(made)


def _scale(channel: Tensor, step: float) -> tuple[float, float]:
    """The middle and the step of a channel, as float32 holds them."""
    deviation = float(channel.std(correction=0)) or 1.0
    middle, scale = torch.tensor([float(channel.mean()), step * deviation], dtype=torch.float32).tolist()
    return middle, scale


def quantised(x: Tensor, scales: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """States `(B, *shape)` in whole steps of their channels, and what these stand for, in float64."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    middle, scale = (part.reshape(shape) for part in torch.tensor(scales, dtype=torch.float64).unbind(1))
    whole = ((x.double().cpu() - middle) / scale).round()
    return whole.long(), middle + scale * whole


def _laws(sizes: Sequence[int], each: int) -> Iterator[Adaptive]:
    """A channel's law for each of its `each` numbers."""
    for size in sizes:
        law = Adaptive(size)
        yield from (law for _ in range(each))

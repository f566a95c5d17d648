"""DDCM: pictures as the noise that draws them, each step's picked from a codebook that both sides make from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise, Seeds, Source
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction, expand
from fewstep.operators.operator import LinearOperator
from fewstep.restoration.arithmetic import Given, decode, encode
from fewstep.restoration.codec import batches
from fewstep.sampling.build import plan as make_plan

METHODS = (
    Method(
        "ddcm",
        kind="codec",
        paper="Compressed Image Generation with Denoising Diffusion Codebook Models (Ohayon et al., 2025)",
        arxiv="2502.01189",
        claim="pictures as indices into seeded codebooks of noise; decoding is sampling, bit for bit",
        use="DDCM",
        facts={"restores": True},
    ),
    Method(
        "codebook",
        kind="noise",
        paper="Compressed Image Generation with Denoising Diffusion Codebook Models (Ohayon et al., 2025)",
        arxiv="2502.01189",
        claim="per-step noise that is one of K vectors; samples drawn with random ones keep their law",
        use="Codebook",
    ),
)

AT_ONCE = 1 << 22  # numbers of a codebook that are held at once


@dataclass(frozen=True)
class Codebook:
    """Noise whose draw d is, for sample i, entry `chosen[d, i]` of the d-th codebook.

    Entries 2 k and 2 k + 1 of codebook d are draw d of sample number k under the seed, of `fewstep.core.noise.Noise`,
    and its negative. K independent vectors would have a mean of size `1 / sqrt(K)`, which every sample drawn by the
    codebook would share; pairs have none, and one of them is as near to any direction as the best of K.

    Args:
        chosen: `(draws, B)` whole numbers; the draws are 0 (the start) and those of the steps.
    """

    chosen: Tensor
    seed: int = 0

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        entries = self.chosen[draw]
        numbers = tuple((entries // 2).tolist())
        made = Seeds((self.seed,) * len(numbers), numbers).normal(draw, shape, device, dtype)
        return expand(1.0 - 2.0 * (entries % 2).to(device, dtype), made) * made


class Choosing:
    """Noise that is chosen as it is asked for: of the `entries` of its codebook the one with the largest product with
    `towards(x0_hat)`, where `watch` has seen the model's last answer x0_hat (None before the first).

    `chosen` are the choices `(B,)` by their draws.
    """

    def __init__(self, entries: int, seed: int, towards: Callable[[Tensor | None], Tensor]):
        self.entries, self.seed, self.towards = entries, seed, towards
        self.x0: Tensor | None = None
        self.chosen: dict[int, Tensor] = {}

    def watch(self, number: int, t: Any, x: Tensor, prediction: Prediction) -> None:
        self.x0 = prediction.x0

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        wanted = self.towards(self.x0).to(dtype).flatten(1)
        best = torch.full((shape[0],), -torch.inf, dtype=dtype, device=device)
        which = torch.zeros(shape[0], dtype=torch.long, device=device)
        made = torch.zeros(shape, dtype=dtype, device=device)
        step = 2 * max(1, AT_ONCE // (2 * wanted.shape[1]))
        for first in range(0, self.entries, step):
            size = min(step, self.entries - first)
            half = Noise(self.seed, first // 2).normal(draw, (-(-size // 2), *shape[1:]), device, dtype)
            book = torch.stack((half, -half), 1).flatten(0, 1)[:size]
            score, entry = (wanted @ book.flatten(1).T).max(1)
            better = score > best
            best, which = torch.where(better, score, best), torch.where(better, first + entry, which)
            made = torch.where(expand(better, made).bool(), book[entry], made)
        self.chosen[draw] = which
        return made


@dataclass(frozen=True)
class DDCM:
    """A stochastic plan, each of whose draws is entry k of a codebook of `entries` vectors: of the one with the largest
    `<z_k, x0 - x0_hat>`, x0 the picture and x0_hat the model's last answer (zero before the first). The indices are all
    that is kept, `log2 entries` bits a draw.

    With an operator A and a measurement y in place of a picture the product is that with `A^T (y - A x0_hat)`, and
    what is decoded is a restored picture.

    Args:
        solver, timesteps, nfe: the plan, any with fresh noise at its steps; more evaluations are more bits.
        seed: of the codebooks.
    """

    entries: int = 64
    nfe: int = 20
    solver: str = "ddpm"
    timesteps: str = "karras"
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("entries", self.entries, 2, 1 << 30)
        check_whole("nfe", self.nfe)

    def plan(self, model: Denoiser) -> Plan:
        """The plan; `ValueError` for one that draws no noise, or is none."""
        made = make_plan(model.process, self.solver, timesteps=self.timesteps, nfe=self.nfe)
        if not isinstance(made, Plan) or not draws_of(made)[1:]:
            raise ValueError(
                f"'ddcm' picks the noise of a plan's steps, and {self.solver!r} has none to pick: try ddpm"
            )
        return made

    def encode(
        self, model: Denoiser, y: Tensor, operator: LinearOperator | None, condition: Mapping[str, Any], rows: int
    ) -> bytes:
        """The indices of states `(B, *shape)`, or of measurements of such, `rows` of them at once."""
        plan = self.plan(model)
        chosen = []
        for part, named in batches(model, len(y), condition, rows):
            source = Choosing(self.entries, self.seed, partial(left_of, y[part].to(model.device), operator, model))
            self.run(model, plan, source, part.stop - part.start, named, source.watch)
            chosen.append(torch.stack([source.chosen[draw] for draw in draws_of(plan)], 1).cpu())
        return encode(torch.cat(chosen).flatten().tolist(), repeat(self.law))

    def decode(self, model: Denoiser, payload: bytes, count: int, condition: Mapping[str, Any], rows: int) -> Tensor:
        """The states `(count, *shape)` of the indices: the encoder's own run again."""
        plan = self.plan(model)
        draws = draws_of(plan)
        found = torch.tensor(decode(payload, repeat(self.law, count * len(draws)))).view(count, len(draws))
        chosen = torch.zeros(max(draws) + 1, count, dtype=torch.long)
        chosen[draws] = found.T
        made = [
            self.run(model, plan, Codebook(chosen[:, part], self.seed), part.stop - part.start, named)
            for part, named in batches(model, count, condition, rows)
        ]
        return torch.cat(made)

    @property
    def law(self) -> Given:
        return Given([1] * self.entries)

    def run(
        self, model: Denoiser, plan: Plan, source: Source, count: int, named: Mapping[str, Any], watch: Any = None
    ) -> Tensor:
        """States `(count, *shape)` with a source of noise."""
        assert model.shape is not None
        normal = partial(source.normal, shape=(count, *model.shape), device=model.device)
        return plan(model, model.process.start(normal), source=source, callback=watch, **named)


def draws_of(plan: Plan) -> list[int]:
    """The numbers of a run's draws: the start's, 0, and those of the steps."""
    return [0, *(number for stage in plan.table.stages for number in stage.drawn)]


def left_of(y: Tensor, operator: LinearOperator | None, model: Denoiser, x0: Tensor | None) -> Tensor:
    """Where x0 should still go: `A^T (y - A x0)`, of the identity where there is no operator."""
    if x0 is None:
        x0 = torch.zeros(len(y), *(model.shape or ()), dtype=y.dtype, device=y.device)
    if operator is None:
        return y - x0
    return operator.adjoint(y - operator(x0))

"""Several denoisers as one: each serves a range of noise levels."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, Memory, Part, ask, routed
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, joined

METHODS = (
    Method(
        "experts",
        paper="PanGu-Draw: Advancing Resource-Efficient Text-to-Image Synthesis (Lu et al., 2023)",
        arxiv="2312.16486",
        claim="denoisers trained separately for ranges of noise levels, sampled as one",
        use="Experts",
        facts={"wraps": True, "changes": ("plan",)},
    ),
)


class Several(Denoiser):
    """Base of the denoisers that are several in one: what is known of them is what is known of the first.

    changes: facts that differ from the first one's.

    Raises:
        ValueError: none, or some of another process, shape, range or set of conditions.
    """

    def __init__(self, denoisers: Sequence[Denoiser], **changes: Any):
        super().__init__()
        if not len(denoisers):
            raise ValueError("a mixture needs at least one expert")
        first = denoisers[0]
        for name in ("process", "shape", "value_range"):
            if any(getattr(other, name) != getattr(first, name) for other in denoisers):
                found = [getattr(denoiser, name) for denoiser in denoisers]
                raise ValueError(f"experts must have the same {name}, got {found}")
        if any(dict(other.conditions) != dict(first.conditions) for other in denoisers):
            raise ValueError(f"experts must take the same conditions, got {[sorted(d.conditions) for d in denoisers]}")
        self.denoisers = nn.ModuleList(denoisers)
        self.take(replace(first.facts, plan=None, **changes))

    def _expert(self, number: int) -> Denoiser:
        found = self.denoisers[number]
        assert isinstance(found, Denoiser)
        return found

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return self._expert(0).check_condition(condition, batch, device)

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self._expert(0).encode(data, **condition)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self._expert(0).decode(x, **condition)


class Experts(Several):
    """Routes by time: `denoisers[i]` serves times from `cuts[i - 1]` to `cuts[i]`, the first one nearest the data.

    A time at a cut goes to the noisier side. A run evaluates one time per call, so it costs what one denoiser costs;
    its memory holds the time, which is read from the tensor outside a run. A batch of several times is split among
    them. All answers are of the first denoiser's kind. Which modules run depends on the time, so it is no single graph
    for `torch.compile`; its denoisers are.

    Args:
        denoisers: at least one, of one process, shape and set of conditions.
        cuts: the times between them, increasing: one fewer than denoisers.
    """

    def __init__(self, denoisers: Sequence[Denoiser], cuts: Sequence[float]):
        if len(cuts) != len(denoisers) - 1:
            raise ValueError(f"{len(denoisers)} denoisers are divided by {len(denoisers) - 1} times, got {len(cuts)}")
        if any(a >= b for a, b in zip(cuts, cuts[1:], strict=False)):
            raise ValueError(f"the times between the experts must rise, got {tuple(cuts)}")
        super().__init__(denoisers)
        self.register_buffer("cuts", torch.tensor(cuts, dtype=torch.float64), persistent=False)
        self.cuts: Tensor
        self._cuts = [float(cut) for cut in cuts]

    def config(self) -> dict[str, Any]:
        return {"denoisers": self.denoisers, "cuts": self.cuts.tolist()}

    @property
    def carries(self) -> bool:
        return True

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if memory is None:
            return self._by_reading(x, t, condition)

        def expert(part: Memory | Part) -> int | None:
            return None if part.t is None else bisect.bisect_right(self._cuts, part.t)

        def answer(
            number: int | None, x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]
        ) -> Prediction:
            if number is None:  # a sampler whose samples have times of their own
                memory.count(len(x))
                return self._by_reading(x, t, condition)
            return ask(self._expert(number), x, t, memory.branch(f"expert {number}"), condition)

        return routed(memory, expert, answer, x, t, condition)

    def _by_reading(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Prediction:
        chosen = torch.bucketize(t.double(), self.cuts, right=True)
        if t.ndim == 0:
            return self.denoisers[int(chosen)](x, t, **condition)
        parts = []
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero().squeeze(1)
            own = {name: v[rows] if isinstance(v, Tensor) else v for name, v in condition.items()}
            parts.append((rows, self.denoisers[number](x[rows], t[rows], **own)))
        return joined(parts, x, t)

"""One picture, several captions: each condition draws one part of it, such as its low frequencies or its colours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.memory import AnyMemory
from fewstep.core.methods import Method
from fewstep.core.pictures import as_pictures, data_shape
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.guidance.bands import low_pass
from fewstep.guidance.compose import Members, answers

METHODS = (
    Method(
        "factorized",
        paper="Factorized Diffusion: Perceptual Illusions by Noise Decomposition (Geng et al., 2024)",
        arxiv="2404.11615",
        claim="each linear part of a picture follows its own condition: hybrids of frequencies, colours, halves",
        use="Factorized",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)

# A linear map of samples (B, *shape) to the same shape.
Projector = Callable[[Tensor], Tensor]


def _grey(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True).expand_as(x)


def _moved(x: Tensor, length: int) -> Tensor:
    """The mean of `length` neighbours along the width, which goes round at the edges: a motion blur."""
    return torch.stack([x.roll(k - length // 2, -1) for k in range(length)]).mean(0)


def _kept(x: Tensor, axis: int, first: bool) -> Tensor:
    size = x.shape[axis]
    inside = (torch.arange(size, device=x.device) < size // 2) == first
    return x * inside.to(x.dtype).reshape(-1, *[1] * (-axis - 1))


# By name, with the number that stands after it (`low-2`).
PROJECTORS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all": lambda x, n: x,
    "low": low_pass,
    "high": lambda x, n: x - low_pass(x, n),
    "grey": lambda x, n: _grey(x),
    "colour": lambda x, n: x - _grey(x),
    "left": lambda x, n: _kept(x, -1, True),
    "right": lambda x, n: _kept(x, -1, False),
    "top": lambda x, n: _kept(x, -2, True),
    "bottom": lambda x, n: _kept(x, -2, False),
    "motion": _moved,
    "still": lambda x, n: x - _moved(x, n),
}
NUMBERED = {"low": 2, "high": 2, "motion": 7, "still": 7}  # and the number where none is given


def projector(name: str | Projector) -> Projector:
    """The projector of a name: "low-2" and "high-2" (the pyramid's level, `guidance.bands`), "grey" and "colour", the
    halves "left", "right", "top", "bottom", "motion-7" (a blur of as many pixels along the width) and "still-7" (the
    rest), and "all". `ValueError` for others."""
    if not isinstance(name, str):
        return name
    found = re.fullmatch(r"([a-z]+)(?:-(\d+))?", name)
    stem = found[1] if found else name
    if stem not in PROJECTORS or (found and found[2] and stem not in NUMBERED):
        raise suggest("projector", name, [f"{one}-{NUMBERED[one]}" if one in NUMBERED else one for one in PROJECTORS])
    number = int(found[2]) if found and found[2] else NUMBERED.get(stem, 0)
    if stem in NUMBERED and number < 1:
        raise ValueError(f"the number of a projector must be at least 1, got {name!r}")
    return lambda x: PROJECTORS[stem](x, number)


class Factorized(Wrapper):
    """`sum_i f_i(answer under condition i)` for linear f_i that sum to the identity (Geng et al., equation 5).

    The state is then `sum_i f_i(x)`, each part of which the solver moves by the answer to its own condition. Every kind
    of prediction is a combination of state and answer with the same two numbers, so the rule is the same in every kind
    (under processes with one noise level). All conditions are asked in one call.

    The parts' conditions are named apart as `compose` names them, `text` of the first part, `text_2` of the second, so
    a run can say them anew, for each sample too; what the parts say is where a run says nothing.

    Args:
        parts: pairs of a projector, by name or a function of `(B, *shape)`, and a condition, `{"text": "a circle"}`.
        fixed: (k, picture): part k is that of a real picture `(*shape)` or `(B, *shape)`, noised with the run's own
            noise, and its condition is not asked.

    Raises:
        ValueError: no parts, an unknown projector, projectors that keep another shape or do not sum to the identity, a
            fixed part that does not exist or leaves none to draw.
    """

    picture: Tensor | None

    def __init__(
        self,
        model: Denoiser,
        parts: Sequence[tuple[str | Projector, Mapping[str, Any]]],
        fixed: tuple[int, Any] | None = None,
    ):
        pairs = list(parts)
        if not pairs or any(not isinstance(one, Sequence) or isinstance(one, str) or len(one) != 2 for one in pairs):
            raise ValueError(f"parts must be pairs of a projector and a condition, got {parts!r}")
        self.parts = [(name, dict(condition or {})) for name, condition in pairs]
        self._projectors = [projector(name) for name, _ in self.parts]
        self.members = Members([model] * len(self.parts), [condition for _, condition in self.parts])
        super().__init__(model, plan=None, conditions=self.members.conditions)
        self._fitting: set[tuple[int, ...]] = set()
        if model.shape is not None:
            self._check(model.shape)
        self.kept = None if fixed is None else fixed[0]
        self._encoded: tuple[Tensor, torch.device, torch.dtype] | None = None
        if fixed is not None:
            if fixed[0] not in range(len(self.parts)) or len(self.parts) < 2:
                raise ValueError(
                    f"fixed names one of {len(self.parts)} parts, from 0, and leaves others; got {fixed[0]}"
                )
        real = None if fixed is None else as_pictures(fixed[1], "picture", data_shape(model), model.value_range)
        self.register_buffer("picture", None if real is None else real.to(model.device), persistent=False)

    @property
    def carries(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        named = [name if isinstance(name, str) else "a function" for name, _ in self.parts]
        return self.model.describe() | {"parts": named}

    def config(self) -> dict[str, Any]:
        fixed = None if self.kept is None else (self.kept, self.picture)
        return {"model": self.model, "parts": self.parts, "fixed": fixed}

    def _check(self, shape: tuple[int, ...]) -> None:
        """`ValueError` unless the projectors sum to the identity, on random vectors."""
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = [project(x) for project in self._projectors]
        for (name, _), part in zip(self.parts, found, strict=True):
            if part.shape != x.shape:
                raise ValueError(f"the projector {name!r} must keep the shape {shape}, got {tuple(part.shape[1:])}")
        off = float((sum(found[1:], found[0]) - x).norm() / x.norm())
        if not off < 1e-5:
            raise ValueError(f"the projectors must sum to the identity; their sum is off by {off:.2g} of the sample")
        self._fitting.add(tuple(shape))

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return self.members.check([self.model] * len(self.parts), condition, batch, device)

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if tuple(x.shape[1:]) not in self._fitting:
            self._check(tuple(x.shape[1:]))
        drawn = [k for k in range(len(self.parts)) if k != self.kept]
        jobs = [(k, self.members.given(k, condition), f"part {k}") for k in drawn]
        found = answers([self.model] * len(self.parts), jobs, x, t, memory)
        first = found[0]
        if len(self.parts) == 1:
            return first
        values = {k: answer.to(first.kind) for k, answer in zip(drawn, found, strict=True)}
        if self.kept is not None:
            values[self.kept] = self._real(first.kind, x, t, condition).to(first.value.dtype)
        parts = [self._projectors[k](values[k]) for k in sorted(values)]
        return first.replaced(sum(parts[1:], parts[0]))

    def _real(self, kind: str, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """What an answer of this kind says whose x0 is the picture: the state's noise is then the run's own."""
        assert self.picture is not None
        known = self._encoded
        if known is None or known[1:] != (x.device, x.dtype):
            clean = self.encode(self.picture.to(x.device), **condition).to(x.dtype)
            known = clean, x.device, x.dtype
            if not any(isinstance(one, Picture) for one in self.conditions.values()):  # on which coordinates may depend
                self._encoded = known
        if len(known[0]) not in (1, len(x)):
            raise ValueError(f"fixed has {len(known[0])} pictures for {len(x)} samples: give one for all, or one each")
        p, q = (torch.as_tensor(one) for one in conversion("x0", kind, *scales(self.process, t)))
        # Without noise nothing is left to say of it.
        p, q = (torch.where(one.isfinite(), one, torch.zeros_like(one)) for one in (p, q))
        return expand(p, x) * x + expand(q, x) * known[0]

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.model.encode(data, **self.members.given(0, condition))

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.model.decode(x, **self.members.given(0, condition))

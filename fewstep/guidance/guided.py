"""The wrapper of guidance: a model's answer, led away from weak ones.

With the model's answer c and a weak answer u_i of each source, the guided answer is `c + sum_i (rule_i(c, u_i, w_i) -
c)`; the plain rule is `u + w (c - u)`, so that w = 1 is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.number import Number
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, Together, ask, routed
from fewstep.core.prediction import Prediction, expand, joined
from fewstep.core.student import check_unguided
from fewstep.guidance.kinds import through
from fewstep.guidance.parts import Call, Guide, Host, Rule, Source, Weight, level

SCALE = "guidance"  # the condition by which a caller or a plan sets the first method's scale
_EACH = "scale of each row"  # its name while rows are routed


class Guided(Wrapper):
    """A model under one or several methods of guidance; `fs.guide` makes it.

    The condition `guidance` sets the first method's scale for a run, for each sample (a list), or for each evaluation
    (the numbers of a plan, `fs.plan(..., guidance=[...])`); without it the method's own holds. For a model that has a
    condition `guidance` of its own, distilled into it, the condition sets that one.

    Outside the interval of a method its weak answers are not evaluated; without a run's memory, where the host does
    not know the time, all are, and the values are the same.

    Args:
        guides: the methods.
        rescale: phi of Lin et al. (2305.08891, equations 15 and 16), 0 to 1: the share in which the guided answer is
            brought to the standard deviation of the model's own.
        clamp: the range to which the guided x0 is cut; None for no cut.

    Raises:
        ValueError: a student that has its teacher's guidance inside.
    """

    def __init__(
        self, model: Denoiser, guides: Sequence[Guide], rescale: float = 0.0, clamp: tuple[float, float] | None = None
    ):
        check_unguided(model.student)
        self.takes_scale = SCALE not in model.conditions
        own: dict[str, Condition] = {}
        if self.takes_scale:
            usual = guides[0].scale
            own[SCALE] = Number(0.0, guides[0].rule.most, 1.0 if callable(usual) else float(usual))
        for guide in guides:
            own |= guide.source.adds(model)
        off = all(guide.scale == guide.zero for guide in guides)
        super().__init__(
            model,
            plan=model.plan if off else None,  # the model's plan was found for its own predictions
            conditions={**model.conditions, **own},
            solver=next((guide.rule.solver for guide in guides if guide.rule.solver), model.solver),
        )
        self.guides, self.rescale, self.clamp = tuple(guides), rescale, clamp
        _register(self, guides[0])
        if guides[1:]:  # at the paths that `config` gives their options
            self.also = nn.ModuleList(_register(nn.Module(), guide) for guide in guides[1:])

    @property
    def scale(self) -> float | Callable[[Any], Any]:
        """The first method's."""
        return self.guides[0].scale

    @property
    def carries(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        first, also = self.guides[0], [guide.said[0] for guide in self.guides[1:]]
        scale = first.scale if isinstance(first.scale, float) else "a function"
        told = {name: value for name, value in first.said[1].items() if name != "scale" and _is_json(value)}
        more = {"also guided by": also} if also else {}
        return self.model.describe() | {"guidance": first.said[0], "guidance scale": scale} | told | more

    def config(self) -> dict[str, Any]:
        (_, first), *others = [guide.said for guide in self.guides]
        more = {"also": [{"method": name} | dict(options) for name, options in others]} if others else {}
        return {"model": self.model} | dict(first) | more

    @property
    def made_by(self) -> tuple[str, str]:
        """The kind and name of the card whose function rebuilds it."""
        return "guidance", self.guides[0].said[0]

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """As the model's, `guidance` where it is given, and what the sources take (`negative` of "cfg")."""
        rest = dict(condition)
        scale = rest.pop(SCALE, None) if self.takes_scale else None
        said = [guide.source.take(rest, self.model) for guide in self.guides]
        named = self.model.check_condition(rest, batch, device)
        more = [
            guide.source.checked(one, named, self.model, batch, device)
            for guide, one in zip(self.guides, said, strict=True)
        ]
        if scale is not None:
            named[SCALE] = self.conditions[SCALE].check(SCALE, scale, batch, device)
        for each in more:
            named |= each
        return named

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        scale = condition.pop(SCALE, None) if self.takes_scale else None
        told = condition | {_EACH: scale}
        if memory is None:
            return self._answer(self._decide(None, scale is not None), x, t, None, told)
        return routed(memory, self._decide, self._answer, x, t, told)

    def _weight(self, number: int, part: Host) -> float | None:
        guide = self.guides[number]
        if number == 0 and self.takes_scale and part is not None and SCALE in part.given:
            given = part.given[SCALE]
            return None if given is None else given + guide.more
        return guide.weight(self.process, part)

    def _decide(self, part: Host, given: bool = False) -> tuple[Any, ...]:
        """Of each method None where it is off, else what the host knows of it: whether it acts, whether the caller
        gave the scale in place of a function, what source and rule decide. Rows that share it are evaluated together.
        """
        found: list[Any] = []
        given = given or (part is not None and self.takes_scale and SCALE in part.given)
        for number, guide in enumerate(self.guides):
            by_caller = given and number == 0
            acts = guide.acts(self.process, part)
            weight = None if by_caller and part is None else self._weight(number, part)
            if acts is False or (weight == 1 and guide.zero is not None):
                found.append(None)
            else:
                instead = by_caller and callable(guide.scale)
                found.append((acts is None, instead, guide.source.host(part), guide.rule.host(part)))
        return tuple(found)

    def _answer(
        self, decided: tuple[Any, ...], x: Tensor, t: Tensor, memory: AnyMemory | None, condition: dict[str, Any]
    ) -> Prediction:
        rest = dict(condition)
        each = rest.pop(_EACH)
        own = {name: value for name, value in rest.items() if name in self.model.conditions}
        given = None if memory is None else memory.branch("given")
        active, calls = [i for i, one in enumerate(decided) if one is not None], []
        for i in active:
            branch = None if memory is None else memory.branch(self.branch(i))
            rows = self.guides[i].rule.wanted(branch)
            if rows is not None and len(rows) < x.shape[0]:
                return self._split(i, rows, decided, x, t, memory, condition)
            modules = self if i == 0 else self.also[i - 1]
            calls.append(Call(self.model, x, t, own, branch, decided[i][2:], modules))
        if not active:
            return ask(self.model, x, t, given, own)
        strong, weak = self._answers([self.guides[i].source for i in active], calls, rest, given)
        guided: Tensor | None = None
        for i, call, other in zip(active, calls, weak, strict=True):
            w = self._weights(i, decided[i], each, x, t, memory)
            value = self.guides[i].rule(strong, other, w, call)
            guided = value if guided is None else guided + (value - strong.value)
            self.guides[i].source.seen(call, strong, other)
        assert guided is not None
        return strong.replaced(self._finished(guided, strong), x=x, t=t)

    def branch(self, i: int) -> str:
        """The name of method i's branch of a run's memory."""
        name = self.guides[i].source.branch
        return name if i == 0 else f"{name} {i}"

    def _split(
        self,
        i: int,
        rows: Tensor,
        decided: tuple[Any, ...],
        x: Tensor,
        t: Tensor,
        memory: AnyMemory | None,
        condition: dict[str, Any],
    ) -> Prediction:
        """Some rows with method i, and the others without it."""
        left = torch.ones(len(x), dtype=torch.bool, device=rows.device).index_fill(0, rows, False).nonzero().squeeze(1)
        answers = []
        for own, said in ((rows, decided), (left, (*decided[:i], None, *decided[i + 1 :]))):
            if not len(own):
                continue
            here = own.to(x.device)
            named = {name: v[here] if isinstance(v, Tensor) and v.ndim else v for name, v in condition.items()}
            part = None if memory is None else memory[own]
            answers.append((here, self._answer(said, x[here], t[here] if t.ndim else t, part, named)))
        return joined(answers, x, t)

    def _answers(
        self, sources: list[Source], calls: list[Call], condition: dict[str, Any], given: AnyMemory | None
    ) -> tuple[Prediction, list[Prediction]]:
        """The model's answer and the weak ones; what is the model under other conditions goes in its call."""
        model, x, t, own = self.model, calls[0].x, calls[0].t, calls[0].condition
        rows = x.shape[0]  # neither len() nor chunk(): they would fix an exported program's batch
        others = [source.shares(call, condition) for source, call in zip(sources, calls, strict=True)]
        together = [  # not prompts of another length
            k
            for k, other in enumerate(others)
            if other is not None and all(value.shape[1:] == own[name].shape[1:] for name, value in other.items())
        ]
        for source, call in zip(sources, calls, strict=True):
            model = source.watched(model, call)
        shared: dict[int, Prediction] = {}
        if together:
            parts = [other for k in together if (other := others[k]) is not None]
            named = {name: torch.cat([v, *(other.get(name, v) for other in parts)]) for name, v in own.items()}
            memories = [each for each in (given, *(calls[k].memory for k in together)) if each is not None]
            several = len(together) + 1
            times = t if t.ndim == 0 else torch.cat([t] * several)
            whole = ask(model, torch.cat([x] * several), times, Together(memories) if memories else None, named)
            strong = whole.part(slice(rows))  # the answer's other fields are those of the given rows
            for i, k in enumerate(together, 1):
                shared[k] = whole.part(slice(i * rows, (i + 1) * rows))
        else:
            strong = ask(model, x, t, given, own)
        weak = []
        for k, (source, call) in enumerate(zip(sources, calls, strict=True)):
            if (found := shared.get(k)) is None:
                other = others[k]
                apart = other is not None
                found = (
                    ask(self.model, x, t, call.memory, own | (other or {})) if apart else source.answer(call, strong)
                )
            weak.append(found)
        return strong, weak

    def _weights(
        self, i: int, decided: Any, given: Tensor | None, x: Tensor, t: Tensor, memory: AnyMemory | None
    ) -> Weight:
        """w of method i: one number for all rows where that is what it is."""
        guide = self.guides[i]
        weight: Any
        parts: list[Any] = [None] if memory is None else list(memory.parts())
        known = [None if i == 0 and given is not None and part is None else self._weight(i, part) for part in parts]
        if known[0] is not None and all(one == known[0] for one in known):
            weight = known[0]
        elif i == 0 and given is not None and (decided[1] or not callable(guide.scale)):
            weight = expand(given, x) + guide.more
        elif None not in known:  # functions of times of their own
            numbers = [w for w, part in zip(known, parts, strict=True) for _ in range(part.rows)]
            weight = expand(torch.tensor(numbers, dtype=x.dtype).to(x.device, non_blocking=True), x)
        else:
            assert callable(guide.scale)
            weight = expand(torch.as_tensor(guide.scale(self.process.log_snr(t))), x) + guide.more
        if decided[0]:  # the host does not know the time
            assert guide.interval is not None
            low, high = guide.interval
            now = level(self.process, t)
            off = torch.ones((), dtype=x.dtype, device=x.device)
            weight = torch.where(expand(((low <= now) & (now <= high)).to(x.dtype), x) > 0, weight, off)
        return weight.to(x.dtype) if isinstance(weight, Tensor) else weight

    def _finished(self, guided: Tensor, strong: Prediction) -> Tensor:
        if self.rescale:
            rest = tuple(range(1, guided.ndim))
            ratio = strong.value.std(rest, keepdim=True) / guided.std(rest, keepdim=True)
            guided = guided * (1 - self.rescale + self.rescale * ratio)
        if (clamp := self.clamp) is not None:
            guided = through(lambda x0: x0.clamp(*clamp), strong.replaced(guided), "x0")
        return guided

    def terms(
        self, x: Tensor, t: Tensor, memory: AnyMemory | None, condition: Mapping[str, Any]
    ) -> tuple[tuple[float, ...], list[Prediction]]:
        """The answers that the guided one is a sum of, and their weights, which add up to 1.

        Raises:
            ValueError: where it is no sum with fixed weights: another rule, a function as scale, an interval, a clamp
                or a rescaling.
        """
        plain = all(type(g.rule) is Rule and not callable(g.scale) and g.interval is None for g in self.guides)
        if not plain or self.rescale or self.clamp is not None:
            raise ValueError("only guidance by the plain rule and one scale, without interval, clamp and rescale, is a"
                             " sum of answers with fixed weights")  # fmt: skip
        own = {name: value for name, value in condition.items() if name in self.model.conditions}
        calls = []
        for i, guide in enumerate(self.guides):
            branch = None if memory is None else memory.branch(self.branch(i))
            decided = (guide.source.host(None), None)
            calls.append(Call(self.model, x, t, own, branch, decided, self if i == 0 else self.also[i - 1]))
        given = None if memory is None else memory.branch("given")
        strong, weak = self._answers([g.source for g in self.guides], calls, dict(condition), given)
        more = [float(g.scale) + g.more - 1 for g in self.guides]  # type: ignore[arg-type]  # no function: checked above
        return (1 + sum(more), *(-m for m in more)), [strong, *weak]


def _register(holder: nn.Module, guide: Guide) -> nn.Module:
    """The module, with the modules among a method's options by their names."""
    for name, value in guide.said[1].items():
        if isinstance(value, nn.Module):
            holder.add_module(name, value)
    return holder


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | dict)

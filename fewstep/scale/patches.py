"""Patch parallelism: several workers draw one picture, each a strip of it, and see of the others what is a step old.

Between two evaluations the keys and values of attention hardly change. So a worker attends to its own strip as it is
now and to the others' as they were an evaluation ago, which came while it computed: nobody waits.

    DistriFusion   all of the others' keys and values
    PCPP           those of a border of some token rows above and below the strip, and none beyond

The first evaluations, `warmup` of them, exchange everything and wait for it: they are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, Memory, ask, routed
from fewstep.core.memory import Part as Rows
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import replaced
from fewstep.scale.divided import Call, Divided, strips_of
from fewstep.scale.workers import Group, start

METHODS = (
    Method(
        "distrifusion",
        kind="parallel",
        paper="DistriFusion: Distributed Parallel Inference for High-Resolution Diffusion Models (Li et al., 2024)",
        arxiv="2402.19481",
        claim="strips of a picture on several workers, which see of each other what is one evaluation old",
        use="distrifusion",
        facts={"wraps": True, "network": "transformer"},
    ),
    Method(
        "pcpp",
        kind="parallel",
        paper="Partially Conditioned Patch Parallelism for Accelerated Diffusion Model Inference (Zhang et al., 2024)",
        arxiv="2412.02962",
        claim="patch workers see a border of their neighbours alone, for a fraction of the bytes at a small error",
        use="pcpp",
        facts={"wraps": True, "network": "transformer"},
    ),
)


def distrifusion(model: Denoiser, workers: int = 2, warmup: int | None = 1) -> PatchParallel:
    """The model on `workers`, each of which sees all of the others' keys and values, as they were an evaluation ago.

    With `warmup=None` all evaluations wait for fresh ones, and the answer is the model's. See `PatchParallel`.
    """
    return PatchParallel(model, workers, None, warmup)


def pcpp(model: Denoiser, workers: int = 2, border: int = 1, warmup: int = 1) -> PatchParallel:
    """The model on `workers`, each of which sees `border` token rows above and below its strip, one evaluation old.

    With border 0 a worker sees its own strip alone. See `PatchParallel`.
    """
    if border is None or warmup is None:
        raise ValueError("pcpp needs a border and a warm-up; distrifusion has all rows, and no end of warming up")
    return PatchParallel(model, workers, border, warmup)


distrifusion.from_config = lambda options, state: distrifusion(**options)  # type: ignore[attr-defined]
pcpp.from_config = lambda options, state: pcpp(**options)  # type: ignore[attr-defined]


class PatchParallel(Wrapper):
    """A model whose transformer's tokens are divided into strips, one a worker.

    What a worker remembers of the others lies in the run's memory, so it needs a run: without a memory, and with one
    worker, it is the model itself, bit for bit. Without a group all workers are computed here, one after the other:
    the samples are theirs and the bytes are counted, for experiments; `on(group)` is this process's share of the work.

    Every worker runs the whole sampler: what goes in and comes out of the network is the same for all, and each
    evaluation ends with the exchange of the strips of the answer. `Result.report["patches"]` counts evaluations
    (`synchronous`, those that wait, and `stale`), the `bytes` of keys and values and the `output bytes` that all
    workers send, in a group those that this one sends; where the run's times are known, the last evaluation sends no
    keys and values, which nobody would read.

    Around guidance and the like the division is inside, where each row of the network is one of the run's.

    Args:
        workers: 1 to the token rows.
        border: token rows that are seen above and below a strip; None for all.
        warmup: how many evaluations are synchronous, 0 or more; None for all. So is, unless it is 0, the first one of a
            branch of guidance that joins a run later. With 0 a worker's first evaluation sees its own strip alone.

    Raises:
        ValueError: a network without a `dit`; more workers than token rows, a border below 0 or above what there is; a
            model that is divided already, or cached, whose blocks would not be found. At the first evaluation:
            attention under a rule of guidance that looks at the whole picture.
    """

    def __init__(
        self, model: Denoiser, workers: int = 2, border: int | None = None, warmup: int | None = 1, name: str = ""
    ):
        super().__init__(model)
        made_by = {getattr(part, "made_by", ("",))[0] for part in model.modules() if isinstance(part, Denoiser)}
        if "parallel" in made_by:
            raise ValueError("this model is divided among workers already: divide the model inside it")
        if "cache" in made_by:
            raise ValueError("this model is cached already, and a cache and patch workers do not go together")
        if warmup is not None and (isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0):
            raise ValueError(f"warmup must be a whole number of at least 0, or None, got {shown(warmup)}")
        self.workers, self.border, self.warmup, self.group = workers, border, warmup, None
        self._name = name
        if not (found := dict(_networks(model))):
            kinds = sorted({type(part.network).__name__ for part in model.modules() if hasattr(part, "network")})
            raise ValueError(
                "patch workers divide the transformer 'dit' of fewstep.networks.dit, which this model lacks"
                + (f": its network is {', '.join(kinds)}" if kinds else "")
            )
        for network in found.values():
            strips_of(network, workers).check(border)

    group: Group | None

    def on(self, group: Group) -> PatchParallel:
        """The share of one worker, as a model of its own with the same weights.

        Raises:
            ValueError: a group of another size.
        """
        if group.size != self.workers:
            raise ValueError(f"the model is divided among {self.workers} workers, and the group has {group.size}")
        found = PatchParallel(self.model, self.workers, self.border, self.warmup, self._name)
        found.group = group
        return found

    def config(self) -> dict[str, Any]:
        own = {"model": self.model, "workers": self.workers, "warmup": self.warmup}
        return own if self.border is None else own | {"border": self.border}

    @property
    def made_by(self) -> tuple[str, str]:
        """The kind and name of the card whose function rebuilds it."""
        return "parallel", "distrifusion" if self.border is None else "pcpp"

    def describe(self) -> dict[str, Any]:
        seen = "all of the others" if self.border is None else f"a border of {self.border}"
        return self.model.describe() | {"patches": f"{self.workers} workers, each of which sees {seen}"}

    @property
    def carries(self) -> bool:
        return self.workers > 1 or self.model.carries

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if memory is None or self.workers == 1:
            return ask(self.model, x, t, memory, condition)
        holders = dict.fromkeys(holder for holder in map(self._holder, dict(_networks(self.model))))
        if list(holders) == [""]:
            return routed(memory, self._phase, self._answer, x, t, condition)
        inside = {at: self._inside(at) for at in holders}
        return ask(_with(self.model, inside), x, t, memory, condition)

    def _holder(self, path: str) -> str:
        """The path of the innermost denoiser that has the network at this path, "" for the model itself."""
        names = path.split(".")
        above = [".".join(names[:n]) for n in range(1, len(names))]
        return next((at for at in reversed(above) if isinstance(self.model.get_submodule(at), Denoiser)), "")

    def _inside(self, at: str) -> PatchParallel:
        inner = self.model.get_submodule(at)
        assert isinstance(inner, Denoiser)
        found = PatchParallel(inner, self.workers, self.border, self.warmup, f"{self._name}{at}.")
        found.group = self.group
        return found

    def _phase(self, part: Memory | Rows) -> tuple[bool, bool, bool]:
        """Whether an evaluation waits for fresh keys and values, whether older ones are known, whether it is the last.

        A part that has missed an evaluation goes on from the last one that it had.
        """
        known = self._key in part.notes and part.notes[self._key].rows.issuperset(_rows(part))
        waits = self.warmup is None or part.number < self.warmup or (not known and self.warmup > 0)
        return waits, known, 0 <= len(part.times) - 1 <= part.number

    @property
    def _key(self) -> str:
        return f"patches {self._name}"

    def _answer(
        self, phase: tuple[bool, bool, bool], x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]
    ) -> Prediction:
        if self.group is not None and torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("no gradient leads through other processes: guidance by a gradient needs one worker")
        parts: dict[str, nn.Module] = {}
        call = Call(memory, *phase, self.border, self.group)
        for path, network in _networks(self.model):
            parts[path] = Divided(network, f"{self._key}{path}", strips_of(network, self.workers), call)
        found = ask(_with(self.model, parts), x, t, memory, condition)
        for part in memory.parts():
            part.notes.setdefault(self._key, _Known()).rows.update(_rows(part))
            call.tell(part)
        return found


@dataclass
class _Known:
    """The rows of a run of which an older evaluation is kept."""

    rows: set[int] = field(default_factory=set)

    def only(self, numbers: Any) -> _Known:
        """Of a run that goes on from an earlier evaluation (`Memory.fork`): what is kept is from a later one."""
        return _Known()


def sample(model: PatchParallel, n: int, timeout: float = 60.0, **options: Any) -> Tensor:
    """`fewstep.sample(model, n, **options)` in as many processes of this machine as the model has workers.

    timeout: seconds for which a worker waits for another. A script that calls this guards it by
    `if __name__ == "__main__"`.

    Raises:
        ValueError, as `fewstep.sample`; RuntimeError: a worker that raised or died.
    """
    found: Tensor = start(_sample, model.workers, model, n, options, timeout=timeout)[0]
    return found


def _sample(group: Group, model: PatchParallel, n: int, options: dict[str, Any]) -> Tensor:
    from fewstep.sampling.sample import sample

    return sample(model.on(group), n, **options)


def _networks(module: nn.Module, path: str = "") -> Iterator[tuple[str, DiT]]:
    """The networks that can be divided, by path, at every path where they lie."""
    if type(module) is DiT:
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _networks(child, f"{path}.{name}" if path else name)


def _with(model: Denoiser, parts: Mapping[str, nn.Module]) -> Denoiser:
    found = replaced(model, parts)
    assert isinstance(found, Denoiser)
    return found


def _rows(part: Memory | Rows) -> list[int]:
    return list(range(part.rows)) if isinstance(part, Memory) else part.chosen.tolist()

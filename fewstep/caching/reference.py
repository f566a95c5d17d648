"""References are read once a run: their keys and values are kept, as they depend on nothing that changes in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, Memory, Part, ask, routed
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.networks.reference import Keys
from fewstep.networks.surgery import Keep, Stored, replaced

METHODS = (
    Method(
        "reference",
        kind="cache",
        paper="FastFit: Accelerating Multi-Reference Virtual Try-On via Cacheable Diffusion Models"
        " (Chong et al., 2025)",
        arxiv="2508.20586",
        claim="saves the operations of all passes over the references but the first, without loss",
        use="KeptReferences",
        facts={"wraps": True, "keeps": False, "network": "reference-dit"},
    ),
)

KEPT = "references"


class KeptReferences(Wrapper):
    """The model, whose network (`fewstep.networks.reference.ReferenceDiT`) reads its references once a run.

    Their keys and values (rows, depth, R N, 2 W) are made at a row's first evaluation and kept in the run's memory
    (Chong et al., their reference KV cache): the answers are those of the model. Requests and branches of guidance that
    share calls each have their own. Outside a run they are made in each call. Rows that something evaluates apart from
    others of their run, before all of it were, have theirs made anew as well.

    It may go around guidance or inside it.

    Raises:
        ValueError: a model without references, or one whose references are kept already.
    """

    def __init__(self, model: Denoiser):
        super().__init__(model)
        if any(isinstance(module, KeptReferences) for module in model.modules()):
            raise ValueError("the references of this model are kept already: wrap it once")
        seams = _seams(model)
        if not seams:
            raise ValueError(
                "this model has no references to keep: its network must be a ReferenceDiT"
                " (fewstep.networks.reference) with references of at least 1"
            )
        # Around guidance and the like the cache belongs inside, where each row of the network is one of the run's.
        inner = {at: model.get_submodule(at) for path in seams if (at := _innermost(model, path))}
        self._inner: dict[str, nn.Module] = {
            at: KeptReferences(one) for at, one in inner.items() if isinstance(one, Denoiser)
        }

    def config(self) -> dict[str, Any]:
        return {"model": self.model}

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"references": "read once a run"}

    @property
    def carries(self) -> bool:
        return True

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if memory is None:
            return ask(self.model, x, t, memory, condition)
        if self._inner:
            return ask(self._with(self._inner), x, t, memory, condition)
        # Where they are now: what goes around this one may have put something between it and the network.
        names = {path: f"{KEPT} {number}" for number, path in enumerate(_seams(self.model))}

        def kept(part: Memory | Part) -> bool | None:
            whole = part.memory if isinstance(part, Part) else part
            if all(name in whole.kept for name in names.values()):
                return True
            return None if isinstance(part, Part) else False  # the run's other rows would have nothing

        def answer(kept: bool | None, x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]) -> Prediction:
            at = {path: self.model.get_submodule(path) for path in names}
            if kept:
                known = {name: memory.get(name) for name in names.values()}
                return ask(self._with({p: Stored(known, names[p], at[p]) for p in at}), x, t, memory, condition)
            made: dict[str, Tensor] = {}
            found = ask(self._with({p: Keep(at[p], made, names[p]) for p in at}), x, t, memory, condition)
            if kept is False:
                for name, value in made.items():
                    memory.keep(name, value)
            return found

        return routed(memory, kept, answer, x, t, condition)

    def _with(self, parts: Mapping[str, nn.Module]) -> Denoiser:
        found = replaced(self.model, parts)
        assert isinstance(found, Denoiser)
        return found


def _seams(model: nn.Module) -> list[str]:
    """The paths at which the keys and values of references come in."""
    return [path for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, Keys)]


def _innermost(model: Denoiser, path: str) -> str:
    """The path of the innermost denoiser that holds a module, "" for the model itself."""
    names = path.split(".")
    holders = [".".join(names[:n]) for n in range(1, len(names))]
    found = [holder for holder in holders if isinstance(model.get_submodule(holder), Denoiser)]
    return found[-1] if found else ""

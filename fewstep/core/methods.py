"""Method cards: what fewstep holds, read from the source files and imported on demand.

A method file ends its imports with a literal `METHODS = (Method("dpmpp-2m", ..., use="dpmpp_2m"),)`. It is read with
`ast`, so listing every method imports nothing, and adding one touches no shared list. A file is parsed to the end of
the literal and no further, so reading all of them takes well under a tenth of a second.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from fewstep.core.errors import suggest

# The kind of a card that names none, by its room. In every other room a card names its kind.
KINDS = {
    "acceleration": "acceleration",
    "caching": "cache",
    "compression": "compressor",
    "conditions": "condition",
    "data": "data",
    "denoisers": "denoiser",
    "distillation": "distiller",
    "editing": "editor",
    "guidance": "guidance",
    "metrics": "metric",
    "modalities": "modality",
    "networks": "network",
    "operators": "operator",
    "processes": "process",
    "restoration": "restorer",
    "sampling": "solver",
    "searching": "search",
    "timesteps": "rule",
}
# What messages call a kind whose own name says too little.
SPOKEN = {
    "backward": "way to go backward",
    "data": "data set",
    "guidance": "method of guidance",
    "rule": "timestep rule",
    "search": "search method",
}
_OPENING = re.compile(r"^METHODS = \(", re.MULTILINE)
_CLOSING = re.compile(r".+$|\n(?:.*\n)*?\)$", re.MULTILINE)  # on the same line, or a line that is `)`


@dataclass(frozen=True)
class Method:
    """One method of the catalogue.

    `name` is what a user types, unique among the methods of its `kind` ("solver", "rule", "process", ...; left out, it
    is the room's). `use` is the function or class in `module`, `claim` what it promises in one line, and `facts` hold
    what the contract test of the kind needs to know (a solver's convergence order, for instance).
    """

    name: str
    kind: str = ""
    paper: str = ""
    arxiv: str = ""
    claim: str = ""
    use: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""

    def __post_init__(self) -> None:
        if self.module and not self.kind:
            if self.room not in KINDS:
                raise ValueError(f"the card {self.name!r} in {self.file} must name its kind: kind=...")
            object.__setattr__(self, "kind", KINDS[self.room])

    @property
    def room(self) -> str:
        return self.module.split(".")[1]

    @property
    def file(self) -> str:
        return self.module.replace(".", "/") + ".py"

    def load(self) -> Any:
        return getattr(import_module(self.module), self.use)


def _head(path: Path) -> str:
    """The text of a file to the end of its METHODS literal; empty without one."""
    text = path.read_text("utf-8")
    opening = _OPENING.search(text) if "METHODS = (" in text else None
    if opening is None:
        return ""
    closing = _CLOSING.match(text, opening.end())
    if closing is None:
        raise ValueError(f"{path}: METHODS must be closed by a line that is ')'")
    return text[: closing.end()]


def _cards(path: Path, module: str) -> list[Method]:
    """The METHODS literal of a file. A name in it may stand for a string that the file assigns above it."""
    strings: dict[str, str] = {}

    def value(node: ast.expr) -> Any:
        return strings[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    found = []
    for node in ast.parse(_head(path)).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        if name == "METHODS" and isinstance(node.value, ast.Tuple):
            for call in node.value.elts:
                assert isinstance(call, ast.Call)
                kwargs = {str(keyword.arg): value(keyword.value) for keyword in call.keywords}
                found.append(Method(*map(value, call.args), **(kwargs | {"module": module})))
        elif isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            strings[name] = node.value.value
    return found


@functools.cache
def _all() -> tuple[Method, ...]:
    root = Path(__file__).resolve().parents[1]
    found: dict[tuple[str, str], Method] = {}
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for method in _cards(path, module):
            other = found.setdefault((method.kind, method.name), method)
            if other is not method:
                raise ValueError(f"the {method.kind} {method.name!r} is registered in {other.module} and in {module}")
    return tuple(found.values())


def methods(kind: str | None = None, word: str = "", room: str | None = None) -> list[Method]:
    """The method cards whose name, paper or claim contains `word`: of one kind ("solver"), of one room, or of all.

    A room's name also serves as `kind` where no kind has it: `methods("sampling")` lists the solvers and whatever else
    is there. Raises `ValueError` for a kind or room that has no card.
    """
    found = _all()
    kinds = {card.kind for card in found}
    if room is not None or (kind is not None and kind not in kinds):
        rooms = {card.room for card in found}
        if room is None and kind in rooms:
            kind, room = None, kind
        for what, given, known in (("kind", kind, kinds | rooms), ("room", room, rooms)):
            if given is not None and given not in known:
                raise suggest(what, given, known)
    word = word.lower()
    return [
        card
        for card in found
        if kind in (None, card.kind)
        and room in (None, card.room)
        and (not word or word in " ".join((card.name, card.paper, card.claim, card.module)).lower())
    ]


# By kind and room: all cards that there were, and those of the kind and the room by name.
_by_name: dict[tuple[str | None, str | None], tuple[tuple[Method, ...], dict[str, list[Method]]]] = {}


def _named(kind: str | None, room: str | None) -> dict[str, list[Method]]:
    """The cards of a kind and a room, by name."""
    every, known = _by_name.get((kind, room), ((), {}))
    if every is not _all():
        known = {}
        for method in methods(kind, room=room):
            known.setdefault(method.name, []).append(method)
        _by_name[kind, room] = _all(), known
    return known


def card(
    name: str, kind: str | None = None, what: str | None = None, room: str | None = None
) -> tuple[Method, int | None]:
    """The card of `name`, and the order when the name carries one (`unipc-3` is `unipc` of order 3).

    `what` is what the message calls it, where that is not the kind.

    Raises:
        ValueError: no method has the name (the message lists close ones), or several kinds do and `kind` is missing.
    """
    known = _named(kind, room)
    what = what or SPOKEN.get(kind or "", kind or "method")
    stem, order = str(name), None
    if stem not in known and (found := re.fullmatch(r"(.+)-(\d+)", stem)):
        if any(method.facts.get("any_order") for method in known.get(found[1], ())):
            stem, order = found[1], int(found[2])
    if stem not in known:
        raise suggest(what, name, known)
    if len(known[stem]) > 1:
        kinds = " and a ".join(method.kind for method in known[stem])
        raise ValueError(f"{name!r} is a {kinds}: say which, with kind=...")
    if order == 0:
        raise ValueError(f"the order of {stem!r} must be at least 1, got {order}")
    return known[stem][0], order


def find(name: str, kind: str | None = None, what: str | None = None, room: str | None = None) -> Callable[..., Any]:
    """The function or class behind a method's name, imported on demand.

    Args:
        name: as `methods` lists it; an order may follow it, where the method takes one: `unipc-3`.
        kind: what it must be ("solver", "rule", "process", ...), or the room it is in.

    Raises:
        ValueError: no method has the name; the message lists close ones.
    """
    method, order = card(name, kind, what, room)
    found = method.load()
    return found if order is None else functools.partial(found, order=order)


def made(kind: str, name: str, /, skip: int = 0, **options: Any) -> functools.partial[Any]:
    """A method with its options set: `made("weighting", "min-snr", 2, gamma=5.0)`.

    The first `skip` arguments of the function or class are left to the call; all others are options, by name.

    Raises:
        ValueError: an unknown method or option (the message lists close ones), or an option without a default missing.
    """
    method, order = card(name, kind)
    function, said = method.load(), f"{SPOKEN.get(kind, kind)} {name!r}"
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if order is not None:
        if "order" in options:
            raise ValueError(f"the order is in the name already: {name!r}, got order={options['order']!r} as well")
        options["order"] = order
    fixed = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    known = [p.name for p in fixed]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for option in options:
            if option not in known:
                raise (
                    suggest(f"option of the {said}", option, known)
                    if known
                    else ValueError(f"the {said} has no options, got {option!r}")
                )
    from fewstep.core.arguments import check_options  # it needs torch, as listing the methods must not

    check_options(function, {name: value for name, value in options.items() if value is not None}, said)
    if missing := [p.name for p in fixed if p.default is p.empty and p.name not in options]:
        raise ValueError(f"the {said} needs {missing[0]}=...; its options are {', '.join(known)}")
    return functools.partial(function, **options)


def order(method: Method, p: int | None = None) -> int | None:
    """The convergence order that a solver's card states, None where it states none.

    `p` is the order in the solver's name (`unipc-3`: 3); without one, the default of its option `order` counts.
    """
    if "order" not in method.facts:
        return None
    stated = int(method.facts["order"])
    if not method.facts.get("plus_p"):
        return stated
    return stated + (p if p is not None else int(inspect.signature(method.load()).parameters["order"].default))

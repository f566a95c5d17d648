"""Method cards: what fewstep holds, read from the source files and imported on demand.

A method file ends its imports with a literal `METHODS = (Method("dpmpp-2m", ..., use="dpmpp_2m"),)`. It is read with
`ast`, so listing every method imports nothing, and adding one touches no shared list.
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


@dataclass(frozen=True)
class Method:
    """One method of the catalogue.

    `name` is what a user types, `use` the function or class in `module`, `claim` what it promises in one line, and
    `facts` holds what the room's contract test needs to know (a solver's convergence order, for instance).
    """

    name: str
    paper: str = ""
    arxiv: str = ""
    claim: str = ""
    use: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""

    @property
    def room(self) -> str:
        return self.module.split(".")[1]

    @property
    def file(self) -> str:
        return self.module.replace(".", "/") + ".py"

    def load(self) -> Any:
        return getattr(import_module(self.module), self.use)


def _cards(path: Path, module: str) -> list[Method]:
    """The METHODS literal of a file. A name in it may stand for a string that the file assigns above it."""
    strings: dict[str, str] = {}

    def value(node: ast.expr) -> Any:
        return strings[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    found = []
    for node in ast.parse(path.read_text("utf-8")).body:
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
def _all() -> Mapping[str, Method]:
    root = Path(__file__).resolve().parents[1]
    found: dict[str, Method] = {}
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for method in _cards(path, module):
            if method.name in found:
                raise ValueError(f"{method.name!r} is registered in {found[method.name].module} and in {module}")
            found[method.name] = method
    return found


def methods(room: str | None = None, word: str = "") -> list[Method]:
    """The method cards, of one room or of all, whose name, paper or claim contains `word`."""
    word = word.lower()
    return [
        card
        for card in _all().values()
        if (room is None or card.room == room)
        and word in " ".join((card.name, card.paper, card.claim, card.module)).lower()
    ]


def card(name: str, room: str | None = None, what: str = "method") -> tuple[Method, int | None]:
    """The card of `name`, and the order when the name carries one (`unipc-3` is `unipc` of order 3)."""
    known = {card.name: card for card in methods(room)}
    if name in known:
        return known[name], None
    stem = re.fullmatch(r"(.+)-(\d+)", str(name))
    if stem and stem[1] in known and known[stem[1]].facts.get("any_order"):
        if int(stem[2]) < 1:
            raise ValueError(f"the order of {stem[1]!r} must be at least 1, got {stem[2]}")
        return known[stem[1]], int(stem[2])
    raise suggest(what, name, known)


def find(name: str, room: str | None = None, what: str = "method") -> Callable[..., Any]:
    """The function or class behind a method's name, imported on demand.

    Raises `ValueError` with the close names when there is none.
    """
    method, order = card(name, room, what)
    found = method.load()
    if order is not None:
        assert "order" in inspect.signature(found).parameters
        return functools.partial(found, order=order)
    return found

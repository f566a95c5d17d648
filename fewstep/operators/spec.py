"""Operators in words: `blur:gaussian,width=1`, as the command line takes them and `str(operator)` writes them.

    SUM       PRODUCT + PRODUCT + ...
    PRODUCT   FACTOR @ FACTOR @ ...       the last one acts first
    FACTOR    [NUMBER] ONE                a multiple
    ONE       (SUM)  or  NAME(SUM, SUM, ...)  or  NAME[:VALUE][,OPTION=VALUE,...]

The value without a name is that of the operator's first option. Around `+`, `@` and numbers, and after the commas in
brackets, stand spaces.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import reduce

from fewstep.core.methods import card, find, made
from fewstep.core.spelling import read_options, read_value
from fewstep.operators.operator import Operator

EXAMPLE = "NAME:value,option=value, such as blur:gaussian,width=1"
_MULTIPLE = re.compile(r"([-+.\de]+) (.+)")
_CALL = re.compile(r"([\w-]+)\((.*)\)")


def read_operator(text: str | Sequence[str], option: str = "an operator") -> Operator:
    """The operator that is spelt out; of several, each as a whole, the first acts first.

    option: what messages call it, such as `--operator`.

    Raises:
        ValueError: text that is none, or an unknown operator, option or value (the message lists close names).
    """
    if not isinstance(text, str):
        if not text:
            raise ValueError(f"{option} takes {EXAMPLE}, got none")
        return reduce(lambda whole, one: one @ whole, [read_operator(one, option) for one in text])
    return _sum(text.strip(), option)


def _sum(text: str, option: str) -> Operator:
    terms = [_product(term, option) for term in _split(text, " + ", option)]
    return terms[0] if len(terms) == 1 else find("added", "operator")(*terms)  # type: ignore[no-any-return]


def _product(text: str, option: str) -> Operator:
    factors = [_factor(factor, option) for factor in _split(text, " @ ", option)]
    return reduce(lambda left, right: left @ right, factors)


def _factor(text: str, option: str) -> Operator:
    if (found := _MULTIPLE.fullmatch(text)) and isinstance(factor := read_value(found[1]), int | float):
        return float(factor) * _one(found[2].strip(), option)
    return _one(text, option)


def _one(text: str, option: str) -> Operator:
    if text.startswith("(") and text.endswith(")"):
        return _sum(text[1:-1].strip(), option)
    if (call := _CALL.fullmatch(text)) is not None:
        own, _ = card(call[1], "operator")
        if own.facts.get("of") != "operators":
            raise ValueError(f"the operator {call[1]!r} is not made of others: {option} takes {EXAMPLE}, got {text!r}")
        return own.load()(*[_sum(part, option) for part in _split(call[2], ", ", option)])  # type: ignore[no-any-return]
    name, colon, rest = text.partition(":")
    if not name or (colon and not rest):
        raise _unread(text, option)
    first, _, others = rest.partition(",")
    if "=" in first:
        first, others = "", rest
    options = read_options(others, lambda: _unread(text, option), f"{option} {text!r}")
    own, _ = card(name.strip(), "operator")
    if first:
        known = next(iter(inspect.signature(own.load()).parameters), None)
        if known is None:
            raise ValueError(f"the operator {name!r} has no options, got {first!r}")
        if known in options:
            raise ValueError(f"{option} {text!r} gives {known} twice")
        options = {known: read_value(first.strip())} | options
    return made("operator", own.name, **options)()  # type: ignore[no-any-return]


def _split(text: str, separator: str, option: str) -> list[str]:
    """The parts of a text between separators that lie in no brackets."""
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if depth == 0 and text.startswith(separator, place):
            parts.append(text[begin:place].strip())
            begin = place + len(separator)
    parts.append(text[begin:].strip())
    if depth or not all(parts):
        raise _unread(text, option)
    return parts


def _unread(text: str, option: str) -> ValueError:
    return ValueError(f"{option} takes {EXAMPLE}, got {text!r}")

"""Arguments of the wrong kind, said in a sentence that names them: `n must be a whole number, got 1.5`.

What an argument may be is read from the function's own annotations, so there is nothing else to keep true.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

# How messages call what is wanted; any other class by its name.
WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Tensor: "a tensor",
    torch.dtype: "a torch dtype such as torch.float32",
    torch.device: "a device such as 'cpu' or 'cuda:0'",
}
NAMED = {
    "Denoiser": "a denoiser, as fs.load gives",
    "NoiseModel": "a law of noise",
    "Operator": "an operator, one of fewstep.operators",
    "Plan": "a plan, as fs.plan makes",
    "Process": "a process, as model.process is",
    "Sampler": "a plan, as fs.plan makes",
}
LISTS = (Sequence, list, tuple)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with a `ValueError` for an argument that is not of the kind that its annotation names."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        kinds, names = _kinds(function), _positional(function)
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in kinds:
                check_kind(name, value, kinds[name])
        return function(*args, **kwargs)

    return call


def check_options(function: Callable[..., Any], options: Mapping[str, Any], said: str) -> None:
    """`ValueError` for an option of another kind than its annotation in a function or class names."""
    kinds = _kinds(function)
    for name, value in options.items():
        # A function may be there by name, as checkpoints keep it.
        if name in kinds and not (isinstance(value, str) and "a function" in wanted(kinds[name])):
            check_kind(f"{name} of the {said}", value, kinds[name])


def check_kind(name: str, value: Any, kind: Any) -> None:
    """`ValueError` unless a value is of an annotation's kind."""
    if fits(value, kind):
        return
    for each in _each(kind, value):  # of a list, the first part that is wrong
        for i, (one, part) in enumerate(each):
            check_kind(f"{name}[{i}]", one, part)
    raise ValueError(f"{name} must be {wanted(kind)}, got {shown(value)}")


def _each(kind: Any, value: Any) -> Iterator[Iterable[tuple[Any, Any]]]:
    """The parts of a list beside their kinds, where an annotation takes a list of this length."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for part in parts:
            yield from _each(part, value)
    elif typing.get_origin(kind) in LISTS and isinstance(value, list | tuple):
        fixed = typing.get_origin(kind) is tuple and parts[-1] is not Ellipsis
        if not fixed or len(parts) == len(value):
            yield zip(value, parts if fixed else [parts[0]] * len(value), strict=True)


def check_whole(name: str, value: Any, least: int = 1, most: float = float("inf")) -> int:
    """The value as an int; `ValueError` unless it is a whole number from `least` to `most`."""
    if not fits(value, int) or not least <= int(value) <= most:
        bounds = f"of at least {least}" if most == float("inf") else f"from {least} to {most:g}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {shown(value)}")
    return int(value)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's kind. Lists pass for tuples, whole numbers for floats, and what cannot be
    told passes."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object or isinstance(kind, TypeVar | str):
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        device = torch.device in parts  # whose names alone are meant by `str`
        return any(fits(value, part) for part in parts if not (device and part is str))
    if origin is typing.Literal:
        return value in parts
    base = origin or kind
    if base is Callable:
        return callable(value)
    if base in LISTS:
        return _fits_list(value, base, parts)
    if base is Iterable:
        return isinstance(value, Iterable) and not isinstance(value, str | bytes)
    if base in (Mapping, dict):
        return isinstance(value, Mapping)
    told = getattr(base, "_is_runtime_protocol", False)  # a protocol that says what it has can be looked for
    if not isinstance(base, type) or (getattr(base, "_is_protocol", False) and not told):
        return True
    if base is bool:
        return isinstance(value, bool | np.bool_)
    if base is int:
        return hasattr(value, "__index__") and not isinstance(value, bool | np.ndarray | Tensor | np.bool_)
    if base is float:
        scalar = isinstance(value, Tensor | np.ndarray) and value.ndim == 0
        return (isinstance(value, Real) and not isinstance(value, bool)) or scalar
    if base is torch.device and isinstance(value, str):
        return _is_device(value)
    if base in (Path, os.PathLike):
        return isinstance(value, str | os.PathLike)
    if base.__name__ == "Denoiser":  # whatever wraps one, as torch.compile does
        return isinstance(value, base) or hasattr(value, "check_condition")
    return isinstance(value, base)


def _fits_list(value: Any, base: Any, parts: tuple[Any, ...]) -> bool:
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim > 0
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    if base is tuple and parts and parts[-1] is not Ellipsis:
        return len(value) == len(parts) and all(fits(one, part) for one, part in zip(value, parts, strict=True))
    return not parts or not isinstance(value, list | tuple) or all(fits(one, parts[0]) for one in value)


def _is_device(text: str) -> bool:
    try:
        torch.device(text)
    except RuntimeError:
        return False
    return True


def wanted(kind: Any) -> str:
    """An annotation in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        words = list(dict.fromkeys(wanted(part) for part in parts if part is not type(None)))
        words = [word for word in words if word != "a text" or "a device such as 'cpu' or 'cuda:0'" not in words]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    base = origin or kind
    if base is Callable:
        return "a function"
    if base in (*LISTS, Iterable):
        inner = wanted(parts[0]) if parts and parts[0] is not Any else ""
        plural = {"a whole number": " of whole numbers", "a number": " of numbers", "a text": " of texts"}.get(
            inner, ""
        )
        if base is tuple and parts and parts[-1] is not Ellipsis:
            return f"{len(parts)}{plural.removeprefix(' of') or ' values'}"
        return f"a list{plural}" if plural or not inner else f"a list, each {inner}"
    if base in (Mapping, dict):
        return "a mapping of names to values"
    if base in (Path, os.PathLike):
        return "a path"
    name = getattr(base, "__name__", str(base))
    return WORDS.get(base) or NAMED.get(name) or f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value in a message: in short."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    text = repr(value) if isinstance(value, str | bytes | int | float | list | tuple | dict | None) else ""
    if text and len(text) <= 60:
        return text
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


@functools.cache
def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """The kinds of the arguments of a function, or of a class's `__init__`, as far as their names are known there."""
    called: Any = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    called = inspect.unwrap(called)
    space, parameters = getattr(called, "__globals__", {}), inspect.signature(called).parameters
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if (
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            or parameter.annotation is parameter.empty
        ):
            continue
        kind = parameter.annotation
        try:
            found[name] = eval(kind, space) if isinstance(kind, str) else kind  # our own source, written as a string
        except (NameError, TypeError, AttributeError):  # a name for type checkers alone
            continue
    return found


@functools.cache
def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

"""Modules in evaluation mode for a while, each with its own flag afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Every module reached from these in evaluation mode; after it, or an error in it, each as it was.

    A module that trains may hold parts that do not, and a wrapper's own flag says nothing of the model inside: one call
    of `train` for all of them would switch on dropout that was off. Modules that another one knows without counting
    them among its parts (`fewstep.networks.surgery.InPlaceOf`) are reached too.
    """
    before = [(module, module.training) for module in _reached(modules)]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def _reached(modules: tuple[nn.Module, ...]) -> list[nn.Module]:
    found: dict[nn.Module, None] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += module.children()
            waiting += [value for value in vars(module).values() if isinstance(value, nn.Module)]
    return list(found)

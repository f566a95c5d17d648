"""Empty modules in the place of packages that a peer imports and that nothing here needs."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = ("torchvision", "torchmetrics", "pandas", "h5py", "kornia", "timm")


class Anything(type):
    """The class of names in such a module: they may be called, inherited from and looked into."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __iter__(cls) -> Any:
        return iter(())


class StandIn(ModuleType):
    """A module in which everything is there and nothing does anything."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {"__init__": lambda self, *args, **options: None})


class _Finder:
    """Finds stand-ins for the packages and whatever is imported from inside them."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def stand_in() -> tuple[str, ...]:
    """Stand-ins for those of `NAMES` that are not installed, which are returned."""
    missing = tuple(name for name in NAMES if name not in sys.modules and importlib.util.find_spec(name) is None)
    if missing:
        sys.meta_path.append(_Finder(missing))  # type: ignore[arg-type]
    return missing

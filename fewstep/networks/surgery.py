"""Surgery by name: a network with other modules at some of its paths, beside the one it was made from.

Nothing is hooked and nothing is written into the original. `replaced(network, {path: module})` is a second network
that shares every tensor with the first, so threads may run several of them at once over one set of weights. Leaving
blocks out, caching them, reading features and changing attention are all done this way.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from fewstep.core.errors import suggest

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Block:
    """Where a block lies in a network, and how its tensor goes in and out.

    Attributes:
        path: its path in the network.
        level: of its resolution, 0 the finest; each further level halves height and width.
        input: the argument that holds its input, by position or by name.
        output: its place in the tuple that the block returns; None where the block returns the tensor alone.
        skippable: whether the block may be left out: it adds to its input and keeps its shape.
        beside: the argument for what the tuple returns in its other place (the words that a joint block of
            words and pixels passes on); None where the tuple has one place.
    """

    path: str
    level: int = 0
    input: int | str = 0
    output: int | None = None
    skippable: bool = False
    beside: int | str | None = None

    def taken(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        """The block's input among the arguments of a call."""
        return _argument(self.input, args, named)

    def value(self, answer: Any) -> Tensor:
        """The block's tensor in the return value of a call."""
        return answer if self.output is None else answer[self.output]

    def answer(self, x: Tensor, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """The block's return value with `x` as its tensor, everything else passed on unchanged."""
        if self.output is None:
            return x
        places = [] if self.beside is None else [_argument(self.beside, args, named)]
        places.insert(self.output, x)
        return tuple(places)


def _argument(key: int | str, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    return args[key] if isinstance(key, int) else named[key]


class InPlaceOf(nn.Module):
    """Base of the modules that replace the module `of`, which they know without holding its weights.

    Attributes that they lack are those of `of`: some networks reach into their blocks (the transformer of diffusers'
    DiT reads the class through its first one).
    """

    def __init__(self, of: nn.Module | None) -> None:
        super().__init__()
        self.__dict__["of"] = of  # not in the table of submodules

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if (of := self.__dict__.get("of")) is None:
                raise
            return getattr(of, name)


class Skip(InPlaceOf):
    """Replaces a block that is left out: it returns its first tensor unchanged.

    With `block`, the input is the argument that it names, and is returned in the block's own form.
    """

    def __init__(self, block: Block | None = None, of: nn.Module | None = None) -> None:
        super().__init__(of)
        self.block = block

    def forward(self, *args: Any, **named: Any) -> Any:
        if self.block is not None:
            return self.block.answer(self.block.taken(args, named), args, named)
        return next(value for value in (*args, *named.values()) if isinstance(value, Tensor))


class Keep(InPlaceOf):
    """Runs `block`, and puts its return value into the caller's `store` under `name`, with its gradient.

    The block's weights are those of its submodule `block`.
    """

    def __init__(self, block: nn.Module, store: MutableMapping[str, Any], name: str) -> None:
        super().__init__(block)
        self.block, self.store, self.name = block, store, name

    def forward(self, *args: Any, **named: Any) -> Any:
        self.store[self.name] = answer = self.block(*args, **named)
        return answer


class Stored(InPlaceOf):
    """Replaces a block that is not run: it returns what `store` has under `name` when it is called.

    Raises ValueError when there is nothing yet.
    """

    def __init__(self, store: Mapping[str, Any], name: str, of: nn.Module | None = None) -> None:
        super().__init__(of)
        self.store, self.name = store, name

    def forward(self, *args: Any, **named: Any) -> Any:
        if self.name not in self.store:
            raise ValueError(f"nothing has been kept under {self.name!r} yet: run the network with Keep first")
        return self.store[self.name]


def replaced(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """`module` with other submodules at these dotted paths, sharing all the rest; without paths, `module` itself.

    Only the modules on the way to the paths are copied, shallowly: parameters, buffers and hooks, present and future
    ones, are those of the original, which is untouched. The copy is for running, not for changing: `to`, `train` and
    the like reach through it into what is shared. Its state dict has the names of its own modules, so a left-out block
    has none. A submodule that lies at several paths is replaced only at the given ones.

    Raises:
        ValueError: a path that the module does not have, one inside another of the paths, something that is not a
            module in its place, or a module on the way whose `forward` was exchanged on the object (as a compiled
            one's: a copy of it would run the original).
    """
    if not parts:
        return module
    for path, part in parts.items():
        if path not in _paths(module, path):
            raise suggest("path", path, (name for name, _ in module.named_modules() if name))
        if outer := next((other for other in parts if path.startswith(f"{other}.")), None):
            raise ValueError(f"{path!r} lies inside {outer!r}, which is replaced as well")
        if not isinstance(part, nn.Module):
            raise ValueError(f"what replaces {path!r} must be a module, got {part!r}")
    copies = {"": _copy(module)}
    for path, part in parts.items():
        *above, last = path.split(".")
        at, parent = "", copies[""]
        for name in above:
            at = f"{at}.{name}"
            if at not in copies:
                copies[at] = parent._modules[name] = _copy(parent._modules[name])
            parent = copies[at]
        parent._modules[last] = part
    return copies[""]


def linked(module: _Module, trained: bool = True) -> _Module:
    """A second tree of modules over the same parameters and buffers: what is put into it is not in the first.

    trained: whether parameters that ask for gradients are shared as well; without, the second tree has copies of those.
    """
    shared = [each for each in module.parameters() if trained or not each.requires_grad]
    buffers = module.buffers() if trained else ()
    return copy.deepcopy(module, {id(each): each for each in (*shared, *buffers)})


def compiled_as(model: nn.Module, copy: nn.Module) -> None:
    """Compile what `replaced` has copied of a model's modules that were compiled in place (`module.compile()`).

    A copy runs eagerly: what its original was compiled to is the original.
    """
    for path, module in model.named_modules():
        if module.__dict__.get("_compiled_call_impl") is not None:
            other = copy.get_submodule(path)
            if other is not module and other.__dict__.get("_compiled_call_impl") is None:
                other.compile()


def without(model: nn.Module, blocks: Iterable[Block]) -> nn.Module:
    """The model with these blocks left out, sharing everything else with it."""
    return replaced(model, {block.path: Skip(block, model.get_submodule(block.path)) for block in blocks})


def has(module: nn.Module, path: str) -> bool:
    """Whether the module has a submodule at this path, of its own: what is in place of another has none of that."""
    return not path or path in _paths(module, path)


def _paths(module: nn.Module, path: str) -> Iterator[str]:
    """The parts of a dotted path that lead to submodules, from the shortest on."""
    at, here = "", module
    for name in path.split("."):
        child = here._modules.get(name)
        if child is None:
            return
        at, here = f"{at}.{name}" if at else name, child
        yield at


def _copy(module: nn.Module | None) -> nn.Module:
    """A shallow copy with a table of submodules of its own.

    Not `copy.copy`, which a parametrised module refuses.
    """
    assert module is not None
    made: nn.Module = object.__new__(type(module))
    made.__dict__.update(module.__dict__, _modules=dict(module._modules))
    made.__dict__.pop("_compiled_call_impl", None)  # that of `module.compile()` runs the original
    if "forward" in module.__dict__:
        _rebind(module, made)
    return made


def _rebind(module: nn.Module, made: nn.Module) -> None:
    """Lets a forward that accelerate wrapped (weights that are moved when they are used) run the copy."""
    forward, inner = module.__dict__["forward"], module.__dict__.get("_old_forward")
    wrapped = isinstance(forward, functools.partial) and len(forward.args) == 1 and forward.args[0] is module
    if not (wrapped and isinstance(inner, MethodType) and inner.__self__ is module):
        raise ValueError(
            f"the forward of this {type(module).__name__} was exchanged on the object, so a copy would run the"
            " original: replace first, then compile or wrap"
        )
    made.__dict__["_old_forward"] = MethodType(inner.__func__, made)
    made.__dict__["forward"] = functools.update_wrapper(functools.partial(forward.func, made), forward)

"""Parts of a network whose answers stand still: which blocks they span, and the modules that keep and replace them.

A part is a stretch of blocks in running order. Where all of them add to their input and keep its shape, what is kept is
the sum of what they add (`residual`), so that whatever changes before the stretch still gets through; elsewhere it is
what comes out of the last of them, with everything that only leads there left out.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.networks.blocks import networks_of
from fewstep.networks.surgery import Block, InPlaceOf, Skip

Store = MutableMapping[str, Tensor]
NOISE = "noise"  # in a store: the noise level of each row, for an adaptor (`forecast.told`)


@dataclass(frozen=True)
class Part:
    """A stretch of a network: `blocks` in running order, of which the last gives what is kept, under `name`.

    residual: what is kept is what the stretch adds to its input. Otherwise it is the value of the last block, which
    the others are needed for and nothing else is.
    """

    name: str
    blocks: tuple[Block, ...]
    residual: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of what is kept: two where a joint block passes words on as well."""
        joint = bool(self.blocks) and self.blocks[-1].beside is not None
        return (self.name, f"{self.name} words") if joint else (self.name,)

    def keeping(self, model: nn.Module, store: Store) -> dict[str, nn.Module]:
        """The modules, by path, that run the stretch and put into `store` what is kept."""
        first, last = self.blocks[0], self.blocks[-1]
        end = model.get_submodule(last.path)
        if not self.residual:
            return {last.path: Kept(end, last, store, self.keys, None)}
        if len(self.blocks) == 1:
            return {last.path: Kept(end, last, store, self.keys, (last, store))}
        begin: dict[str, Any] = {}  # what enters the stretch, which its end subtracts
        start = Entered(model.get_submodule(first.path), first, begin)
        return {first.path: start, last.path: Kept(end, last, store, self.keys, (first, begin))}

    def standing(self, model: nn.Module, store: Store, adaptor: nn.Module | None = None) -> dict[str, nn.Module]:
        """The modules, by path, that leave the stretch out and take its answer from `store`.

        With an adaptor the answer is what that makes of the kept value, what enters the stretch and the noise level:
        of a part that is not residual, which has at least two blocks.
        """
        last, found = self.blocks[-1], dict[str, nn.Module]()
        for block in self.blocks[:-1]:
            module = model.get_submodule(block.path)
            found[block.path] = Skip(block, module) if self.residual else Void(module)
        end = model.get_submodule(last.path)
        found[last.path] = Standing(end, last, store, self.keys, self.residual)
        if adaptor is not None:
            first, begin = self.blocks[0], dict[str, Any]()
            found[first.path] = Seen(model.get_submodule(first.path), first, begin)
            found[last.path] = Adapted(end, last, store, self.keys, adaptor, begin)
        return found


def entering(block: Block, args: tuple[Any, ...], named: Mapping[str, Any]) -> list[Tensor]:
    """What goes into a block: its tensor and, of a joint one, the words."""
    found = [block.taken(args, named)]
    return found if block.beside is None else [*found, replace(block, input=block.beside).taken(args, named)]


def leaving(block: Block, answer: Any) -> list[Tensor]:
    """What comes out of a block: its tensor and, of a joint one, the words, none `(rows, 0)` where it has no use for
    them: SD3's last one."""
    if block.beside is None:
        return [block.value(answer)]
    assert block.output is not None
    value, words = answer[block.output], answer[1 - block.output]
    return [value, value.new_zeros((len(value), 0)) if words is None else words]


def added(out: Tensor, into: Tensor) -> Tensor:
    """What a stretch adds to its input; nothing to words that it does not pass on."""
    return out - into if out.shape == into.shape else out


def onto(into: Tensor, kept: Tensor) -> Tensor:
    """What a stretch that stands makes of its input, the inverse of `added`."""
    return into + kept if kept.shape == into.shape else kept


def returned(block: Block, values: Sequence[Tensor], args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What a block returns whose tensors (`leaving`) these are."""
    if len(values) == 1:
        return block.answer(values[0], args, named)
    value, words = values[0], values[1] if values[1].ndim > 2 else None
    return (value, words) if block.output == 0 else (words, value)


class Entered(InPlaceOf):
    """Runs a block, and notes what entered it."""

    def __init__(self, of: nn.Module, block: Block, begin: MutableMapping[str, Any]):
        super().__init__(of)
        self.run, self.block, self.begin = of, block, begin  # not `inner`, which networks ask blocks of ours for

    def forward(self, *args: Any, **named: Any) -> Any:
        self.begin["entered"] = entering(self.block, args, named)
        return self.run(*args, **named)


class Kept(InPlaceOf):
    """Runs a block, and keeps what comes out, or that less what entered a stretch.

    before: the first block of the stretch and where what entered it is noted, of a residual part.
    """

    def __init__(
        self,
        of: nn.Module,
        block: Block,
        store: Store,
        keys: Sequence[str],
        before: tuple[Block, MutableMapping[str, Any]] | None,
    ):
        super().__init__(of)
        self.run, self.block, self.store, self.keys, self.before = of, block, store, keys, before

    def forward(self, *args: Any, **named: Any) -> Any:
        answer = self.run(*args, **named)
        found = leaving(self.block, answer)
        if self.before is not None:
            begin = self.before[1]
            entered = begin.pop("entered") if "entered" in begin else entering(self.block, args, named)
            found = [added(out, into) for out, into in zip(found, entered, strict=True)]
        self.store.update(zip(self.keys, found, strict=True))
        return answer


class Standing(InPlaceOf):
    """Replaces a block by what is in the store: its value, or what it adds to its input."""

    def __init__(self, of: nn.Module, block: Block, store: Store, keys: Sequence[str], residual: bool):
        super().__init__(of)
        self.block, self.store, self.keys, self.residual = block, store, keys, residual

    def forward(self, *args: Any, **named: Any) -> Any:
        values = [self.store[key] for key in self.keys]
        if self.residual:
            entered = entering(self.block, args, named)
            values = [onto(into, value) for into, value in zip(entered, values, strict=True)]
        return returned(self.block, values, args, named)


class Void(InPlaceOf):
    """Replaces what only leads to a value that is kept: it returns no channels at all, in the form of what it is for.

    A stage of diffusers' way down returns its skips as well, as many as there are ones that it would have made.
    """

    def forward(self, *args: Any, **named: Any) -> Any:
        nothing = next(value for value in (*args, *named.values()) if isinstance(value, Tensor))[:, :0]
        resnets, ends = (self.of._modules.get(name) for name in ("resnets", "downsamplers"))
        if isinstance(resnets, nn.ModuleList) and hasattr(self.of, "downsamplers"):
            return nothing, (nothing,) * (len(resnets) + (len(ends) if isinstance(ends, nn.ModuleList) else 0))
        return nothing


class Seen(Void):
    """Replaces the first block of what only leads to a value that is kept, and notes what enters it."""

    def __init__(self, of: nn.Module, block: Block, begin: MutableMapping[str, Any]):
        super().__init__(of)
        self.block, self.begin = block, begin

    def forward(self, *args: Any, **named: Any) -> Any:
        self.begin["entered"] = entering(self.block, args, named)
        return super().forward(*args, **named)


class Adapted(Standing):
    """Replaces a block by what an adaptor makes of its kept value, `adaptor(kept, shallow, noise)`.

    shallow: what enters the part, as `Seen` noted it. The answer must have the shape of what is kept.
    """

    def __init__(
        self,
        of: nn.Module,
        block: Block,
        store: Store,
        keys: Sequence[str],
        adaptor: nn.Module,
        begin: MutableMapping[str, Any],
    ):
        super().__init__(of, block, store, keys, False)
        self.adaptor, self.begin = adaptor, begin

    def forward(self, *args: Any, **named: Any) -> Any:
        kept, (shallow,) = self.store[self.keys[0]], self.begin.pop("entered")
        made = self.adaptor(kept, shallow, self.store[NOISE])
        if made.shape != kept.shape:
            raise ValueError(
                f"the adaptor must give a feature of the kept one's shape, {tuple(kept.shape)}, got {tuple(made.shape)}"
            )
        return returned(self.block, [made], args, named)


def cut(model: nn.Module, level: int) -> Part:
    """What is below a level of a UNet: what comes up to level `level - 1` from the coarser ones is kept.

    Raises:
        ValueError: a network that is no UNet, or that has no such level.
    """
    blocks = networks_of(model)[0]
    stages = _stages(model, blocks)
    if not stages:
        raise ValueError(
            "this needs a UNet, whose blocks lie on a way down and a way up; the network's blocks are "
            + ", ".join(list(blocks)[:6])
        )
    if level not in stages or isinstance(level, bool):
        raise ValueError(f"the network must be a UNet with a level {level} below its first; it has {sorted(stages)}")
    return Part(f"below level {level - 1}", stages[level], False)


def _stages(model: nn.Module, blocks: Mapping[str, Block]) -> dict[int, tuple[Block, ...]]:
    """What lies below each level of a UNet but the last, by the level below."""
    names, found = list(blocks), dict[int, tuple[Block, ...]]()
    for name in names:  # of our own
        kind, _, rest = name.partition(".")
        if kind == "up" and rest.endswith(".up"):
            level = int(rest.split(".")[0])
            begin = names.index(f"down.{level - 1}.down")
            found[level] = tuple(blocks[one] for one in names[begin : names.index(name) + 1])
    if found:
        return found
    path = next((block.path for block in blocks.values() if "down_blocks." in block.path), "")
    root = path.partition("down_blocks.")[0]
    downs, ups = (
        [f"{root}{name}.{i}" for i in range(len(list(model.get_submodule(f"{root}{name}").children())))] if path else []
        for name in ("down_blocks", "up_blocks")
    )
    if not downs or len(downs) != len(ups):
        return {}
    middle = [f"{root}mid_block"] if model.get_submodule(root.rstrip("."))._modules.get("mid_block") is not None else []
    for level in range(1, len(downs)):
        ends = model.get_submodule(downs[level - 1])._modules.get("downsamplers")
        if ends is None:  # the next stage is as fine: a pixel model's, which passes a picture along
            return {}
        paths = [f"{downs[level - 1]}.downsamplers.{i}" for i in range(len(list(ends.children())))]
        paths += [*downs[level:], *middle, *ups[: len(ups) - level]]
        found[level] = tuple(Block(path, level) for path in paths)
    return found


def rest(model: nn.Module, front: int = 1, back: int = 0) -> Part:
    """All blocks of a transformer but the first `front` and the last `back`, as one residual part.

    Raises:
        ValueError: a network whose blocks do not all add to their input and keep its shape, or too few of them.
    """
    blocks = networks_of(model)[0]
    chain = units(blocks)
    if not all(block.skippable for block in blocks.values()) or len(names := list(blocks)) < 2:
        raise ValueError(
            "this needs a transformer, whose blocks all add to their input and keep its shape; a UNet has 'deepcache'"
        )
    if min(front, back) < 0 or front + back >= len(chain):
        raise ValueError(f"front and back must leave at least one of the {len(chain)} blocks, got {front} and {back}")
    inside = [name for unit in chain[front : len(chain) - back] for name in unit]
    assert all(name in names for name in inside)
    return Part(f"blocks {front} to {len(chain) - back - 1}", tuple(blocks[name] for name in inside), True)


def units(blocks: Mapping[str, Block]) -> list[list[str]]:
    """The names of blocks grouped as one counts a transformer's: attention and perceptron of one number together."""
    found: dict[str, list[str]] = {}
    for name in blocks:
        head, _, last = name.rpartition(".")
        found.setdefault(name if last.isdecimal() or not head else head, []).append(name)
    return list(found.values())


def each(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Part]:
    """Every block that can be left out, or those of these names, as a residual part of its own."""
    blocks = networks_of(model)[0]
    able = {name: block for name, block in blocks.items() if block.skippable}
    for name in (name for name in names or () if name not in able):
        raise suggest("block", name, able)
    chosen = able if names is None else {name: able[name] for name in names}
    return {name: Part(name, (block,), True) for name, block in chosen.items()}


def innermost(model: Denoiser, parts: Mapping[str, Part]) -> str:
    """The path of the innermost denoiser that holds the parts, "" for the model itself.

    Of parts without blocks that is the one that wraps no other.
    """
    paths = [part.blocks[-1].path for part in parts.values() if part.blocks]
    if not paths:
        at, inner = "", model
        while isinstance(inner, Wrapper) and list(inner.children()) == [inner.model]:
            at, inner = f"{at}.model" if at else "model", inner.model
        return at
    names = paths[0].split(".")
    holders = [".".join(names[:n]) for n in range(1, len(names))]
    found = [holder for holder in holders if isinstance(model.get_submodule(holder), Denoiser)]
    return found[-1] if found else ""

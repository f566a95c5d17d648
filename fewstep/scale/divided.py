"""A transformer in strips: the network and its attention as one worker, or all of them in turn, compute them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.memory import AnyMemory, Memory
from fewstep.core.memory import Part as Rows
from fewstep.networks.attention import Identity
from fewstep.networks.common import Attend
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import InPlaceOf, replaced
from fewstep.scale.strips import Strips
from fewstep.scale.workers import Group, Message, Pending


def strips_of(network: DiT, workers: int) -> Strips:
    """The strips of a network's tokens."""
    rows, columns = (side // network.patch for side in network.size)
    return Strips(rows, columns, workers)


@dataclass
class Call:
    """One evaluation of some rows, and the bytes that it sends.

    waits: for fresh keys and values of all. known: whether older ones are there. last: nobody reads what it would send.
    """

    memory: AnyMemory
    waits: bool
    known: bool
    last: bool
    border: int | None
    group: Group | None
    bytes: int = 0
    output: int = 0

    def tell(self, part: Memory | Rows) -> None:
        """Add what was sent, by this part's rows, to its report."""
        report = part.report.setdefault("patches", {"synchronous": 0, "stale": 0, "bytes": 0, "output bytes": 0})
        report["synchronous" if self.waits else "stale"] += 1
        report["bytes"] += self.bytes * part.rows // self.memory.rows
        report["output bytes"] += self.output * part.rows // self.memory.rows


class Divided(InPlaceOf):
    """Replaces a network: the same on the strip of the group's worker, or without a group on all strips in turn.

    A strip of a `dit` is itself one, of another height, with its rows' places.

    Raises ValueError for attention under a rule that looks at the whole picture, of which a worker has a strip.
    """

    def __init__(self, network: DiT, name: str, strips: Strips, call: Call) -> None:
        super().__init__(network)
        self.strips, self.call, self.patch = strips, call, network.patch
        # `first` stands for itself: the copy is made even where a cache has left no attention.
        parts: dict[str, nn.Module] = {"first": network.first}
        for path, core in network.named_modules(remove_duplicate=False):
            if type(core) is Attend:
                parts[path] = Divides(core, f"{name}.{path}", strips, call)
            elif path.endswith(".core") and type(core) is not Identity:
                raise ValueError(
                    f"the attention {path!r} is under the rule {type(core).__name__}, which looks at the whole picture:"
                    " patch workers, who have a strip each, divide softmax attention alone"
                )
        self.inner = replaced(network, parts)
        if call.group is not None:
            own = strips.own(call.group.rank)
            places = dict(network._buffers, place=network.place[strips.tokens(own)])
            self.inner.__dict__.update(size=(len(own) * self.patch, network.size[1]), _buffers=places)

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        group = self.call.group
        if group is None:
            out: Tensor = self.inner(x, *args, **named)
            self.call.output += out.numel() * out.element_size() * (self.strips.workers - 1)
            return out
        rows = [range(strip.start * self.patch, strip.stop * self.patch) for strip in self._own()]
        if x.ndim != 4 or x.shape[2:] != (rows[-1].stop, self.of.size[1]):
            return self.of(x, *args, **named)  # which says what is wrong
        own = rows[group.rank]
        mine = self.inner(x[:, :, own.start : own.stop], *args, **named).contiguous()
        peers = [peer for peer in range(group.size) if peer != group.rank]
        room = {peer: mine.new_empty((*mine.shape[:2], len(rows[peer]), mine.shape[3])) for peer in peers}
        self.call.output += mine.numel() * mine.element_size() * len(peers)
        group.exchange([(peer, mine) for peer in peers], list(room.items())).wait()
        return torch.cat([mine if one == group.rank else room[one] for one in range(group.size)], 2)

    def _own(self) -> list[range]:
        return [self.strips.own(worker) for worker in range(self.strips.workers)]


class Divides(nn.Module):
    """In the place of `Attend`: a strip's queries, with its own keys and values and what is known of the others'."""

    def __init__(self, core: nn.Module, name: str, strips: Strips, call: Call) -> None:
        super().__init__()
        self.core, self.name, self.strips, self.call = core, name, strips, call

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        both = torch.stack((k, v), 1)  # (B, 2, heads, tokens, C)
        fresh, beside = both.split([q.shape[2], words], 3)
        return self._all(q, fresh, beside) if self.call.group is None else self._one(self.call.group, q, fresh, beside)

    def _attend(self, q: Tensor, keys: list[Tensor], beside: Tensor) -> Tensor:
        k, v = torch.cat([*keys, beside], 3).unbind(1)
        out: Tensor = self.core(q, k, v, beside.shape[3])
        return out

    @property
    def _sees(self) -> int | None:
        """How far the strips' exchange of this evaluation goes."""
        return None if self.call.waits else self.call.border

    @property
    def _sends(self) -> bool:
        return self.call.waits or not self.call.last

    def _all(self, q: Tensor, fresh: Tensor, beside: Tensor) -> Tensor:
        """All workers, in turn."""
        strips, call, found = self.strips, self.call, []
        source = fresh if call.waits else call.memory.get(self.name) if call.known else None
        for worker in range(strips.workers):
            own, seen = strips.own(worker), strips.seen(worker, self._sees)
            above, below = range(seen.start, own.start), range(own.stop, seen.stop)
            keys = [
                part[:, :, :, strips.tokens(rows)]
                for part, rows in ((source, above), (fresh, own), (source, below))
                if part is not None
            ]
            found.append(self._attend(q[:, :, strips.tokens(own)], keys, beside))
            for other in range(strips.workers) if self._sends else ():
                sent = fresh[:, :, :, strips.tokens(strips.message(worker, other, self._sees))]
                call.bytes += sent.numel() * sent.element_size()
        if not call.last and call.border != 0:
            call.memory.keep(self.name, fresh.detach())
        return torch.cat(found, 2)

    def _one(self, group: Group, q: Tensor, fresh: Tensor, beside: Tensor) -> Tensor:
        """The group's worker, whose strip the tokens are."""
        strips, call, coming = self.strips, self.call, f"{self.name} coming"
        for part in call.memory.parts():
            for one in part.notes.pop(coming, ()):
                one.finish()
        own, seen = strips.own(group.rank), strips.seen(group.rank, call.border)
        above, below = own.start - seen.start, seen.stop - own.stop
        if call.waits:
            everyone = self._exchange(group, fresh).whole()
            before, after = everyone.split([own.start * strips.columns, (strips.rows - own.stop) * strips.columns], 3)
            if not call.last and above + below:
                border = (
                    before[:, :, :, (own.start - above) * strips.columns :],
                    after[:, :, :, : below * strips.columns],
                )
                call.memory.keep(self.name, torch.cat(border, 3))
            return self._attend(q, [before, fresh, after], beside)
        old = call.memory.get(self.name) if call.known else None
        if self._sends and call.border != 0:
            sent = self._exchange(group, fresh)
            for part in call.memory.parts():
                part.notes.setdefault(coming, []).append(sent)
        if old is None:
            return self._attend(q, [fresh], beside)
        before, after = old.split([above * strips.columns, below * strips.columns], 3)
        return self._attend(q, [before, fresh, after], beside)

    def _exchange(self, group: Group, fresh: Tensor) -> Coming:
        """Begin to send what others see of this strip, and to receive what this worker sees of theirs."""
        first, sent, room = self.strips.own(group.rank).start, list[Message](), list[Message]()
        for peer in range(group.size):
            rows = self.strips.message(group.rank, peer, self._sees)
            if rows:
                inside = self.strips.tokens(range(rows.start - first, rows.stop - first))
                sent.append((peer, fresh[:, :, :, inside].contiguous()))
            if count := len(self.strips.message(peer, group.rank, self._sees)):
                shape = (*fresh.shape[:3], count * self.strips.columns, fresh.shape[4])
                room.append((peer, fresh.new_empty(shape)))
        self.call.bytes += sum(tensor.numel() * tensor.element_size() for _, tensor in sent)
        return Coming(group.exchange(sent, room), [tensor for _, tensor in room], self.call.memory, self.name)


@dataclass
class Coming:
    """What is on its way to a worker, from above to below, for the next evaluation of the same rows."""

    pending: Pending
    room: list[Tensor]
    memory: AnyMemory
    name: str
    done: bool = False

    def whole(self) -> Tensor:
        """All of it, when it is there."""
        self.pending.wait()
        return torch.cat(self.room, 3)

    def finish(self) -> None:
        """Keep it, once, when it is there; a worker that only sends has nothing to keep."""
        if not self.done:
            self.done = True
            self.pending.wait()
            if self.room:
                self.memory.keep(self.name, torch.cat(self.room, 3))

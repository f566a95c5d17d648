"""A picture's tokens in horizontal strips, one a worker: which rows each has, sees and sends, and how many bytes."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.core.arguments import shown


@dataclass(frozen=True)
class Strips:
    """`rows` of `columns` tokens over `workers`, as evenly as they go.

    A *border* is how many token rows above and below its own strip a worker sees of the others; None for all.

    Raises:
        ValueError: fewer than one worker, or more than rows.
    """

    rows: int
    columns: int
    workers: int

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or not 1 <= self.workers <= self.rows:
            raise ValueError(
                f"workers must be a whole number from 1 to {self.rows}, the rows of the network's {self.rows}x"
                f"{self.columns} tokens, got {shown(self.workers)}"
            )

    def own(self, worker: int) -> range:
        """The rows of a worker's strip."""
        return range(worker * self.rows // self.workers, (worker + 1) * self.rows // self.workers)

    @property
    def widest(self) -> int:
        """The least border with which every worker sees all: the rows beyond the strip at an edge."""
        return self.rows - min(len(self.own(0)), len(self.own(self.workers - 1)))

    def check(self, border: int | None) -> None:
        """`ValueError` for a border that is no whole number from 0 to the widest, or None."""
        whole = isinstance(border, int) and not isinstance(border, bool)
        if border is not None and not (whole and 0 <= border <= self.widest):
            raise ValueError(
                f"border must be a whole number from 0 to {self.widest}, the token rows beyond a strip, or None for"
                f" all of them, got {shown(border)}"
            )

    def seen(self, worker: int, border: int | None) -> range:
        """The rows that a worker attends to, its own among them."""
        own = self.own(worker)
        if border is None:
            return range(self.rows)
        return range(max(own.start - border, 0), min(own.stop + border, self.rows))

    def message(self, sender: int, receiver: int, border: int | None) -> range:
        """The rows of one worker's strip that another sees, perhaps none."""
        own, seen = self.own(sender), self.seen(receiver, border)
        start = max(own.start, seen.start)
        return range(start, max(min(own.stop, seen.stop), start)) if sender != receiver else range(0)

    def sent(self, border: int | None, worker: int | None = None) -> int:
        """How many rows all workers send in one exchange, or one of them: a row counts once for each receiver."""
        senders = range(self.workers) if worker is None else (worker,)
        return sum(len(self.message(one, other, border)) for one in senders for other in range(self.workers))

    def tokens(self, rows: range) -> slice:
        """The tokens of some rows among all."""
        return slice(rows.start * self.columns, rows.stop * self.columns)

    def bytes(
        self, border: int | None, width: int, depth: int, batch: int = 1, itemsize: int = 4, worker: int | None = None
    ) -> int:
        """Of the keys and values that are sent at one evaluation of a network with `depth` attentions:

            2 * depth * batch * width * columns * itemsize * sent rows.

        Of equal strips of at least `border` rows the workers send `2 * border * (workers - 1)` rows, and the whole map
        takes `rows * (workers - 1)`.
        """
        return 2 * depth * batch * width * self.columns * itemsize * self.sent(border, worker)

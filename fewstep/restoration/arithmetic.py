"""An arithmetic coder on integers: symbols as nearly so many bits as their frequencies say.

What is sent is a number in [0, 1), binary digit by digit: each symbol narrows an interval to its share of it, and
digits that both ends agree on are written out (Witten, Neal and Cleary, "Arithmetic coding for data compression",
1987). Every quantity is a whole number, so an encoder and a decoder on two machines never part.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, repeat
from typing import Protocol

WORD = 32  # bits of the interval's ends
TOP, HALF, QUARTER = (1 << WORD) - 1, 1 << (WORD - 1), 1 << (WORD - 2)


class Law(Protocol):
    """Frequencies of symbols 0, 1, ...: whole numbers, whose sum `total` is at most 2^30."""

    total: int

    def span(self, symbol: int) -> tuple[int, int]:
        """The sum of the frequencies below a symbol, and that up to it; `ValueError` for one that cannot occur."""
        ...

    def at(self, place: int) -> int:
        """The symbol whose span holds a place from 0 to total - 1."""
        ...

    def seen(self, symbol: int) -> None:
        """Told after each symbol that was coded."""
        ...


class Given:
    """Frequencies that stay: `counts` of at least 0, not all 0."""

    def __init__(self, counts: Sequence[int]):
        if not counts or min(counts) < 0 or not 0 < sum(counts) <= QUARTER:
            raise ValueError(f"frequencies are at least 0, and their sum from 1 to 2^30, got {list(counts)[:8]}")
        self.ends = [0, *accumulate(int(count) for count in counts)]
        self.total = self.ends[-1]

    def span(self, symbol: int) -> tuple[int, int]:
        if not 0 <= symbol < len(self.ends) - 1 or self.ends[symbol] == self.ends[symbol + 1]:
            raise ValueError(f"the symbol {symbol} has no frequency among {len(self.ends) - 1}")
        return self.ends[symbol], self.ends[symbol + 1]

    def at(self, place: int) -> int:
        return bisect_right(self.ends, place) - 1

    def seen(self, symbol: int) -> None:
        """Nothing is learnt."""


class Adaptive(Given):
    """Frequencies that are learnt on the way, on both sides: half a count for each of `size` symbols to begin with
    (Krichevsky and Trofimov), then one more for each that was seen. What is learnt costs `(size - 1) / 2 log2 n`."""

    def __init__(self, size: int):
        super().__init__([1] * size)

    def seen(self, symbol: int) -> None:
        self.ends[symbol + 1 :] = [end + 2 for end in self.ends[symbol + 1 :]]
        self.total = self.ends[-1]
        if self.total > QUARTER:
            raise ValueError("too many symbols for one law: at most 2^29")


def encode(symbols: Iterable[int], laws: Iterable[Law]) -> bytes:
    """The symbols, each by a law of its own, as bytes; `ValueError` for a symbol that its law does not know.

    The end costs at most two bits, and what is missing of the last byte; zeros at the end are left out.
    """
    low, high, waiting = 0, TOP, 0
    bits: list[int] = []
    for symbol, law in zip(symbols, laws, strict=False):
        low, high = _narrowed(low, high, law, symbol)
        while (base := _known(low, high)) is not None:
            if base == QUARTER:
                waiting += 1
            else:
                bits += [base // HALF, *[1 - base // HALF] * waiting]
                waiting = 0
            low, high = 2 * (low - base), 2 * (high - base) + 1
    if low or waiting:  # else zeros, which need not be written, lie within
        first = int(low >= QUARTER)
        bits += [first, *[1 - first] * (waiting + 1)]
    made = bytearray(-(-len(bits) // 8))
    for k, one in enumerate(bits):
        made[k // 8] |= one << (7 - k % 8)
    return bytes(made).rstrip(b"\0")


def decode(data: bytes, laws: Iterable[Law]) -> list[int]:
    """The symbols, one for each law, that `encode` made the bytes of with the same laws, adaptive ones fresh."""
    bits = chain((byte >> k & 1 for byte in data for k in range(7, -1, -1)), repeat(0))
    low, high, value = 0, TOP, 0
    for _ in range(WORD):
        value = 2 * value + next(bits)
    symbols = []
    for law in laws:
        symbols.append(law.at(((value - low + 1) * law.total - 1) // (high - low + 1)))
        low, high = _narrowed(low, high, law, symbols[-1])
        while (base := _known(low, high)) is not None:
            low, high, value = 2 * (low - base), 2 * (high - base) + 1, 2 * (value - base) + next(bits)
    return symbols


def _narrowed(low: int, high: int, law: Law, symbol: int) -> tuple[int, int]:
    """The symbol's share of an interval; the law is told of it."""
    (below, upto), size, total = law.span(symbol), high - low + 1, law.total
    law.seen(symbol)
    return low + size * below // total, low + size * upto // total - 1


def _known(low: int, high: int) -> int | None:
    """Where the half begins in which an interval lies, whose digit is known then; the second quarter, for one that lies
    around the middle and within the middle half, where the next digit will tell two; None for a wider one."""
    if high < HALF:
        return 0
    if low >= HALF:
        return HALF
    return QUARTER if low >= QUARTER and high < HALF + QUARTER else None

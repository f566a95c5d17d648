"""A curriculum: the first samples of a run are of one kind, and all the data come after."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.methods import Method
from fewstep.data.dataset import Dataset
from fewstep.training.draws import Draws

METHODS = (
    Method(
        "curriculum",
        kind="rows",
        paper="Curriculum Learning (Bengio et al., 2009)",
        claim="one kind of sample first, then all: what all kinds share is learnt where nothing else varies",
        use="Curriculum",
    ),
)

POOL = 4096  # samples of the kind, at most
PART = 1024  # rows looked at together


class Curriculum(Draws):
    """The first `first` samples are those whose captions say `words`, in epochs of their own; then the ordinary order
    of all rows begins.

    words: of a caption, one after another ("red circle"). The kind is that of the first 4,096 rows that say so.

    Raises ValueError for data without captions, words that no caption says, and fewer than one sample.
    """

    def __init__(self, seed: int, data: Dataset, words: str, first: int) -> None:
        super().__init__(seed, len(data))
        if data.spec.text is None:
            raise ValueError(f"a curriculum chooses by captions, and {data.spec.name!r} comes without: leave it out")
        if not words.strip():
            raise ValueError("a curriculum needs words of a caption, such as 'red circle'")
        data.spec.text.tokens(words)  # unknown words say so at once
        self.data, self.words, self.first = data, words, check_whole("first", first)
        self._easy: Draws | None = None
        self._kind = torch.empty(0, dtype=torch.long)

    def rows(self, seen: int, count: int) -> Tensor:
        early = min(count, max(0, self.first - seen))
        parts = [] if early == count else [super().rows(seen + early - self.first, count - early)]
        if early:
            parts.insert(0, self._early(seen, early))
        return torch.cat(parts)

    def _early(self, seen: int, count: int) -> Tensor:
        if self._easy is None:  # a run that goes on after the first samples needs none of them
            self._kind = rows_that_say(self.data, self.words)
            self._easy = Draws(self.seed, len(self._kind))
        return self._kind[self._easy.rows(seen, count)]


def rows_that_say(data: Dataset, words: str, most: int = POOL) -> Tensor:
    """The first rows `(N,)`, at most `most`, whose captions have `words` one after another.

    ValueError where none does.
    """
    text = data.spec.text
    assert text is not None
    wanted, found, count = f" {' '.join(words.split())} ", [], 0
    for start in range(0, len(data), PART):
        rows = torch.arange(start, min(start + PART, len(data)))
        tokens = data.batch(rows)[1]["text"]
        says = torch.tensor([wanted in f" {text.words(row)} " for row in tokens.tolist()])
        found.append(rows[says])
        count += len(found[-1])
        if count >= most:
            break
    if not count:
        raise ValueError(f"no caption of {data.spec.name!r} says {words!r}")
    return torch.cat(found)[:most]

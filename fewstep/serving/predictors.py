"""What quality to expect of each option for a caption, from captions of which every option has been scored.

Captions are read as words: no model is needed to choose one. A predictor is `fitted(captions, quality)`, answers
`predict(captions)`, and is kept as `facts` (JSON) and `tensors`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.arguments import check_whole
from fewstep.networks.text import TextEncoder
from fewstep.training.players import Player, cosine, optimise

_WORD = re.compile(r"\w+")
WIDTH = 32
BATCH = 128
PASSES = 64  # over the captions: more, and it remembers them
UNKNOWN = 0.1  # of the words that training hides, so that captions with words passed over are met before
DECAY = 0.05


class Predictor(Protocol):
    """What a router asks."""

    name: ClassVar[str]

    def predict(self, captions: Sequence[str]) -> Tensor:
        """Qualities `(N, M)` float64 in [0, 1]."""

    def facts(self) -> dict[str, Any]: ...

    def tensors(self) -> dict[str, Tensor]: ...


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case, without punctuation."""
    return _WORD.findall(caption.lower())


class Nearest:
    """The mean quality of the `k` scored captions that are nearest in the cosine of their words.

    A caption is the bag of its words, a word's second occurrence being a word of its own, each weighed by
    log(1 + N / n) for its n of N captions. Captions as near as the k-th count as well, so the answer does not depend
    on their order.
    """

    name: ClassVar[str] = "knn"

    def __init__(self, captions: Sequence[str], quality: Tensor, k: int) -> None:
        self.captions, self.quality, self.k = tuple(captions), quality.double(), k
        bags = [_bag(caption) for caption in captions]
        counts: dict[str, int] = {}
        for word in (word for each in bags for word in each):
            counts[word] = counts.get(word, 0) + 1
        self._index = {word: number for number, word in enumerate(sorted(counts))}
        weights = [math.log1p(len(captions) / counts[word]) for word in self._index]
        self._weight = torch.tensor(weights, dtype=torch.float64)
        self._rows = self._vectors(bags)

    @classmethod
    def fitted(cls, captions: Sequence[str], quality: Tensor, k: int | None = None) -> Nearest:
        """k: by default twice the square root of the number of captions."""
        most = len(captions)
        return cls(captions, quality, check_whole("k", min(most, round(2 * most**0.5)) if k is None else k, most=most))

    def _vectors(self, bags: Sequence[set[str]]) -> Tensor:
        rows = torch.zeros(len(bags), len(self._index), dtype=torch.float64)
        for row, bag in zip(rows, bags, strict=True):
            known = [self._index[word] for word in bag if word in self._index]
            row[known] = self._weight[known]
        return functional.normalize(rows, dim=1)

    def predict(self, captions: Sequence[str]) -> Tensor:
        if not captions:
            return self.quality.new_zeros(0, self.quality.shape[1])
        near = (self._vectors([_bag(caption) for caption in captions]) @ self._rows.T * 1e9).round() / 1e9
        counted = (near >= near.topk(self.k, dim=1).values[:, -1:]).double()
        return (counted @ self.quality) / counted.sum(1, keepdim=True)  # without a known word, all are as near

    def facts(self) -> dict[str, Any]:
        return {"captions": list(self.captions), "k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        return {"quality": self.quality}

    @classmethod
    def restored(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Nearest:
        return cls(facts["captions"], tensors["quality"], facts["k"])


class Learned:
    """A small transformer on the caption's words, with one output for each option: sigmoid(w_m . mean + b_m).

    Trained on the cross-entropy of the scores, whose minimum is the expected quality; the biases start at the options'
    means. Everything random follows from the seed.
    """

    name: ClassVar[str] = "learned"

    def __init__(self, vocabulary: Sequence[str], length: int, mean: Tensor) -> None:
        self.vocabulary, self.length, self.mean = tuple(vocabulary), length, mean.double()
        self._index = {word: number + 1 for number, word in enumerate(self.vocabulary)}
        self.network = _Head(len(self.vocabulary), length, self.mean)

    @classmethod
    def fitted(
        cls, captions: Sequence[str], quality: Tensor, steps: int | None = None, lr: float = 3e-3, seed: int = 0
    ) -> Learned:
        """steps: of `BATCH` captions each, by default `PASSES` over all, at least 50; lr: the highest rate."""
        found = [words(caption) for caption in captions]
        vocabulary = sorted({word for each in found for word in each})
        if not vocabulary:
            raise ValueError("none of the captions has a word")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(vocabulary, max(map(len, found)), quality.mean(0))
        tokens, wanted = made._tokens(captions), quality.float()

        def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(tokens), (count,), generator=generator)
            shown = torch.rand(count, tokens.shape[1], generator=generator) >= UNKNOWN
            return _packed(tokens[rows] * shown), wanted[rows]

        def loss(drawn: tuple[Tensor, Tensor]) -> Tensor:
            logits = made.network(drawn[0])
            return functional.binary_cross_entropy_with_logits(logits, drawn[1], reduction="none").mean(1)

        steps = check_whole("steps", max(50, PASSES * len(captions) // BATCH) if steps is None else steps)
        rate = cosine(lr, steps, steps // 20)
        player = Player(made.network, loss, lr=rate, weight_decay=DECAY, clip=1.0)
        optimise({"router": player}, draw, steps=steps, batch=BATCH, seed=seed)
        made.network.eval()
        return made

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        """The indices (N, length) of the known words, zeros after the last."""
        rows = torch.zeros(len(captions), self.length, dtype=torch.long)
        for row, caption in zip(rows, captions, strict=True):
            known = [self._index[word] for word in words(caption) if word in self._index][: self.length]
            row[: len(known)] = torch.tensor(known, dtype=torch.long)
        return rows

    @torch.no_grad()
    def predict(self, captions: Sequence[str]) -> Tensor:
        if not captions:
            return self.mean.new_zeros(0, len(self.mean))
        tokens = self._tokens(captions)
        found = self.network(tokens).sigmoid().double()
        return torch.where((tokens > 0).any(1, keepdim=True), found, self.mean)

    def facts(self) -> dict[str, Any]:
        return {"vocabulary": list(self.vocabulary), "length": self.length}

    def tensors(self) -> dict[str, Tensor]:
        weights = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return weights | {"mean": self.mean}

    @classmethod
    def restored(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Learned:
        with torch.random.fork_rng(devices=[]):  # its weights are drawn, and replaced
            made = cls(facts["vocabulary"], facts["length"], tensors["mean"])
        made.network.load_state_dict(
            {name.removeprefix("network."): value for name, value in tensors.items() if name != "mean"}
        )
        made.network.eval()
        return made


class _Head(nn.Module):
    """Words (B, L) to logits (B, M)."""

    def __init__(self, vocabulary: int, length: int, mean: Tensor) -> None:
        super().__init__()
        self.encoder = TextEncoder(vocabulary, length, WIDTH)
        self.out = nn.Linear(WIDTH, len(mean))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(mean.clamp(0.01, 0.99).logit())

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens > 0).unsqueeze(2).float()
        mean = (self.encoder(tokens) * there).sum(1) / there.sum(1).clamp_min(1)
        found: Tensor = self.out(mean)
        return found


def _packed(tokens: Tensor) -> Tensor:
    """Tokens with the zeros moved behind the words, as captions without the hidden words have them."""
    return tokens.gather(1, (tokens == 0).byte().argsort(dim=1, stable=True))


def _bag(caption: str) -> set[str]:
    seen: Counter[str] = Counter()
    bag = set()
    for word in words(caption):
        bag.add(f"{word} {seen[word]}")
        seen[word] += 1
    return bag


PREDICTORS: dict[str, type[Nearest] | type[Learned]] = {Nearest.name: Nearest, Learned.name: Learned}

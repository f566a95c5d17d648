"""NASA: what attention reads of a negative caption is taken away inside the network, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.negative import Negative
from fewstep.conditions.prompt import Prompt
from fewstep.conditions.text import Text
from fewstep.core.arguments import shown
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.cfg import AWAY
from fewstep.guidance.common import check_scale
from fewstep.networks.words import check_reads_words, less_tokens, less_words

METHODS = (
    Method(
        "nasa",
        paper="SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance (Nguyen et al., 2024)",
        arxiv="2412.02687",
        claim="a negative caption acts on one-step students and on guided ones, without a second pass",
        use="Nasa",
        facts={"wraps": True, "changes": ("conditions",), "network": "captions"},
    ),
)


def _is_read(name: str, kind: Condition) -> bool:
    """Whether attention reads a condition: captions of ours, and of an encoded prompt the tokens and their mask."""
    return isinstance(kind, Text) or (isinstance(kind, Prompt) and name in ("text", "mask"))


class Nasa(Wrapper):
    """The model with `Attn(Q, K+, V+) - alpha Attn(Q, K-, V-)` in every attention to words (Nguyen et al.).

    K+ and V+ are those of the caption (in our networks of the picture's own tokens too, to which attention is joint),
    K- and V- those of the negative caption's words alone. Everything else that the network is told, such as a
    caption's summary, is the caption's. There is no second evaluation, so students of any kind take it, those with
    guidance inside too, and their plans stay. The condition `negative` says for a run what to keep away from: one
    caption, or one for each sample. alpha 0 is the model, bit for bit.

    Args:
        negative: the caption to keep away from, or one for each sample.
        alpha: at least 0; the paper's are below 1.

    Raises:
        ValueError: no negative caption, words that the model does not know, a network that reads no words or whose
            words change with the picture (SD3, Flux), an alpha that is negative or not finite.
    """

    def __init__(self, model: Denoiser, negative: str | Sequence[str], alpha: float = 0.3):
        strength = float(check_scale(alpha, "alpha"))
        many = isinstance(negative, list | tuple) and bool(negative)
        if not isinstance(negative, str) and not (many and all(isinstance(one, str) for one in negative)):
            raise ValueError(f"'nasa' needs a caption to keep away from, negative='red', got {shown(negative)}")
        if "text" not in model.conditions:
            raise ValueError("'nasa' needs a network that reads captions; this model reads no words")
        check_reads_words(model)
        read = {name: kind for name, kind in model.conditions.items() if _is_read(name, kind)}
        for kind in read.values():  # unknown words at once
            kind.check(AWAY, negative, len(negative) if many else 1, torch.device("cpu"))
        # Around another model that keeps away from something, the condition `negative` is that one's.
        self.takes = not any(isinstance(kind, Negative) for kind in model.conditions.values())
        self.named = {f"{AWAY}_{name}": name for name in read}
        own = {key: Negative(read[name], negative) for key, name in self.named.items()}
        super().__init__(model, conditions={**model.conditions, **(own if self.takes else {})})
        self.negative, self.alpha = negative if isinstance(negative, str) else list(negative), strength
        self.each = len(self.negative) > 1 and many
        self._usual: tuple[torch.device, dict[str, Tensor]] | None = None

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"kept away from": self.negative, "alpha": self.alpha}

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "negative": self.negative, "alpha": self.alpha}

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """As the model's, and `negative` where it is given."""
        if not self.takes:
            return self.model.check_condition(condition, batch, device)
        rest = dict(condition)
        said = rest.pop(AWAY, None)
        away = {key: rest.pop(key, said) for key in self.named}
        named = self.model.check_condition(rest, batch, device)
        if self.each or any(value is not None for value in away.values()):
            named |= {key: self.conditions[key].check(AWAY, value, batch, device) for key, value in away.items()}
        return named

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        away = {name: condition.pop(key) for key, name in self.named.items() if self.takes and key in condition}
        if not self.alpha:
            return ask(self.model, x, t, memory, condition)
        away = away or self._known(x.device)
        model: Any
        if isinstance(self.model.conditions["text"], Prompt):
            # After the caption's own tokens, so that they go through the same layers on their way to attention.
            own = {name: condition[name] for name in away}
            model = less_tokens(self.model, own["text"].shape[1], self.alpha)
            rows = {name: value.expand(x.shape[0], *value.shape[1:]) for name, value in away.items()}
            condition |= {name: torch.cat([own[name], rows[name].to(own[name].dtype)], 1) for name in own}
        else:
            model = less_words(self.model, away["text"], self.alpha)
        return ask(model, x, t, memory, condition)

    def _known(self, device: torch.device) -> dict[str, Tensor]:
        """What it was made to keep away from: one row where it is one caption, so that it serves any rows of a call."""
        if self._usual is None or self._usual[0] != device:
            rows = len(self.negative) if self.each else 1
            found = {
                name: self.model.conditions[name].check(AWAY, self.negative, rows, device)
                for name in self.named.values()
            }
            self._usual = device, found
        return self._usual[1]

"""SpeedUpNet: an adapter that reads what to lead away from, beside a network that stays as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.conditions.negative import Negative
from fewstep.conditions.number import Number
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.files import write
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.student import Student
from fewstep.networks.common import Attend, zeroed
from fewstep.networks.embedding import Embedding
from fewstep.networks.surgery import InPlaceOf, replaced

METHODS = (
    Method(
        "sun-adapter",
        paper="SpeedUpNet: A Plug-and-Play Adapter Network for Accelerating Text-to-Image Diffusion Models"
        " (Chai et al., 2023)",
        arxiv="2312.08887",
        claim="a second attention to the negative words does guidance, of any scale in a range, in one pass",
        use="Sun",
    ),
)

FORMAT = "fewstep-sun-1"
KINDS = ("text", "label")  # what it leads away from, the first that a model has


class Sun(Wrapper):
    """A network with an adapter that takes the conditions `negative`, what to lead away from (empty where left out),
    and `guidance`, the scale; the network's own weights are untouched.

    In the paper's networks captions enter by cross attention alone, and each has a second one beside it. Here the words
    of a caption are further keys and values of the picture's attention to itself, and their mean is added to the
    embedding of the noise level; a label is added there alone. So the adapter has a second attention beside the whole
    of each such attention, of the same queries to the negative words alone, and adds to the embedding what it makes of
    their mean. A label counts as a caption of one word. What is added depends on the scale, and is zero at first: then
    the answers are the model's, bit for bit.

    Args:
        model: a network of ours that is conditioned on captions or labels. low, high: the range of the scale.
        student: what it is, where it was distilled, or its configuration.

    Raises:
        ValueError: a model that is no network of ours, reads neither captions nor labels, or is told a scale already.
    """

    def __init__(
        self, model: Denoiser, low: float = 1.0, high: float = 4.0, student: Student | Mapping[str, Any] | None = None
    ) -> None:
        network = getattr(model, "network", None)
        if not isinstance(getattr(network, "embedding", None), Embedding):
            raise ValueError(
                f"the adapter of 'sun' stands on fewstep's own networks, and {type(model).__name__} is none"
            )
        of = next((name for name in KINDS if name in model.conditions), None)
        if of is None or not {"negative", "guidance"}.isdisjoint(model.conditions):
            raise ValueError(
                "the adapter of 'sun' leads away from captions or labels: it needs a model that has them, and neither"
                f" guidance nor negatives inside; this one has {sorted(model.conditions) or 'no conditions'}"
            )
        taken = {
            **model.conditions,
            "negative": Negative(model.conditions[of]),
            "guidance": Number(low, high, (low + high) / 2),
        }
        found = Student.from_config(student) if isinstance(student, Mapping) else student
        super().__init__(model, plan=None, conditions=taken, student=found)
        self.of = of
        assert isinstance(network, nn.Module)
        self.adapter = Adapter(network)

    def config(self) -> dict[str, Any]:
        low, high = self._scales
        distilled = {} if self.student is None else {"student": self.student.config()}
        return {"model": self.model, "low": low, "high": high} | distilled

    @property
    def _scales(self) -> tuple[float, float]:
        kind = self.conditions["guidance"]
        assert isinstance(kind, Number) and kind.low is not None and kind.high is not None
        return kind.low, kind.high

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return Denoiser.check_condition(self, condition, batch, device)

    def forward(
        self, x: Tensor, t: Tensor, negative: Tensor | None = None, guidance: Tensor | None = None, **condition: Any
    ) -> Prediction:
        memory = condition.pop("memory", None)
        if negative is None:
            negative = self.conditions["negative"].check("negative", None, len(x), x.device)
        if guidance is None:
            guidance = self.conditions["guidance"].check("guidance", None, len(x), x.device)
        network: Any = self.model.network
        words = network.text(negative) if self.of == "text" else network.embedding.label(negative)[:, None]
        parts = {f"network.{path}": part for path, part in self.adapter(network, words, guidance).items()}
        return ask(replaced(self.model, parts), x, t, memory, condition)  # type: ignore[arg-type]


class Adapter(nn.Module):
    """The weights: called with a network, negative words (B, L, W) and scales (B,), it gives what stands at paths of
    the network in that call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        embedding: Any = network.embedding
        width = embedding.second.out_features
        self.scale = Embedding(width, None)
        self.told = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), zeroed(nn.Linear(width, width)))
        self.seconds = nn.ModuleDict(
            {path.replace(".", "/"): _Second(width, *size) for path, size in _attentions(network).items()}
        )
        self.to(embedding.first.weight.device, embedding.first.weight.dtype)

    def forward(self, network: nn.Module, words: Tensor, scale: Tensor) -> dict[str, nn.Module]:
        told = self.scale(scale, None, len(words))
        more = self.told(torch.cat([words.mean(1), told], dim=1))
        parts: dict[str, nn.Module] = {"embedding": _Further(network.get_submodule("embedding"), more)}
        for name, second in self.seconds.items():
            path = name.replace("/", ".")
            parts[path] = _Both(network.get_submodule(path), *second(words, F.silu(told)))
        return parts


def _attentions(network: nn.Module) -> dict[str, tuple[int, int]]:
    """The paths of a network's softmaxes, with their numbers of heads and of channels."""
    return {
        f"{path}.core": (int(module.heads), int(module.qkv.in_features))  # type: ignore[arg-type, union-attr]
        for path, module in network.named_modules()
        if isinstance(module._modules.get("core"), Attend)
    }


class _Second(nn.Module):
    """Keys and values of the negative words, and how much of what they give is added."""

    def __init__(self, width: int, heads: int, channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.gate = nn.Linear(width, 2 * channels), zeroed(nn.Linear(width, channels))

    def forward(self, words: Tensor, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, count, _ = words.shape
        key, value = self.words(words).view(batch, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return key, value, self.gate(told).view(batch, self.heads, 1, -1)


class _Both(InPlaceOf):
    """In the place of a softmax: its output, and that of the negative words, brought to the mean and the deviation that
    the first has in each sample and head, times its factors."""

    def __init__(self, core: nn.Module, key: Tensor, value: Tensor, gate: Tensor) -> None:
        super().__init__(core)
        self.core, self.key, self.value, self.gate = core, key, value, gate

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        own: Tensor = self.core(q, k, v, words)
        other = F.scaled_dot_product_attention(q, self.key, self.value)
        mean, shift = own.mean((-2, -1), keepdim=True), other.mean((-2, -1), keepdim=True)
        ratio = own.std((-2, -1), keepdim=True) / other.std((-2, -1), keepdim=True).clamp(min=1e-6)
        return own + self.gate * (mean + ratio * (other - shift))


class _Further(InPlaceOf):
    """In the place of an embedding: what it gives, and more."""

    def __init__(self, embedding: nn.Module, more: Tensor) -> None:
        super().__init__(embedding)
        self.embedding, self.more = embedding, more

    def forward(self, *args: Any, **named: Any) -> Tensor:
        return self.embedding(*args, **named) + self.more  # type: ignore[no-any-return]


def save_sun(model: Sun, path: str | os.PathLike[str]) -> Path:
    """Writes the adapter alone: one safetensors file with what it is for as JSON in its header."""
    low, high = model._scales
    about = {"format": FORMAT, "network": _network(model.model), "of": model.of, "low": low, "high": high}
    about |= {} if model.student is None else {"student": model.student.config()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.adapter.state_dict().items()}
    return write(Path(path), dump_tensors(tensors, metadata={"fewstep": json.dumps(about)}))


def load_sun(model: Denoiser, path: str | os.PathLike[str]) -> Sun:
    """A model with the adapter of a file, which was trained on this network or on another with other weights.

    Raises:
        ValueError: a file that is none, or one for another network (the message says how they differ); as `Sun`.
    """
    try:
        data = Path(path).read_bytes()
        tensors, header = load_tensors(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["fewstep"])
        if about["format"] != FORMAT:
            raise KeyError("format")
        network, of, low, high = (about[key] for key in ("network", "of", "low", "high"))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no adapter of 'sun' (safetensors with a {FORMAT!r} header)") from None
    own = _network(model)
    if wrong := sorted(key for key in own.keys() | network.keys() if own.get(key) != network.get(key)):
        differ = ", ".join(f"{key} {network.get(key)!r}, not {own.get(key)!r}" for key in wrong)
        raise ValueError(f"{path} is an adapter for another network: it has {differ}")
    made = Sun(model, low, high, about.get("student"))
    if made.of != of:
        raise ValueError(f"{path} leads away from a {of}, and this model has none")
    made.adapter.load_state_dict(tensors)
    return made.eval()


def _network(model: Denoiser) -> dict[str, Any]:
    config = getattr(getattr(model, "network", None), "config", None)
    return {} if config is None else json.loads(json.dumps(config()))

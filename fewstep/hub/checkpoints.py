"""Checkpoints of EDM and k-diffusion: a network module, its weights in safetensors, and its preconditioning."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.core.arguments import checked
from fewstep.core.condition import Condition
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.denoisers.wrap import Wrapped, wrap
from fewstep.processes.ve import EDM

METHODS = (
    Method(
        "checkpoint",
        kind="import",
        paper="Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)",
        arxiv="2206.00364",
        claim="EDM and k-diffusion networks with their preconditioning, from safetensors",
        use="load_checkpoint",
    ),
)

# The classes that wrap networks in the two code bases, by their names in the configurations.
PRECONDITIONS = (
    "EDMPrecond",
    "VPPrecond",
    "VEPrecond",
    "iDDPMPrecond",
    "Denoiser",
    "VDenoiser",
    "DiscreteEpsDDPMDenoiser",
)
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class Preconditioned(nn.Module):
    """`D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`, the estimate of x0 at `x = x0 + sigma eps`.

    With s = sigma, d = sigma_data and `n = sqrt(s^2 + d^2)`:

        EDMPrecond                c_skip d^2/n^2   c_out s d/n    c_in 1/n   c_noise log(s)/4
        VPPrecond                 1                -s             1/n, d=1   999 t(s), t as below
        VEPrecond                 1                s              1          log(s/2)
        iDDPMPrecond              1                -s             1/n, d=1   999 - argmin_j |u_j - s|
        Denoiser                  d^2/n^2          s d/n          1/n        s
        VDenoiser                 d^2/n^2          -s d/n, d=1    1/n        2 atan(s)/pi
        DiscreteEpsDDPMDenoiser   1                -s             1/n, d=1   the step, between steps by log(s)

    (Karras et al., Table 1, the first four; k-diffusion's layers.py and external.py, the others.) VP's time solves
    `s^2 = exp(beta_d t^2/2 + beta_min t) - 1`.

    Args:
        alphas_cumprod: the table of "DiscreteEpsDDPMDenoiser".
        classes: the network's classes, or 0: EDM's take `class_labels` `(B, classes)`, one-hot or zeros, k-diffusion's
            `class_cond` `(B,)`, with `classes` for no class.
    """

    def __init__(
        self,
        network: nn.Module,
        precondition: str,
        sigma_data: float = 0.5,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        alphas_cumprod: tuple[float, ...] | None = None,
        classes: int = 0,
    ):
        super().__init__()
        if precondition not in PRECONDITIONS:
            raise suggest("precondition", precondition, PRECONDITIONS)
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        if precondition == "DiscreteEpsDDPMDenoiser" and not alphas_cumprod:
            raise ValueError("'DiscreteEpsDDPMDenoiser' needs alphas_cumprod, the table of its steps")
        self.network, self.precondition, self.classes = network, precondition, classes
        own = precondition in ("EDMPrecond", "Denoiser")
        self.sigma_data, self.beta_d, self.beta_min = sigma_data if own else 1.0, beta_d, beta_min
        table: Tensor | None = None
        if precondition == "DiscreteEpsDDPMDenoiser":
            kept = torch.tensor(alphas_cumprod, dtype=torch.float64)
            table = ((1 - kept) / kept).sqrt()
        elif precondition == "iDDPMPrecond":
            table = _iddpm()
        self.register_buffer("sigmas", table, persistent=False)
        self.sigmas: Tensor | None

    def noise(self, sigma: Tensor) -> Tensor:
        """c_noise, float64, the network's input for sigma `(B,)`."""
        kind = self.precondition
        if kind == "EDMPrecond":
            return sigma.log() / 4
        if kind == "VPPrecond":
            log = 2 * self.beta_d * torch.log1p(sigma**2)
            return 999 * ((self.beta_min**2 + log).sqrt() - self.beta_min) / self.beta_d
        if kind == "VEPrecond":
            return (sigma / 2).log()
        if kind == "VDenoiser":
            return sigma.atan() * (2 / math.pi)
        if self.sigmas is None:
            return sigma
        if kind == "iDDPMPrecond":  # u_0 is the largest sigma, the last step
            nearest = (self.sigmas - sigma[:, None]).abs().argmin(1)
            return (len(self.sigmas) - 2 - nearest).to(sigma.dtype)
        logs, log = self.sigmas.log(), sigma.log()
        low = (torch.searchsorted(logs, log.contiguous()) - 1).clamp(0, len(logs) - 2)
        return low + ((log - logs[low]) / (logs[low + 1] - logs[low])).clamp(0, 1)

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in at sigma `(B,)`, float64."""
        d = self.sigma_data
        norm = (sigma**2 + d**2).sqrt()
        if self.precondition in ("EDMPrecond", "Denoiser"):
            return (d / norm) ** 2, sigma * d / norm, 1 / norm
        if self.precondition == "VDenoiser":
            return (d / norm) ** 2, -sigma * d / norm, 1 / norm
        if self.precondition == "VEPrecond":
            return torch.ones_like(sigma), sigma, torch.ones_like(sigma)
        return torch.ones_like(sigma), -sigma, 1 / norm

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        sigma = sigma.double()
        skip, out, scale = (expand(c, x) for c in self.scales(sigma))
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        answer = self.network(scale * x, self.noise(sigma).to(exact), **self._labels(label, x))
        answer = getattr(answer, "sample", answer)
        if self.precondition == "iDDPMPrecond":  # a learned variance comes after the channels
            answer = answer[:, : x.shape[1]]
        return skip * x + out * answer

    def _labels(self, label: Tensor | None, like: Tensor) -> dict[str, Tensor]:
        if label is None or not self.classes:
            return {}
        if self.precondition.endswith("Precond"):
            return {"class_labels": nn.functional.one_hot(label, self.classes + 1)[:, :-1].to(like.dtype)}
        return {"class_cond": label}


def _iddpm(steps: int = 1000, c1: float = 0.001, c2: float = 0.008) -> Tensor:
    """Sigmas of the improved DDPM's cosine table, the largest first (Karras et al., Table 1: u_0 > ... > u_M = 0)."""

    def alpha_bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / steps / (c2 + 1)) ** 2

    u = [0.0]
    for j in range(steps, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), c1) - 1))
    return torch.tensor(u[::-1], dtype=torch.float64)


def read_weights(path: str | os.PathLike[str], prefix: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file; with a prefix ("model.", "ema."), those that begin with it, stripped of it.

    Raises:
        ValueError: no such file, a pickle, a file that is not safetensors, a prefix that no key has.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix in PICKLES or (start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")):
        raise ValueError(
            f"{path} is a pickle, which can run code and is never loaded: where it was made, convert it with"
            " safetensors.torch.save_file(module.state_dict(), 'model.safetensors')"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not safetensors: {error}") from None
    if prefix is None:
        return tensors
    kept = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not kept:
        raise ValueError(
            f"no tensor of {path} begins with {prefix!r}; they begin with {', '.join(_beginnings(tensors))}"
        )
    return kept


def _beginnings(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted({repr(key.partition(".")[0] + ".") for key in tensors})[:4]


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a network, all of them and no others; one `ValueError` names what does not fit."""
    own = network.state_dict()
    problems = []
    if missing := [key for key in own if key not in tensors]:
        problems.append(f"{len(missing)} missing ({missing[0]!r} first)")
    if extra := [key for key in tensors if key not in own]:
        problems.append(f"{len(extra)} that the network does not have ({extra[0]!r} first)")
    wrong = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if wrong:
        shapes = tuple(tensors[wrong[0]].shape), tuple(own[wrong[0]].shape)
        problems.append(f"{len(wrong)} of another shape ({wrong[0]!r}: {shapes[0]}, the network has {shapes[1]})")
    if problems:
        hint = ""
        if missing and extra:
            hint = f"; if they share a prefix such as {_beginnings(tensors)[0]}, give prefix={_beginnings(tensors)[0]}"
        raise ValueError(f"the weights of {source} do not fit the network: {', '.join(problems)}{hint}")
    network.load_state_dict(dict(tensors))


@checked
def load_checkpoint(
    network: nn.Module,
    weights: str | os.PathLike[str],
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    prefix: str | None = None,
    device: str | torch.device | None = None,
) -> Wrapped:
    """A network of EDM or k-diffusion as a denoiser under `EDM(sigma_min, sigma_max)`, through `fs.wrap`.

    Args:
        network: the module inside the preconditioning: `network(x, c_noise, ...)`.
        weights: a safetensors file with its parameters.
        config: a mapping, or a JSON file with one; by default the `.json` beside the weights, with their name or
            `config.json`. It has `precondition` (or EDM's `class_name`), one of `PRECONDITIONS`, and may have
            sigma_data, sigma_min, sigma_max, beta_d, beta_min, alphas_cumprod, shape (or EDM's img_channels and
            img_resolution; k-diffusion's input_channels and input_size), and classes (or EDM's label_dim; k-diffusion's
            num_classes). k-diffusion's own files keep them under "model".
        prefix: what the keys of the network begin with in the file, such as "model." or "ema.".

    Raises:
        ValueError: a pickle; weights or a configuration that do not fit or are missing. One line says what.
    """
    found = _config(config, Path(weights))
    fill(network, read_weights(weights, prefix), str(weights))
    name = str(found.get("precondition", found.get("class_name", ""))).rpartition(".")[2]
    if not name:
        raise ValueError(f"the configuration names no precondition: give one of {', '.join(PRECONDITIONS)}")
    classes = int(found.get("classes", found.get("label_dim", found.get("num_classes", 0))) or 0)
    known = {key: found[key] for key in ("sigma_data", "beta_d", "beta_min") if key in found}
    table = found.get("alphas_cumprod")
    inside = Preconditioned(network, name, **known, alphas_cumprod=tuple(table) if table else None, classes=classes)
    conditions: dict[str, Condition] = {"label": Label(classes)} if classes else {}
    process = EDM(float(found.get("sigma_min", 0.002)), float(found.get("sigma_max", 80.0)))
    made = wrap(inside, process, "x0", _shape(found), conditions, time="sigma", data_std=found.get("sigma_data", 0.5))
    return made.to(device) if device is not None else made


def _config(config: Mapping[str, Any] | str | os.PathLike[str] | None, weights: Path) -> dict[str, Any]:
    if isinstance(config, Mapping):
        found: Any = dict(config)
    else:
        beside = [weights.with_suffix(".json"), weights.with_name("config.json")]
        path = Path(config) if config is not None else next((one for one in beside if one.is_file()), beside[0])
        if not path.is_file():
            raise ValueError(f"there is no file {path}: give config={{'precondition': 'EDMPrecond', ...}}")
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"a configuration is a mapping, got {type(found).__name__}")
    inner = found.get("model")
    if isinstance(inner, dict):  # k-diffusion's files: the model, the data set, the training
        dataset = found.get("dataset")
        found = {"precondition": "Denoiser"} | (dataset if isinstance(dataset, dict) else {}) | inner
    return found


def _shape(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    if "shape" in config:
        return tuple(int(n) for n in config["shape"])
    if "img_channels" in config and "img_resolution" in config:
        return int(config["img_channels"]), int(config["img_resolution"]), int(config["img_resolution"])
    if "input_channels" in config and "input_size" in config:
        size = config["input_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return int(config["input_channels"]), int(height), int(width)
    return None

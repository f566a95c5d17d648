"""Several denoisers as one: each answers for a range of noise levels."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, joined
from fewstep.denoisers.folder import claim_folder, load_model, save_model

METHODS = (
    Method(
        "experts",
        paper="PanGu-Draw: Advancing Resource-Efficient Text-to-Image Synthesis (Lu et al., 2023)",
        arxiv="2312.16486",
        claim="denoisers trained apart for ranges of noise levels, sampled as one",
        use="Experts",
        facts={"wraps": True, "changes": ("plan",)},
    ),
)

FILE, FORMAT = "experts.json", "fewstep-experts-1"


class Experts(Denoiser):
    """Routes by time: `denoisers[i]` answers for times from `cuts[i - 1]` to `cuts[i]`, the first one nearest the data.

    A time at a cut goes to the noisier side. A run asks for one time a call, so it costs what one denoiser costs (and,
    on a GPU, one read of that time); a batch of several times is split among them. All answers are of the first
    denoiser's kind. Which modules run depends on the time, so it is no single graph for `torch.compile`; its denoisers
    are.

    Args:
        denoisers: at least one, of one process, shape and set of conditions.
        cuts: the times between them, rising: one fewer than denoisers.
    """

    def __init__(self, denoisers: Sequence[Denoiser], cuts: Sequence[float]):
        super().__init__()
        if len(cuts) != len(denoisers) - 1:
            raise ValueError(f"{len(denoisers)} denoisers are divided by {len(denoisers) - 1} times, got {len(cuts)}")
        if any(a >= b for a, b in zip(cuts, cuts[1:], strict=False)):
            raise ValueError(f"the times between the experts must rise, got {tuple(cuts)}")
        first = denoisers[0]
        for name in ("process", "shape", "value_range"):
            if any(getattr(other, name) != getattr(first, name) for other in denoisers):
                found = [getattr(denoiser, name) for denoiser in denoisers]
                raise ValueError(f"experts must have the same {name}, got {found}")
        if any(dict(other.conditions) != dict(first.conditions) for other in denoisers):
            raise ValueError(f"experts must take the same conditions, got {[sorted(d.conditions) for d in denoisers]}")
        self.denoisers = nn.ModuleList(denoisers)
        self.take(replace(first.facts, plan=None))
        self.register_buffer("cuts", torch.tensor(cuts, dtype=torch.float64), persistent=False)
        self.cuts: Tensor

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        chosen = torch.bucketize(t.double(), self.cuts, right=True)
        if t.ndim == 0:
            return self.denoisers[int(chosen)](x, t, **condition)
        parts = []
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero().squeeze(1)
            own = {name: v[rows] if isinstance(v, Tensor) else v for name, v in condition.items()}
            parts.append((rows, self.denoisers[number](x[rows], t[rows], **own)))
        return joined(parts, x, t)

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return self.denoisers[0].check_condition(condition, batch, device)  # type: ignore[operator]

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.denoisers[0].encode(data, **condition)  # type: ignore[operator]

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.denoisers[0].decode(x, **condition)  # type: ignore[operator]


def save_experts(model: Experts, folder: str | os.PathLike[str]) -> Path:
    """Writes a folder with a model folder for each expert and the times between them; `load_experts` reads it.

    The folder is whole or absent. Raises ValueError as `save_model` does.
    """
    path = claim_folder(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for number, denoiser in enumerate(model.denoisers):
            save_model(denoiser, temporary / f"expert-{number}")  # type: ignore[arg-type]
        about = {"format": FORMAT, "experts": len(model.denoisers), "cuts": model.cuts.tolist()}
        (temporary / FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        temporary.chmod(0o755)
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def load_experts(folder: str | os.PathLike[str]) -> Experts:
    """Reads what `save_experts` wrote. Raises ValueError for another folder, or a damaged one."""
    path = Path(folder)
    try:
        about = json.loads((path / FILE).read_text("utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, expected {FORMAT!r}")
        count, cuts = int(about["experts"]), [float(cut) for cut in about["cuts"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / FILE} is not a list of experts: {error}") from None
    return Experts([load_model(path / f"expert-{number}") for number in range(count)], cuts).eval()

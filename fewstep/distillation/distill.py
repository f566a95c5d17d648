"""`fs.distill(teacher, "kd", steps=1)`: a student of few evaluations, watched while it trains, and a verdict."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.methods import card, made
from fewstep.core.sampler import Sampler
from fewstep.core.student import Student, default_start
from fewstep.data.dataset import Dataset
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.distillation.verdict import REFERENCE_NFE, said, unseen, verdict
from fewstep.distillation.watch import Collapsed, Watch
from fewstep.searching.problem import data_for, own_data
from fewstep.searching.reference import solve

ITERATIONS, BATCH, LR, AVERAGE = 2000, 256, 1e-3, 0.99
CHECKED, JUDGED = 256, 512  # noises of a check, and of the verdict
CHECKS = 1 << 19  # the number of the first noise of the checks


@dataclass(frozen=True)
class Distilled:
    """The result: the student with its plan, and what was measured.

    `rows` is the verdict (`fewstep.distillation.verdict`), `figures` JSON: evaluations spent (a forward pass of one
    sample is 1, with its backward pass 3), seconds, iterations, best check. `history` are the log's records.
    """

    model: Denoiser
    rows: list[dict[str, Any]]
    figures: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def plan(self) -> Sampler:
        assert self.model.plan is not None
        return self.model.plan

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the student with its plan and card; `fs.load` and `fewstep sample` take the folder."""
        from fewstep.hub.models import save

        return save(self.model, folder, plan=self.model.plan, card=self.card())

    def card(self) -> str:
        student = self.model.student
        assert student is not None
        lines = ["# A distilled fewstep model", "", f"By `{student.method}`, {self.plan.nfe} evaluations a sample.", ""]
        lines += [f"- {note}" for note in self.notes]
        heads = ("sampler", "evaluations", "Frechet distance", "precision", "recall", "accuracy", "endpoint error")
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in self.rows:
            found = [row[key] for key in ("frechet", "precision", "recall", "accuracy", "endpoint")]
            cells = [row["name"], str(row["nfe"]), *("" if value is None else f"{value:.4g}" for value in found)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def base_of(teacher: Denoiser) -> Denoiser:
    """The network's own denoiser within guidance, alignment and whatever else is around it.

    Raises:
        ValueError: there is no network, or it is a student whose answers are samples.
    """
    if teacher.student is not None and teacher.student.kind == "jump":
        raise ValueError(
            f"the teacher is a student itself, whose answers are samples: distil its own teacher"
            f" {teacher.student.teacher or ''}".rstrip()
        )
    base = teacher
    while isinstance(base, Wrapper):
        base = base.model
    if not isinstance(getattr(base, "network", None), nn.Module):
        raise ValueError(
            f"the teacher {type(base).__name__} has no network that a student could begin with: give student=..., a"
            " denoiser to train"
        )
    return base


def weights_sum(model: nn.Module) -> str:
    """A checksum of a model's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def data_std_of(teacher: Denoiser, data: Dataset | None) -> float:
    """The data's standard deviation: as the model states it, as the data have it, else 0.5."""
    stated = teacher.facts.data_std
    if stated is not None:
        return float(stated)
    return data.std() if data is not None else 0.5

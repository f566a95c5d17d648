"""Claims of students that share the conditions out."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.trained import MLP, NetworkDenoiser, fresh
from fewstep.conditions.label import Label
from fewstep.denoisers.by_condition import ByCondition
from fewstep.processes.ve import EDM

PARTS, ROWS = [[0, 3], [1], [2, 4]], 40


@torch.no_grad()
def _own(seed: int) -> Outcome:
    students = []
    for number in range(len(PARTS)):
        network = fresh(MLP, seed + number, (2,), 16, 2, 5)
        torch.nn.init.normal_(network.last.weight, std=0.3, generator=torch.Generator().manual_seed(number))
        students.append(NetworkDenoiser(network, EDM(), "x0", (2,), {"label": Label(5)}, "edm", 0.5).eval())
    routed, generator = ByCondition(students, PARTS), torch.Generator().manual_seed(seed)
    x, t = torch.randn(ROWS, 2, generator=generator), torch.tensor(0.7)
    label = torch.randint(5, (ROWS,), generator=generator)
    mixed, wrong = routed(x, t, label=label).x0, 0
    for student, part in zip(students, PARTS, strict=True):
        rows = torch.isin(label, torch.tensor(part))
        wrong += int((student(x[rows], t, label=label[rows]).x0 != mixed[rows]).any(1).sum())
    return Outcome(wrong, 1, "demand", f"{ROWS} rows of five classes, three students", unit="rows that differ in a bit")


CLAIMS = (Claim("by-condition", "each row of a mixed batch has its own student's answer, bit for bit", _own),)

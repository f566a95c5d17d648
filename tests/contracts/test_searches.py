"""The contract of every search of `searching/`: registered searches enter by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made, methods
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.processes.vp import VP
from fewstep.searching import candidates
from fewstep.searching.candidates import score
from fewstep.searching.job import Job, OutOfBudget

SEARCHES = methods("search")
NFE, NOISES, REFERENCE = 4, 24, 40
FEW = ["ddim", "dpmpp-2m", "unipc-2", "vab-3"]


class TwoClasses(Denoiser):
    """Two broad, equally likely points for each of two classes in the plane, in closed form and in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.shape, self.conditions = VP(), (2,), {"label": Label(2)}
        centres = torch.tensor([[[1.0, 0.4], [-0.6, 0.2]], [[0.3, -1.0], [0.1, 0.7]]], dtype=torch.float64)
        self.register_buffer("centres", centres)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Prediction:
        alpha, sigma = (level.reshape(-1, 1, 1) for level in (self.process.alpha(t), self.process.sigma(t)))
        spread = 0.16 * alpha**2 + sigma**2
        away = x[:, None] - alpha * self.centres[label].to(x)
        share = (-away.square().sum(-1) / (2 * spread[..., 0])).softmax(1)
        x0 = (share[..., None] * (self.centres[label].to(x) + 0.16 * alpha / spread * away)).sum(1)
        return Prediction(x0, "x0", x, t, self.process)


@pytest.fixture(autouse=True)
def few(few_candidates: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer still."""
    monkeypatch.setattr(candidates, "_tried", lambda: FEW)


def run(name: str, evaluations: int | None = None, folder: Path | None = None, seed: int = 0) -> tuple[Job, bool]:
    """The job after a search with the options that its card calls quick, and whether it ended by itself."""
    options = next(card for card in SEARCHES if card.name == name).facts["quick"]
    job = Job(
        TwoClasses(),
        NFE,
        method=name,
        seed=seed,
        noises=NOISES,
        reference_nfe=REFERENCE,
        evaluations=evaluations,
        folder=folder,
        settings=options,
    )
    with job, torch.no_grad():
        try:
            made("search", name, 1, **options)(job)
        except OutOfBudget:
            return job, False
    return job, True


@pytest.mark.parametrize("name", [card.name for card in SEARCHES])
def test_a_search_is_judged_rightly_keeps_its_budget_and_goes_on_to_the_same_plan(name: str, tmp_path: Path) -> None:
    whole, finished = run(name)
    assert finished and whole.best is not None and 1 <= whole.best.nfe <= NFE
    # The plan can be run, saved and read, and its score is what the search says.
    again = Plan.from_json(whole.best.to_json())
    assert again == whole.best and again.fits(whole.process)
    if whole.measure == Job(TwoClasses(), NFE, method="x").measure:
        assert score(again, whole.model, whole.held_out) == pytest.approx(whole.score, rel=1e-9)
    scores = [value for _, value in whole.history]
    assert scores == sorted(scores, reverse=True) and scores[-1] == whole.score
    # Half of what the search itself spends, beside the reference: it stops, and does not run far over.
    reference = 2 * NOISES * REFERENCE
    limit = reference + (whole.evaluations - reference) // 2
    part, finished = run(name, limit, tmp_path)
    assert not finished and part.evaluations < whole.evaluations
    assert [value for _, value in part.history] == scores[: len(part.history)]
    # Taken up again, with the same seed and from the folder alone, it ends in the same bits.
    resumed, finished = run(name, None, tmp_path)
    assert finished and resumed.best is not None
    assert resumed.best.to_json() == whole.best.to_json() and resumed.score == whole.score
    assert Plan.load(tmp_path / "plan.json").to_json() == whole.best.to_json()

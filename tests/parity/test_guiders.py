"""Rules of guidance against diffusers' guiders, on the same two answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.core.prediction import Prediction
from fewstep.guidance.guided import Guided
from fewstep.guidance.parts import Call, Rule
from fewstep.guidance.projected import Projected
from fewstep.guidance.tangential import Tangential
from fewstep.guidance.zero_star import ZeroStar
from fewstep.processes.vp import VP

C, U = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SCALE = 4.5


def ours(rule: Rule, kind: str, c: Tensor, u: Tensor, t: float = 0.4) -> Tensor:
    x, time = torch.zeros_like(c), torch.tensor(t)
    strong, weak = (Prediction(value, kind, x, time, VP()) for value in (c, u))
    decided = (None, rule.host(None))
    return rule(strong, weak, SCALE, Call(None, x, time, {}, None, decided, None))  # type: ignore[arg-type]


def guider(name: str, **options: object) -> object:
    guiders = pytest.importorskip("diffusers.guiders")
    made = getattr(guiders, name)(**{"guidance_scale": SCALE} | options)
    made.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(500))
    return made


def theirs(made: object, c: Tensor, u: Tensor) -> Tensor:
    out = made.forward(c, u)  # type: ignore[attr-defined]
    return out if isinstance(out, Tensor) else out.pred


def test_plain_guidance():
    torch.testing.assert_close(
        ours(Rule(), "eps", C, U), theirs(guider("ClassifierFreeGuidance"), C, U), rtol=1e-5, atol=1e-5
    )


def test_rescaled_guidance():
    made = theirs(guider("ClassifierFreeGuidance", guidance_rescale=0.7), C, U)
    wrapper = Guided.__new__(Guided)
    wrapper.__dict__.update(rescale=0.7, clamp=None)
    strong = Prediction(C, "eps", torch.zeros_like(C), torch.tensor(0.4), VP())
    torch.testing.assert_close(wrapper._finished(ours(Rule(), "eps", C, U), strong), made, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("limit", [None, 0.3])
def test_adaptive_projected_guidance(eta, limit):
    for i in range(3):  # their limit is a norm, ours a share of the given answer's
        c, u = C[i : i + 1], U[i : i + 1]
        most = 0.0 if limit is None else limit * float(c.norm())
        options = {"eta": eta, "adaptive_projected_guidance_rescale": most}
        # The paper's formula goes from the given answer; they go from the empty one unless told.
        made = guider("AdaptiveProjectedGuidance", use_original_formulation=True, guidance_scale=SCALE - 1, **options)
        made.momentum_buffer = None  # type: ignore[attr-defined]
        torch.testing.assert_close(
            ours(Projected(eta, limit, 0.0), "x0", c, u), theirs(made, c, u), rtol=1e-5, atol=1e-5
        )


def test_zero_star():
    made = guider("ClassifierFreeZeroStarGuidance", zero_init_steps=0)
    torch.testing.assert_close(ours(ZeroStar(0), "velocity", C, U), theirs(made, C, U), rtol=1e-5, atol=1e-5)


def test_tangential_guidance():
    made = theirs(guider("TangentialClassifierFreeGuidance"), C, U)
    torch.testing.assert_close(ours(Tangential(), "eps", C, U), made, rtol=1e-5, atol=2e-5)

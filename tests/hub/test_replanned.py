"""A plan's solver on its later times, and in another number of steps."""

from __future__ import annotations

import pytest

from fewstep.hub.replanned import later, recompiled
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan

TABLE = Discrete.linear()


@pytest.mark.parametrize(
    "process,name,options",
    [
        (TABLE, "unipc-3", {"timesteps": "karras"}),
        (Flow(), "heun", {"shift": 3.0, "timesteps": "uniform"}),
        (TABLE, "dpmpp-2m-sde", {"end": "min"}),
        (TABLE, "ddim", {"strength": 0.4, "eta": 0.5}),
        (TABLE, "universal", {"spectrum": "steep", "data_std": 0.3}),
    ],
)
def test_another_number_of_steps_is_what_that_number_compiles_to(process, name, options):
    assert recompiled(plan(process, name, 4, **options), 7) == plan(process, name, 7, **options)


def test_plans_that_have_one_number_of_steps():
    for made in (plan(TABLE, "ddim", timesteps=[900, 300, 0]), plan(TABLE, "ddim", 2, lambda *_: [900, 300, 0])):
        with pytest.raises(ValueError, match="2 evaluations, so num_inference_steps=5 does not fit it: .* own times"):
            recompiled(made, 5)
    with pytest.raises(ValueError, match="num_inference_steps=2000 does not fit it: the rule 'leading'"):
        recompiled(plan(TABLE, "ddim", 4, "leading"), 2000)
    with pytest.raises(ValueError, match="num_inference_steps=40 does not fit it: 'universal' has plans of 1 to 12"):
        recompiled(plan(TABLE, "universal", 4), 40)


def test_later_is_the_solver_on_the_later_times():
    made = plan(TABLE, "dpmpp-2m", 6)
    assert later(made, 2).ops == plan(TABLE, "dpmpp-2m", timesteps=list(made.times[2:])).ops
    assert [op.t for op in later(plan(TABLE, "heun", 6), 4).evaluations] == [
        op.t for op in plan(TABLE, "heun", 6).evaluations[4:]
    ]

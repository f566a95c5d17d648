"""autodiffusion: sequences and masks stay what they are, operations within the limit; what is planted is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core.noise import Noise
from fewstep.denoisers.masked import flops
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.frechet import frechet
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.autodiffusion import Fitness, Masks, Pruned, Times
from fewstep.searching.candidates import score
from fewstep.searching.job import Job

SMALL = {"population": 8, "generations": 2, "children": 4, "parents": 4, "points": 24}


class Blocks(nn.Module):
    """x0 = tanh(A x) with two blocks that add next to nothing, and one that adds much."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.idle, self.idler, self.busy = (nn.Linear(6, 6) for _ in range(3))
        with torch.no_grad():
            for layer, scale in ((self.first, 0.5), (self.idle, 1e-4), (self.idler, 1e-4), (self.busy, 0.7)):
                layer.weight.copy_(scale * torch.randn(6, 6, generator=generator))
                layer.bias.copy_(scale * torch.randn(6, generator=generator))
        self.idle, self.idler, self.busy = Added(self.idle), Added(self.idler), Added(self.busy)

    @property
    def skippable(self) -> dict[str, nn.Module]:
        return {"idle": self.idle, "idler": self.idler, "busy": self.busy}

    def forward(self, x, noise):
        return self.busy(self.idler(self.idle(torch.tanh(self.first(x)))))


class Added(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + torch.tanh(self.layer(x))


@pytest.fixture(scope="module")
def planted() -> NetworkDenoiser:
    return NetworkDenoiser(Blocks().eval(), VP(), "x0", (6,), value_range=None)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_sequences_stay_so_many_rising_times(process, make_mixture):
    times = Times(Job(make_mixture(process), 4, method="autodiffusion"), 4, 40)
    rng = np.random.default_rng(0)
    assert len(times.starts) >= 3
    group = times.starts + [times.random(rng) for _ in range(10)]
    for _ in range(100):
        a, b = (group[i] for i in rng.integers(len(group), size=2))
        child = times.cross(a, b, rng)
        assert set(a) & set(b) <= set(child) <= set(a) | set(b)
        group.append(times.mutate(child, rng))
    for genome in group:
        assert genome == sorted(set(genome)) and len(genome) == 4 and set(genome) <= set(times.free)
        assert json.loads(json.dumps(genome)) == genome
        made = plan(process, "ddim", timesteps=times.times(genome))
        assert made.nfe == 4 and made.times[-1] == process.t_zero


def test_masked_candidates_keep_within_the_operations(planted):
    job = Job(planted, 4, method="autodiffusion")
    times = Times(job, 4, 40)
    space, rng = Masks(job, times), np.random.default_rng(0)
    assert space.limit == 4 * flops(planted) and set(space.saved) == {"idle", "idler", "busy"}
    group = [[[i, []] for i in start] for start in times.starts]
    for _ in range(200):
        a, b = (group[i] for i in rng.integers(len(group), size=2))
        group.append(space.mutate(space.cross(a, b, rng), rng))
    counted = {mask: flops(planted, mask) for mask in {tuple(names) for genome in group for _, names in genome}}
    for genome in group:
        assert space.cost(genome) == sum(counted[tuple(names)] for _, names in genome) <= space.limit
        assert [i for i, _ in genome] == sorted({i for i, _ in genome})
        assert json.loads(json.dumps(genome)) == genome
    assert max(len(genome) for genome in group) > 4


def test_blocks_that_do_nothing_are_left_out_for_more_evaluations(searched, planted):
    job, finished = searched("autodiffusion", planted, 3, masks=True, population=24, generations=30, children=12)
    assert finished and job.best.nfe == 3
    found = job.result
    assert isinstance(found, Pruned) and found.flops <= found.limit == 3 * flops(planted)
    assert found.score < 0.8 * job.score  # more evaluations for as many operations (0.47 to 0.69 over four seeds)
    assert found.plan.nfe > 3
    left_out = [name for names in found.masks.values() for name in names]
    assert left_out.count("busy") < left_out.count("idle") + left_out.count("idler")
    measured = score(found.plan, found.denoiser(planted), job.held_out)
    assert measured == pytest.approx(found.score, rel=1e-6)


def test_times_beat_every_rule_they_start_beside(searched, make_mixture):
    model = make_mixture(VP(), spread=1.0)
    job, finished = searched("autodiffusion", model, 4, points=60)
    assert finished and job.result is None
    starts = Times(job, 4, 60)
    with torch.no_grad():
        known = [
            score(plan(model.process, "ddim", timesteps=starts.times(s)), model, job.held_out) for s in starts.starts
        ]
    assert job.score < 0.95 * min(known)
    assert job.best.about["timesteps"] == "autodiffusion" and job.best.about["solver"] == "ddim"


def test_the_frechet_fitness_is_the_distance_from_the_data_or_the_references_samples(make_mixture):
    model = make_mixture(VP())
    job = Job(model, 4, method="autodiffusion", noises=32, reference_nfe=40)
    made = plan(model.process, "ddim", 4)
    with torch.no_grad():
        found = Fitness(model, "frechet", "pixels")(made, model, job.train)
        assert found == frechet(made(model, job.train.noise, dtype=torch.float64), job.train.reference).value
        assert Fitness(model, "frechet", "pixels")(job.teacher, model, job.train) < 1e-9
    from fewstep.data.digits import load as digits
    from fewstep.hub.models import load

    model = load("digits")
    made = plan(model.process, "ddim", 2)
    noise, label = Noise(0).normal(0, (16, 1, 8, 8)), torch.arange(16) % 10
    job = Job(model, 2, method="autodiffusion", noises=16, reference_nfe=10)
    value = Fitness(model, "frechet", "digits")(made, model, job.train)
    assert value == pytest.approx(
        frechet(made(model, noise, label=label), digits("train")[0], "digits").value, rel=1e-5
    )


def test_the_pruned_result_survives_being_taken_up_again(searched, planted, tmp_path):
    whole, _ = searched("autodiffusion", planted, 3, masks=True, **SMALL)
    part, finished = searched("autodiffusion", planted, 3, tmp_path, 5600, masks=True, **SMALL)
    assert not finished
    again, finished = searched("autodiffusion", planted, 3, tmp_path, masks=True, **SMALL)
    assert finished and again.result == whole.result


@pytest.mark.parametrize(
    "options, words",
    [
        ({"fitness": "frechett"}, "did you mean 'frechet'"),
        ({"fitness": "frechet", "features": "pixel"}, "did you mean 'pixels'"),
        ({"masks": True}, "skippable"),
        ({"solver": "ddpm"}, "deterministic"),
        ({"population": 1}, "at least 2"),
        ({"points": 8}, "at least 9"),
        ({"solver": "heun", "masks": True}, "one evaluation a step"),
    ],
)
def test_bad_options_are_refused_at_once(searched, make_mixture, options, words):
    with pytest.raises(ValueError, match=words):
        searched("autodiffusion", make_mixture(VP()), 4, **options)

"""Denoising diffusion GANs: pairs of states, the posterior's draw, what the latent does, and both players' losses."""

from __future__ import annotations

import copy

import pytest
import torch
from consistent import small
from distillation.short import RUN

import fewstep as fs
from fewstep.core.prediction import expand
from fewstep.distillation.ddgan import DDGAN
from fewstep.distillation.discriminator import r1
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.ddim import posterior
from fewstep.sampling.sample import choose_plan

each_process = pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)


def work_of(process=None, steps=4, **options):
    setting = small(process or EDM(), classes=3, steps=steps)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # so that nothing is hidden behind a layer of zeros
        for parameter in setting.base.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return DDGAN(setting, **options)


def drawn_of(work, batch=16, seed=3, step=1):
    work.setting.step = step
    return work.setting.mine(work.draw(batch, torch.Generator().manual_seed(seed)))


def planted(work):
    """The student with a latent that counts: weights of its last layer that are not zero."""
    with torch.no_grad():
        work.student.network.embedding.extra["latent"][-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    return work


@each_process
def test_real_pairs_have_the_laws_of_their_times(process):
    work = work_of(process)
    times = [*work.times(), process.t_zero]
    assert times[0] == work.setting.start and len(times) == 5
    drawn = drawn_of(work, 400)
    place = torch.tensor([times.index(float(t)) for t in drawn["t"]])
    assert torch.bincount(place, minlength=4).min() > 70
    assert all(float(s) == times[k + 1] for s, k in zip(drawn["s"], place, strict=True))
    for row, k in zip(drawn["posterior"], place, strict=True):
        assert tuple(row.tolist()) == posterior(process, times[k], times[k + 1])
    x_s, x_t = work.states(drawn)
    clean = place == 3
    torch.testing.assert_close(x_s[clean], drawn["x0"][clean])
    alpha, sigma = (part[:, None].float() for part in (process.alpha(drawn["t"]), process.sigma(drawn["t"])))
    eps = (x_t - alpha * drawn["x0"]) / sigma  # of both noises
    assert float(eps.mean().abs()) < 0.15 and float(eps.std()) == pytest.approx(1.0, abs=0.1)


@each_process
def test_it_draws_from_the_posterior_of_what_it_answers(process):
    work = planted(work_of(process))
    drawn = drawn_of(work)
    _, x_t = work.states(drawn)
    for turn in (0, 1):
        answer = work.student(x_t, drawn["t"], latent=drawn["z"][:, turn], **drawn["condition"]).x0
        std, of_x, of_x0 = (expand(part, x_t) for part in drawn["posterior"].T)
        wanted = of_x * x_t + of_x0 * answer + std * drawn["noise"][:, turn]
        torch.testing.assert_close(work.before(x_t, drawn, turn), wanted)


def test_at_first_the_latent_changes_nothing_and_once_planted_everything():
    work = work_of()
    drawn = drawn_of(work)
    other = drawn | {"z": -2 * drawn["z"]}
    _, x_t = work.states(drawn)
    base = work.setting.base(x_t, drawn["t"], **drawn["condition"]).x0
    fresh = work.student(x_t, drawn["t"], latent=drawn["z"][:, 0], **drawn["condition"]).x0
    assert torch.equal(fresh, base) and torch.equal(work._loss(drawn), work._loss(other))
    planted(work)
    assert bool((work._loss(drawn) != work._loss(other)).all())
    assert bool((work._critic_loss(drawn) != work._critic_loss(other)).all())
    assert bool((work.before(x_t, drawn, 0) != work.before(x_t, other, 0)).all())


def test_without_a_latent_it_is_a_student_of_ddpm():
    work = work_of(latent=0)
    drawn = drawn_of(work)
    assert work.solver == "ddpm" and "latent" not in work.student.conditions
    assert torch.equal(work._loss(drawn), work._loss(drawn | {"z": -2 * drawn["z"]}))
    with pytest.raises(ValueError, match="the plan gives the network 'latent' at its evaluations, but this model"):
        fs.plan(EDM(), "ddgan", 2)(work.student, torch.zeros(1, 2), label=0)


def test_the_penalty_is_r1_at_real_pairs_every_few_iterations():
    work, plain = work_of(r1=0.4, lazy=3), work_of(r1=0.0)
    plain.judge.load_state_dict(work.judge.state_dict())
    for step in range(4):
        drawn = drawn_of(work, step=step)
        real, x_t = work.states(drawn)
        s, t, condition = drawn["s"], drawn["t"], drawn["condition"]
        more = work._critic_loss(drawn) - plain._critic_loss(drawn)
        if step % 3:
            assert torch.equal(more, torch.zeros_like(more))
            continue
        slope = r1(lambda x, at, named, x_t=x_t, t=t: work.judge(x, at, x_t, t, named), real, s, condition)
        torch.testing.assert_close(more, 0.2 * slope, rtol=1e-3, atol=1e-5)
        assert bool((slope > 0).all())


def test_the_judge_looks_at_both_states_and_trains_what_a_logit_depends_on():
    work = work_of()
    with torch.no_grad():
        work.judge.network.network.embedding.extra["latent"][-1].weight.fill_(0.1)
    drawn = drawn_of(work)
    (x_s, x_t), s, t = work.states(drawn), drawn["s"], drawn["t"]
    logits = work.judge(x_s, s, x_t, t, drawn["condition"])
    for other in (
        work.judge(x_s + 1, s, x_t, t, drawn["condition"]),
        work.judge(x_s, s, x_t + 1, t, drawn["condition"]),
    ):
        assert bool((other != logits).all())
    still = [name for name, p in work.judge.named_parameters() if not p.requires_grad]
    assert still and all("last" in name for name in still)
    assert work.student.network is not work.setting.base.network
    begun = copy.deepcopy(work.setting.base.state_dict())
    for player in work.players.values():
        player.loss(drawn).mean().backward()
    assert all(torch.equal(value, begun[name]) for name, value in work.setting.base.state_dict().items())


def test_what_it_costs():
    work = work_of(lazy=2)
    count, n = work.setting.count, 16
    work._critic_loss(drawn_of(work, n, step=1))
    assert count.evaluations == n * (1 + 2 * 3)
    work._critic_loss(drawn_of(work, n, step=2))
    assert count.evaluations == n * (2 * (1 + 2 * 3) + 5)
    before = count.evaluations
    work._loss(drawn_of(work, n))
    assert count.evaluations - before == n * (3 + 3)


def test_a_run_takes_four_steps_of_its_solver_and_its_folder_says_so(teacher, points, few_noises, tmp_path):
    made = fs.distill(teacher, "ddgan", data=points, out=tmp_path / "run", **RUN)
    student = made.model.student
    assert made.plan.name == "ddgan" == student.solver and made.plan.nfe == 4 and len(student.times) == 4
    loaded = fs.load(tmp_path / "run" / "model")
    assert loaded.student == student and loaded.conditions["latent"].size == 2
    ours, theirs = (fs.sample(model, 6, label=1, seed=5) for model in (made.model, loaded))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(fs.sample(loaded, 6, label=1, seed=5, batch_size=4), ours)  # each sample's own stream
    fewer = choose_plan(loaded, steps=2)
    assert fewer.name == "ddgan" and fewer.times == (student.times[0], student.times[2], 0.0)
    with pytest.raises(ValueError, match="'ddim' takes them for means: leave the solver out, or name 'ddgan'"):
        fs.sample(loaded, 1, solver="ddim", label=0)
    plain = fs.distill(teacher, "ddgan", latent=0, steps=2, data=points, **RUN)
    assert plain.plan.name == plain.model.student.solver == "ddpm" and "latent" not in plain.model.conditions


def test_what_it_refuses():
    for options, said in (
        ({"latent": 3}, "latent must be 0 to 2, the numbers of a sample, got 3"),
        ({"latent": -1}, "latent must be 0 to 2"),
        ({"r1": -1.0}, "r1 must be at least 0 and lazy at least 1, got -1 and 8"),
        ({"lazy": 0}, "r1 must be at least 0 and lazy at least 1"),
        ({"features": ["block.9"]}, "unknown block 'block.9'"),
    ):
        with pytest.raises(ValueError, match=said):
            work_of(**options)
    with pytest.raises(ValueError, match="ddgan copies its student for a discriminator, which only networks can be"):
        DDGAN(small(EDM(), own=True))

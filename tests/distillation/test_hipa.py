from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.core.methods import made
from fewstep.core.student import default_start
from fewstep.distillation.distances import squared
from fewstep.distillation.hipa import HighFrequency, edges, fourier_distance, high_pass, rank_within
from fewstep.distillation.method import Setting
from fewstep.distillation.state import DistillState
from fewstep.training.lora import lora_parameters, set_scale

F64 = torch.float64


def pictures(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_a_shift_leaves_amplitudes_and_its_phase_is_the_shifts():
    x, cut = pictures(3, 2, 8, 6), 0.4
    for shift in ((1, 0), (0, 2), (3, 5)):
        moved = x.roll(shift, (2, 3))
        amplitude, phase = fourier_distance(x, moved, cut)
        assert amplitude.abs().max() < 1e-28
        power = torch.fft.fft2(x, norm="ortho").abs().square() * high_pass(8, 6, cut)
        turn = 2 * math.pi * (torch.fft.fftfreq(8)[:, None] * shift[0] + torch.fft.fftfreq(6) * shift[1])
        torch.testing.assert_close(phase, (2 * power * (1 - turn.cos())).flatten(1).mean(1), rtol=0, atol=1e-6)
    assert fourier_distance(x, 1.5 * x, cut)[1].abs().max() < 1e-15  # larger, in the same place


def test_both_parts_are_the_difference_beyond_the_cut():
    a, b = pictures(3, 2, 8, 6), pictures(3, 2, 8, 6, seed=1)
    torch.testing.assert_close(
        sum(fourier_distance(a, b, 0.0)), squared(a - a.mean((2, 3), True), b - b.mean((2, 3), True))
    )
    kept = torch.fft.ifft2(torch.fft.fft2(a - b) * high_pass(8, 6, 0.7)).real
    torch.testing.assert_close(sum(fourier_distance(a, b, 0.7)), kept.square().flatten(1).mean(1))
    wave = torch.cos(2 * math.pi * torch.arange(8, dtype=F64) / 8).expand(1, 1, 8, 8)  # a quarter of Nyquist
    for cut, there in ((0.2, True), (0.3, False)):
        assert bool(sum(fourier_distance(wave, 0 * wave, cut)) > 0.1) == there
    corners = high_pass(8, 8, 1.0)  # beyond Nyquist along both axes together
    assert corners[4, 4] and not corners[4, 0] and not corners[0].any()


def test_edges_are_the_slopes():
    assert edges(torch.full((2, 3, 5, 4), 0.7)).abs().max() < 1e-6
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    found = edges((2 * y - 3 * x).expand(1, 1, 5, 6))
    assert found.shape == (1, 2, 3, 4)
    torch.testing.assert_close(found[0, 0], torch.full((3, 4), 2.0))
    torch.testing.assert_close(found[0, 1], torch.full((3, 4), -3.0))
    two = pictures(1, 2, 5, 6)
    torch.testing.assert_close(edges(two), torch.cat([edges(two[:, :1]), edges(two[:, 1:])], 1))


def setting_on(teacher):
    std = teacher.data_std
    return Setting(teacher, teacher, default_start(teacher.process, std), data_std=std, iterations=4)


@pytest.fixture
def teacher():
    return fs.load("digits").requires_grad_(False)


def test_it_trains_a_small_adapter_and_off_it_is_the_teacher_bit_for_bit(teacher):
    pytest.importorskip("peft")
    work = made("distiller", "hipa", 1, pairs=8, plan="ddim")(setting_on(teacher))
    DistillState(work, {}, seed=0, batch=4, accelerator=None).run(2)
    total = sum(p.numel() for p in teacher.network.parameters())
    own = sum(p.numel() for p in lora_parameters(work.student))
    assert work.figures() == {"trained_share": own / total} and 0 < own / total < 0.05
    x, t, label = torch.randn(4, 1, 8, 8), torch.full((4,), 2.0), torch.tensor([0, 3, 5, 10])
    with torch.no_grad():
        on, before = work.student(x, t, label=label).x0, teacher(x, t, label=label).x0
        set_scale(work.student, 0.0)
        assert torch.equal(work.student(x, t, label=label).x0, before) and not torch.equal(on, before)


def test_the_distances_are_added_by_their_weights(teacher):
    setting = setting_on(teacher)
    work = HighFrequency(setting, 4, "ddim", features=0.3, fourier=2.0, edges=0.5, cut=0.6, most=1.0)
    z, x0, condition = work.pairing.taken(torch.arange(4))
    one = work.student(setting.begin(z), setting.times(setting.start, 4), **condition).x0
    expected = squared(one, x0) + 0.3 * work.features(one, x0, condition) + 2.0 * sum(fourier_distance(one, x0, 0.6))
    expected = expected + 0.5 * (edges(one) - edges(x0)).abs().flatten(1).mean(1)
    torch.testing.assert_close(work.loss(z, x0, condition), expected)


def test_what_is_refused(teacher):
    for options, message in (
        ({"edges": -1.0}, "the weight edges must be at least 0 and finite, got -1.0"),
        ({"cut": 1.5}, "cut must be from 0 to 1 and most above 0 to 1, got 1.5"),
        ({"most": 1e-4}, "even an adapter of rank 1 has .* and may have 0.0%"),
    ):
        with pytest.raises(ValueError, match=message):
            made("distiller", "hipa", 1, pairs=2, plan="ddim", **options)(setting_on(teacher))
    large = setting_on(teacher)
    large.lora = 8
    with pytest.raises(ValueError, match="an adapter of rank 8 has .*% of the network's weights, and may have 5.0%"):
        made("distiller", "hipa", 1, pairs=2, plan="ddim")(large)
    assert rank_within(setting_on(teacher), 0.2) > rank_within(setting_on(teacher), 0.05) >= 1

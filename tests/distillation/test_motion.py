from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.distillation.motion import (
    FIXED,
    LEARNED,
    Projection,
    correlation,
    difference,
    high,
    low,
    patterns,
    representation,
    waves,
)

F64 = torch.float64
SHAPE = (6, 3, 8, 8)


def picture() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)


def still() -> Tensor:
    return picture()[:, None].expand(2, *SHAPE).clone()


def shifted(dy: int, dx: int) -> Tensor:
    """The picture moves by a shift from frame to frame, round the edges."""
    return torch.stack([picture().roll((t * dy, t * dx), (-2, -1)) for t in range(SHAPE[0])], dim=1)


def test_a_still_clip_is_constant_or_zero_in_every_representation():
    constant = {"raw", "correlation"}
    for name in (*FIXED, LEARNED):
        found = representation(name, SHAPE)(still())
        assert found.shape[0] == 2 and found.shape[1] >= 1
        if name in constant:
            torch.testing.assert_close(found, found[:, :1].expand_as(found), rtol=0, atol=0)
        else:
            torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_differences_of_a_shifted_clip_are_those_of_its_frames():
    clip = shifted(1, 0)
    expected = torch.stack([clip[:, t + 1] - clip[:, t] for t in range(5)], dim=1)
    assert torch.equal(difference(clip), expected)
    torch.testing.assert_close(difference(clip)[:, 1], difference(clip)[:, 0].roll(1, -2))


@pytest.mark.parametrize("shift", [(0, 0), (0, 1), (-1, 0), (1, -1)])
def test_the_correlation_of_a_shifted_clip_stands_at_its_shift(shift):
    clip = shifted(*shift)
    found = correlation(clip)
    assert found.shape == (2, 5, 9, 8, 8)
    place = 3 * (shift[0] + 1) + shift[1] + 1
    torch.testing.assert_close(found[:, :, place], clip[:, :-1].square().sum(2))  # all of each pixel's energy
    assert bool((found.mean((3, 4)).argmax(2) == place).all())


def test_waves_over_time_are_orthonormal_and_hold_all_but_the_mean():
    torch.testing.assert_close(waves(6) @ waves(6).T, torch.eye(6, dtype=F64))
    clip = torch.randn(2, *SHAPE, dtype=F64)
    moving = (clip - clip.mean(1, keepdim=True)).square().sum()
    torch.testing.assert_close(low(clip).square().sum() + high(clip).square().sum(), moving)
    assert low(clip).shape[1] == 3 and high(clip).shape[1] == 2


@pytest.mark.parametrize("k", [1, 3, 4, 5])
def test_slow_and_fast_are_told_apart(k):
    clip = waves(6)[k][None, :, None, None, None] * picture()[:, None]
    slow, fast = low(clip), high(clip)
    full, empty = (slow, fast) if k <= 3 else (fast, slow)
    torch.testing.assert_close(full[:, (k - 1) % 3], picture())
    torch.testing.assert_close(full.square().sum(), picture().square().sum())
    torch.testing.assert_close(empty, torch.zeros_like(empty), rtol=0, atol=1e-12)


def test_learned_patterns_stay_orthonormal_without_the_mean():
    made = Projection(6, 2)
    with torch.no_grad():
        made.rows.add_(torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=F64))
    basis = made(torch.eye(6, dtype=F64)[None])[0]  # of each frame alone
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=F64))
    torch.testing.assert_close(basis.sum(1), torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)


def test_learned_patterns_find_the_wave_in_which_two_sides_differ():
    made, clip = Projection(6, 1), waves(6)[4][None, :, None, None, None] * picture()[:, None]
    torch.testing.assert_close(made(clip), torch.zeros_like(made(clip)), rtol=0, atol=1e-12)
    with torch.no_grad():
        made.rows.add_(0.1 * torch.randn(1, 6, generator=torch.Generator().manual_seed(2), dtype=F64))
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        (-made(clip).square().mean()).backward()
        optimiser.step()
    assert float(made(clip).detach().square().sum() / picture().square().sum()) > 0.99
    found = patterns(waves(6).T[None], made(torch.eye(6, dtype=F64)[None])[0].detach())  # by wave
    assert int(found[0, 0].abs().argmax()) == 4


def test_faulty_representations():
    with pytest.raises(ValueError, match="unknown motion 'diference': did you mean 'difference'"):
        representation("diference", SHAPE)
    with pytest.raises(ValueError, match="motion is of clips .* makes no clips"):
        representation("raw", (3, 8, 8))
    with pytest.raises(ValueError, match="'high' needs clips of at least 3 frames, got 2"):
        representation("high", (2, 3, 8, 8))

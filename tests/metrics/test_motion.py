from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from fewstep.data.moving import captions, draw, parse, scenes
from fewstep.metrics.motion import fine, motion, read, sharpness
from fewstep.networks.attention import blur

ROWS = torch.arange(60)


@functools.cache
def clean() -> Tensor:
    return draw(ROWS)[0]


def noisy(amount: float) -> Tensor:
    return clean() + amount * torch.randn(clean().shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("clips", "off"),
    [(clean, 0.05), (lambda: noisy(0.1), 0.15), (lambda: noisy(0.3), 0.4), (lambda: blur(clean(), 0.5), 0.15)],
    ids=["clean", "noise", "more noise", "blur"],
)
def test_shape_colour_and_place_are_read_back_in_every_frame(clips, off):
    found, made = read(clips()), scenes(ROWS)
    assert torch.equal(found.colour, made.colour[:, None].expand(-1, 8))
    assert torch.equal(found.shape, made.shape[:, None].expand(-1, 8))
    assert float((found.centre - made.centres()).norm(dim=2).max()) < off
    assert float((found.velocity() - made.centres().diff(dim=1)).norm(dim=2).mean()) < off / 2


def test_clean_clips_are_right_and_those_of_other_captions_are_not():
    words = captions(ROWS)
    right, wrong = motion(clean(), words), motion(clean().flip(0), words)
    assert right.value == right.colour == right.shape == right.direction == 1.0 and right.n == 60
    assert right.velocity_error < 0.02 and right.sharpness == pytest.approx(1.0, abs=0.02) and right.error == 0
    assert wrong.value < 0.05 and wrong.velocity_error > 0.8
    assert wrong.error == pytest.approx((wrong.value * (1 - wrong.value) / 60) ** 0.5)


def test_the_speed_counts_where_it_is_asked_for():
    specs = scenes(ROWS).specs()
    other = {"slowly": "fast", "fast": "slowly"}
    swapped = [spec.caption.replace(spec.speed, other[spec.speed]) for spec in specs]
    open_ = [spec.caption.rsplit(" ", 1)[0] for spec in specs]
    wrong = motion(clean(), swapped)
    assert wrong.value == 0 and wrong.direction == 1 and wrong.velocity_error > 0.5
    assert motion(clean(), open_).value == 1 and motion(clean(), open_).velocity_error < 0.02
    assert all(parse(caption).speed is None for caption in open_)


def test_a_flicker_and_a_second_thing_are_wrong():
    words, clips = captions(ROWS), clean().clone()
    clips[:, 3] = clean().roll(1, 0)[:, 3]  # one frame of another clip
    assert motion(clips, words).value < 0.1 and motion(clips, words).shape > 0.85
    both = torch.maximum(clean(), clean().roll(1, 0))
    assert motion(both, words).value < 0.2
    assert motion(torch.full_like(clean(), -0.8), words).shape == 0


def test_sharpness_falls_with_blur_and_rises_with_noise():
    words = captions(ROWS)
    values = [sharpness(x, words) for x in (blur(clean(), 1.0), blur(clean(), 0.5), clean(), noisy(0.1))]
    assert values == sorted(values) and values[0] < 0.1 and values[1] < 0.6 and values[3] > 1.3
    assert values[2] == motion(clean(), words).sharpness


def test_what_is_fine_lies_beyond_half_of_nyquist():
    place = torch.arange(16.0)
    for cycles in (0, 1, 3, 4, 5, 8):  # over 16 pixels; Nyquist's frequency is 8
        wave = torch.cos(2 * torch.pi * cycles * place / 16).expand(16, 16)
        whole = float(wave.double().square().sum())
        assert float(fine(wave)) == pytest.approx(whole if cycles > 4 else 0.0, abs=1e-6)


def test_faulty_clips():
    words = captions(ROWS)
    with pytest.raises(ValueError, match="clips must be of one length, got some of 6 and some of 8 frames"):
        motion([clean()[0], clean()[1, :6]], words[:2])
    with pytest.raises(ValueError, match=r"clips must be \(N, T, 3, 16, 16\)"):
        motion(clean()[:, 0], words)
    with pytest.raises(ValueError, match="give 60 captions, one per clip"):
        motion(clean(), words[:2])
    with pytest.raises(ValueError, match="cannot read the caption 'a red circle'"):
        motion(clean()[:1], ["a red circle"])
    assert motion(list(clean()[:3]), words[:3]).value == 1

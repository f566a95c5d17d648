from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.data.captions import COLOURS, OPPOSITE, SHAPES, SIZES, Spec, Thing
from fewstep.data.shapes import captions, draw, render_specs, scenes
from fewstep.data.shapes_render import BACKGROUND
from fewstep.metrics.shapes_reward import soft_scores
from fewstep.metrics.shapes_verifier import check


def test_registered():
    assert find("shapes-reward") is soft_scores


@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.slow), "validation"])
def test_right_pictures_have_the_highest_score(split):
    rows = torch.arange(400)
    images = draw(rows, split)[0]
    for asked in (captions(rows, split), [spec.caption for spec in scenes(rows, split)]):
        scores = soft_scores(images, asked)
        assert scores.shape == (400,) and scores.min() > 0.9995 and scores.max() <= 1


def corrupted(spec):
    """Scenes that differ from this one in one attribute."""
    (first, *rest), place, relation = spec.things, spec.place, spec.relation
    for colour in COLOURS:
        if colour != first.colour:
            yield Spec((Thing(colour, first.shape, first.size), *rest), place, relation)
    for shape in SHAPES:
        if shape != first.shape:
            yield Spec((Thing(first.colour, shape, first.size), *rest), place, relation)
    yield Spec((Thing(first.colour, first.shape, SIZES[1 - SIZES.index(first.size)]), *rest), place, relation)
    if rest:
        yield Spec(spec.things, None, OPPOSITE[relation])
        yield Spec((first,), None)
        yield Spec((rest[0],), None)
    else:
        yield Spec((first,), "at the right" if place != "at the right" else "at the bottom")
        yield Spec((first, Thing("cyan" if first.colour != "cyan" else "red", "cross", "small")), None, "above")


def test_every_corruption_scores_less():
    for spec in scenes(torch.arange(40)):
        wrong = render_specs(list(corrupted(spec)), seed=1)
        assert soft_scores(wrong, [spec.caption] * len(wrong)).max() < 0.995


def test_an_empty_picture_scores_nothing():
    asked = captions(torch.arange(100))
    scores = soft_scores(torch.full((100, 3, 32, 32), BACKGROUND), asked)
    assert scores.abs().max() < 0.05


def test_the_gradient_points_at_a_right_picture():
    asked = [spec.caption for spec in scenes(torch.arange(48))]
    x = draw(torch.arange(1000, 1048))[0].requires_grad_()
    scores = soft_scores(x, asked)
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    # along it the score is a parabola with its top, 1, at the right picture y: s + |g|^2 E / 4 = 1, g = 2 (y - x) / E
    energy = 4 * (1 - scores) / gradient.square().flatten(1).sum(1)
    right = x + 0.5 * energy[:, None, None, None] * gradient
    assert check(right, asked).full.all() and soft_scores(right.detach(), asked).min() > 0.99


def test_ascent_makes_wrong_pictures_right():
    names = list(COLOURS)
    specs = scenes(torch.arange(2000, 2024))
    wrong = []
    for spec in specs:
        things = (Thing(names[(names.index(t.colour) + 1) % 6], t.shape, t.size) for t in spec.things)
        wrong.append(Spec(tuple(things), spec.place, spec.relation))
    asked = [spec.caption for spec in specs]
    x = render_specs(wrong, seed=2)
    assert not check(x, asked).full.any()
    for _ in range(40):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(soft_scores(x, asked).sum(), x)
        x = (x + 40 * gradient).detach()
    assert check(x, asked).full.float().mean() > 0.9


@pytest.mark.slow
def test_the_nearest_right_picture_is_found_as_by_trying_all():
    """Parity with trying every centre of a fine grid for a lone thing whose size is open."""
    from fewstep.data.shapes_render import PALETTE, RADII, REACH, coverage, paint

    x = draw(torch.arange(3))[0] + 0.3 * torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    best = []
    for radius in RADII:
        line = torch.arange(REACH * radius, 32 - REACH * radius + 1e-4, 0.25)
        centres = torch.cartesian_prod(line, line).unsqueeze(1)
        ones = torch.ones(len(centres), 1)
        made = paint(torch.tensor(PALETTE[4]).expand(len(centres), 1, 3), coverage(ones.long(), radius * ones, centres))
        best.append(torch.cdist(x.flatten(1).double(), made.flatten(1).double()).square().amin(1))
    x.requires_grad_()
    scores = soft_scores(x, ["a purple square"] * 3)
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    energy = 4 * (1 - scores) / gradient.square().flatten(1).sum(1)
    found = ((1 - scores) * energy).detach().double()
    assert torch.allclose(found, torch.minimum(*best), rtol=0.005)


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="give 2 captions"):
        soft_scores(torch.zeros(2, 3, 32, 32), ["a red circle"])
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\)"):
        soft_scores(torch.zeros(2, 3, 16, 16), ["a red circle"] * 2)

from __future__ import annotations

import itertools

import pytest
import torch

from fewstep.data import shapes
from fewstep.data.captions import (
    COLOURS,
    LENGTH,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    VOCABULARY,
    Spec,
    Thing,
    detokenize,
    parse,
    tokenize,
)
from fewstep.data.open import open_data
from fewstep.data.shapes import captions, draw, held_out, render_caption, render_specs, scenes
from fewstep.data.shapes_render import BACKGROUND, PALETTE, RADII, REACH, coverage, render


def every_spec():
    things = [Thing(c, s, z) for c, s, z in itertools.product(COLOURS, SHAPES, (*SIZES, None))]
    yield from (Spec((thing,), place) for thing in things for place in (*PLACES, None))
    yield from (Spec((a, b), None, r) for a, b, r in itertools.product(things, things, RELATIONS))


def test_every_caption_is_read_back():
    specs = list(every_spec())
    sentences = [spec.caption for spec in specs]
    assert len(set(sentences)) == len(sentences) == 720 + 72 * 72 * 4
    assert max(len(sentence.split()) for sentence in sentences) == LENGTH
    for spec, sentence in list(zip(specs, sentences, strict=True))[::7]:
        assert parse(sentence) == spec
    some = sentences[::101]
    tokens = torch.stack([tokenize(sentence) for sentence in some])
    assert tokens.shape == (len(some), LENGTH) and tokens.dtype == torch.int64
    assert detokenize(tokens) == some
    assert {word for sentence in sentences for word in sentence.split()} == set(VOCABULARY[1:])


def test_the_empty_caption_is_padding():
    assert tokenize("").tolist() == [0] * LENGTH
    assert tokenize("A purple Circle").tolist() == [VOCABULARY.index(w) for w in ("a", "purple", "circle")] + [0] * 7


@pytest.mark.parametrize(
    "caption, message",
    [
        ("a rde circle", "unknown word 'rde': did you mean 'red'.* the words are a, small, large"),
        ("zzz", "unknown word 'zzz' in 'zzz'; the words are a, small"),
        ("a a a a a a a a a a a", "at most 10 words, .* has 11"),
    ],
)
def test_tokenize_refuses(caption, message):
    with pytest.raises(ValueError, match=message):
        tokenize(caption)


@pytest.mark.parametrize(
    "caption",
    ["", "a circle red", "a red circle left", "red circle", "a red circle above a circle", "a red circle in the top"],
)
def test_parse_refuses(caption):
    with pytest.raises(ValueError, match="cannot read the caption .*say 'a "):
        parse(caption)


def test_spec_refuses():
    red = Thing("red", "circle")
    with pytest.raises(ValueError, match="unknown colour 'rd': did you mean 'red'"):
        Spec((Thing("rd", "circle"),))
    with pytest.raises(ValueError, match="two and a relation"):
        Spec((red, red))
    with pytest.raises(ValueError, match="unknown relation"):
        Spec((red, red), None, "leftof")
    with pytest.raises(ValueError, match="unknown place"):
        Spec((red,), "at the middle")


def test_a_row_does_not_depend_on_its_batch():
    rows = torch.tensor([7, 123456, 7, 2**40 + 3, 0])
    images, tokens = draw(rows)
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.float32 and images.abs().max() <= 1
    assert tokens.shape == (5, LENGTH) and tokens.dtype == torch.int64
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[4])
    for i, row in enumerate(rows):
        alone, words = draw(row.view(1))
        assert torch.equal(alone[0], images[i]) and torch.equal(words[0], tokens[i])
    assert not torch.equal(draw(rows, "validation")[0], images)
    assert captions(rows) == detokenize(tokens)


def test_rows_are_pinned():
    """Trained models depend on these."""
    assert captions(torch.arange(3)) == [
        "a small cyan circle at the bottom",
        "a large purple circle",
        "a small red triangle at the bottom",
    ]


def test_opened_by_name_it_is_drawn():
    data = open_data("shapes", split="validation")
    images, text = data.batch(torch.tensor([4090, 5]))
    wanted = draw(torch.tensor([4090, 5]), "validation")
    assert torch.equal(images, wanted[0]) and torch.equal(text["text"], wanted[1])
    assert len(data) == shapes.N_VALIDATION and len(open_data("shapes")) == shapes.N_TRAIN
    # what a model makes of a caption is what the data gives
    assert (
        data.spec.text.tokens("A large red circle, above a cross")
        == tokenize("A large red circle, above a cross").tolist()
    )


def test_wrong_rows_and_splits_raise():
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        draw(torch.arange(2), "valid")
    with pytest.raises(ValueError, match="unknown split 'all'"):
        draw(torch.arange(2), "all")
    for rows in (torch.arange(2.0), torch.tensor([-1]), torch.tensor(3)):
        with pytest.raises(ValueError, match=r"rows must be \(B,\) whole numbers from 0"):
            draw(rows)


def test_captions_say_what_is_shown():
    rows = torch.arange(3000)
    named = {"size": 0, "place": 0, "two": 0}
    for shown, caption in zip(scenes(rows), captions(rows), strict=True):
        asked = parse(caption)
        assert asked.relation == shown.relation and asked.place in (None, shown.place)
        assert len(asked.things) == len(shown.things)
        for a, b in zip(asked.things, shown.things, strict=True):
            assert (a.colour, a.shape) == (b.colour, b.shape) and a.size in (None, b.size)
        named["size"] += asked.things[0].size is not None
        named["place"] += asked.place is not None
        named["two"] += len(asked.things) == 2
    assert named["two"] / 3000 == pytest.approx(0.6, abs=0.03)
    assert named["size"] / 3000 == pytest.approx(0.75, abs=0.03)
    assert named["place"] / (3000 - named["two"]) == pytest.approx(0.75, abs=0.04)


def test_held_out_combinations_are_never_trained_on():
    things = [Thing(c, s, z) for c, s, z in itertools.product(COLOURS, SHAPES, SIZES)]
    singles = [Spec((thing,), place) for thing in things for place in PLACES]
    large = things[1::2]
    pairs = [Spec((a, b), None, r) for a in large for b in large for r in RELATIONS if a != b]
    assert 0.10 < sum(map(held_out, singles)) / len(singles) < 0.15
    assert 0.10 < sum(map(held_out, pairs)) / len(pairs) < 0.15
    for pair in pairs[::17]:  # the same picture, told from its other end; sizes do not matter
        other = Spec(
            (Thing(pair.things[1].colour, pair.things[1].shape), pair.things[0]), None, OPPOSITE[pair.relation]
        )
        assert held_out(pair) == held_out(other)
    trained = scenes(torch.arange(20000))
    assert not any(map(held_out, trained))
    assert all(map(held_out, scenes(torch.arange(2000), "validation")))
    assert not held_out(Spec((things[0],))) and not held_out(parse("a red circle left of a red circle"))
    # every atom is trained on, in every role
    assert len({(k, t.colour, t.shape, t.size) for s in trained for k, t in enumerate(s.things)}) == 2 * 48
    assert {s.relation for s in trained} == {*RELATIONS, None} and {s.place for s in trained} == {*PLACES, None}
    assert all(s.things[0].colour != s.things[1].colour or s.things[0].shape != s.things[1].shape
               for s in trained if s.relation)  # fmt: skip


def test_layouts_keep_their_word():
    """Whole in the picture, apart, on the side that is said, near the place that is said."""
    rows = torch.arange(5000)
    made = shapes._draw(rows, "train")[0]
    radius = torch.tensor(RADII)[made.size]
    low, high = made.centre - REACH * radius.unsqueeze(2), made.centre + REACH * radius.unsqueeze(2)
    assert low.min() >= 0 and high.max() <= 32
    gap = (made.centre[:, 0] - made.centre[:, 1]).abs() - REACH * radius.sum(1, keepdim=True)
    assert gap.amax(1)[made.two].min() >= shapes.GAP - 1e-4
    dx, dy = (made.centre[:, 1] - made.centre[:, 0]).unbind(1)
    for number, (along, across) in enumerate([(dx, dy), (-dx, dy), (dy, dx), (-dy, dx)]):
        rows = made.two & (made.where == number)
        assert (along[rows] > 3 * across[rows].abs()).all() and rows.sum() > 500
    single = ~made.two
    cell = torch.stack((made.where % 3, made.where // 3), 1)[single]
    assert (made.centre[single, 0] - 8 - 8 * cell).abs().max() <= 1.75


def test_coverage_is_the_area():
    centre = torch.tensor([16.3, 15.6], dtype=torch.float64).expand(4, 2)
    for radius in RADII:
        area = coverage(torch.arange(4), torch.full((4,), radius), centre).sum((1, 2))
        exact = torch.tensor(
            [
                torch.pi * radius**2,
                (2 * 0.88 * radius) ** 2,
                1.12 * (1.15 + 0.8) * radius**2,
                (8 * 1.08 * 0.38 - 4 * 0.38**2) * radius**2,
            ],
            dtype=torch.float64,
        )
        assert torch.allclose(area, exact, rtol=0.02)
    square = coverage(
        torch.tensor([1]), torch.tensor([2.5 / 0.88]), torch.tensor([[8.0, 5.25]], dtype=torch.float64), 12
    )
    assert square[0, 5].tolist() == pytest.approx([0] * 5 + [0.5] + [1] * 4 + [0.5] + [0], abs=1e-5)


def test_coverage_has_gradients_in_the_centre():
    kinds, radius = torch.arange(4), torch.full((4,), 4.0, dtype=torch.float64)
    centre = torch.tensor([[6.13, 5.87], [6.21, 6.42], [5.7, 6.1], [6.33, 5.6]], dtype=torch.float64)
    weight = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def moment(c):
        return (weight * coverage(kinds, radius, c, 12)).sum((1, 2))

    assert torch.autograd.gradcheck(moment, centre.requires_grad_())


def test_render_has_the_colours():
    zero, one = torch.zeros(6, 1, dtype=torch.int64), torch.ones(6, 1, dtype=torch.int64)
    centre = torch.tensor([10.0, 20.0]).expand(6, 1, 2)
    images = render(torch.arange(6).view(6, 1), one, one, centre, one.bool())
    assert torch.allclose(images[:, :, 20, 10], torch.tensor(PALETTE))
    assert (images[:, :, 5, 25] == BACKGROUND).all()
    assert (render(zero, one, one, centre, zero.bool()) == BACKGROUND).all()
    palette = torch.tensor((*PALETTE, (BACKGROUND,) * 3))
    assert torch.pdist(palette).min() > 1.05


def test_render_caption_draws_what_is_said():
    image = render_caption("a large red circle left of a small blue square", seed=3)
    assert image.shape == (3, 32, 32) and torch.equal(
        image, render_caption("A large red circle left of a small blue square", 3)
    )
    assert not torch.equal(image, render_caption("a large red circle left of a small blue square", 4))
    red, blue = ((image.permute(1, 2, 0) - torch.tensor(PALETTE[k])).norm(dim=2) < 0.1 for k in (0, 2))
    columns = torch.arange(32.0).expand(32, 32)
    assert columns[red].mean() < columns[blue].mean() - 8 and red.sum() > 2 * blue.sum() > 60
    with pytest.raises(ValueError, match="cannot read"):
        render_caption("")
    with pytest.raises(ValueError, match="at least one spec and a seed from 0"):
        render_specs([])


def test_condition_maps_are_of_the_same_pictures():
    images, mask = shapes.maps(torch.arange(20), "validation")
    assert torch.equal(images, shapes.draw(torch.arange(20), "validation")[0])
    assert mask.shape == (20, 1, 32, 32) and bool(((mask >= 0) & (mask <= 1)).all())
    shown = (images + 0.8).abs().amax(1, keepdim=True)  # above the ground
    assert torch.equal(mask > 0, shown > 1e-6)
    edge = shapes.maps(torch.arange(20), "validation", "edge")[1]
    assert bool((edge[mask.bool() & (mask < 1)] > 0).all())  # wherever a pixel is partly covered
    inside = -torch.nn.functional.max_pool2d(-mask, 3, 1, 1) == 1
    assert bool((edge[inside] == 0).all()) and bool((edge >= 0).all())
    with pytest.raises(ValueError, match="did you mean 'edge'"):
        shapes.maps(torch.arange(2), kind="edges")

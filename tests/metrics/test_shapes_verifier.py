from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fewstep.core.methods import find
from fewstep.data.captions import COLOURS, OPPOSITE, SHAPES, SIZES, Spec, Thing, detokenize, parse
from fewstep.data.shapes import STROKE, captions, draw, render_caption, render_specs, scenes
from fewstep.data.shapes_render import BACKGROUND, PALETTE, RADII, coverage, paint
from fewstep.metrics.shapes_verifier import check, in_outline, verify

NAMES = ("count", "colour", "shape", "size", "position")


def made_of(shape, colour, radius, centre):
    """A picture with one shape of any radius."""
    mask = coverage(torch.tensor([[SHAPES.index(shape)]]), torch.tensor([[radius]]), torch.tensor([[centre]]))
    return paint(torch.tensor(PALETTE)[COLOURS.index(colour)].view(1, 1, 3), mask)[0]


def blurred(images, sigma):
    kernel = torch.exp(-0.5 * (torch.arange(-5, 6) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    images = functional.pad(images, [5] * 4, mode="replicate")
    images = functional.conv2d(images, kernel.view(3, 1, 1, 11), groups=3)
    return functional.conv2d(images, kernel.view(3, 1, 11, 1), groups=3)


@pytest.fixture(scope="module")
def data():
    rows = torch.arange(300)
    return draw(rows, "validation")[0], [spec.caption for spec in scenes(rows, "validation")]


def test_registered():
    assert find("shapes-verifier") is check


@pytest.mark.slow
def test_clean_pictures_are_read_exactly():
    for split in ("train", "validation"):
        rows = torch.arange(5000, 6500)
        images, shown = draw(rows, split)[0], scenes(rows, split)
        assert check(images, [spec.caption for spec in shown]).full.all()
        assert check(images, captions(rows, split)).full.all()


def test_every_attribute_is_read(data):
    images, shown = data
    verdict = check(images, shown)
    assert all(getattr(verdict, name).shape == (300,) and getattr(verdict, name).all() for name in NAMES)
    for scene, caption in zip(verify(images), shown, strict=True):
        found = {(thing.colour, thing.shape, thing.size) for thing in scene.things}
        assert found == {(t.colour, t.shape, t.size) for t in parse(caption).things} and scene.clean


def test_outlines_are_told_from_filled_shapes_and_read(data):
    rows = torch.arange(16)
    lines, shown = draw(rows, "validation", STROKE)[0], data[1][:16]
    assert in_outline(lines).all() and not in_outline(data[0][:16]).any()
    assert check(lines, shown, STROKE).full.all() and not check(lines, shown).full.all()
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not in_outline(noise).any() and not in_outline(torch.full_like(noise, BACKGROUND)).any()


def test_centres_are_found():
    centre = torch.tensor([[[9.3, 12.45]], [[20.1, 18.77]]])
    masks = coverage(torch.tensor([[2], [3]]), torch.tensor([[RADII[0]], [RADII[1]]]), centre)
    found = verify(paint(torch.tensor(PALETTE)[torch.tensor([[1], [4]])], masks))
    for scene, true in zip(found, centre[:, 0], strict=True):
        assert len(scene.things) == 1 and torch.dist(torch.tensor(scene.things[0].centre), true) < 0.2
    assert [scene.things[0].colour for scene in found] == ["green", "purple"]


def test_sizes_between_are_rounded():
    for radius, size in ((3.7, "small"), (4.4, "small"), (4.9, "small"), (5.4, "large"), (6.7, "large")):
        images = torch.stack([made_of(shape, "blue", radius, (15.3, 16.8)) for shape in SHAPES])
        assert check(images, [f"a {size} blue {shape} in the center" for shape in SHAPES]).full.all(), radius


@pytest.mark.parametrize("what, least", [("noise", 0.99), ("clipped", 0.99), ("blur", 0.98)])
def test_noise_and_blur_are_borne(data, what, least):
    images, shown = data
    if what == "blur":
        images = blurred(images, 1.0)
    else:
        images = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        images = images.clamp(-1, 1) if what == "clipped" else images
    assert check(images, shown).full.float().mean() >= least


def corruptions(spec):
    """Captions that differ from a full one in one attribute, and the attribute."""
    first, rest = spec.things[0], spec.things[1:]
    k = COLOURS.index(first.colour)
    for step in (1, 3, 5):
        yield (
            "colour",
            Spec((Thing(COLOURS[(k + step) % 6], first.shape, first.size), *rest), spec.place, spec.relation),
        )
    for step in (1, 2, 3):
        shape = SHAPES[(SHAPES.index(first.shape) + step) % 4]
        yield "shape", Spec((Thing(first.colour, shape, first.size), *rest), spec.place, spec.relation)
    size = SIZES[1 - SIZES.index(first.size)]
    yield "size", Spec((Thing(first.colour, first.shape, size), *rest), spec.place, spec.relation)
    if rest:
        yield "position", Spec(spec.things, None, OPPOSITE[spec.relation])
        yield "position", Spec(spec.things, None, "above" if "of" in spec.relation else "left of")
        yield "count", Spec((first,))
    else:
        yield "position", Spec(spec.things, "at the top" if spec.place != "at the top" else "at the left")
        other = Thing(COLOURS[(k + 1) % 6], first.shape)
        yield "count", Spec((first, other), None, "above")


def test_wrong_captions_are_refused(data):
    images, shown = data
    for number in range(40):
        names, specs = zip(*corruptions(parse(shown[number])), strict=True)
        verdict = check(images[number].expand(len(specs), -1, -1, -1), [spec.caption for spec in specs])
        assert not verdict.full.any()
        for k, name in enumerate(names):
            if name in ("count", "shape", "size"):
                assert not getattr(verdict, name)[k]


def test_the_attribute_that_is_wrong_is_named():
    image = render_caption("a large red circle left of a small blue square")
    asked = {
        "a large red circle right of a small blue square": "position",
        "a large red circle above a small blue square": "position",
        "a large red circle left of a small cyan square": "colour",
        "a large red circle left of a large blue square": "size",
        "a large red cross left of a small blue square": "shape",
        "a large red circle": "count",
    }
    verdict = check(image.expand(len(asked), -1, -1, -1), list(asked))
    for k, name in enumerate(asked.values()):
        assert [n for n in NAMES if not getattr(verdict, n)[k]] == [name]
    swapped = check(render_caption("a large blue circle left of a small red square")[None],
                    ["a large red circle left of a small blue square"])  # fmt: skip
    assert [n for n in NAMES if not getattr(swapped, n)[0]] == ["colour"]
    assert check(image[None], ["a red circle left of a blue square"]).full.all()


def test_other_pictures_are_refused(data):
    images, shown = data
    generator = torch.Generator().manual_seed(2)
    empty = torch.full_like(images[:50], BACKGROUND)
    for wrong in (
        empty,
        torch.randn(empty.shape, generator=generator),
        torch.ones_like(empty),
        -torch.ones_like(empty),
    ):
        verdict = check(wrong, shown[:50])
        assert not verdict.full.any() and not verdict.count.any()
    assert not check(empty, shown[:50]).colour.any() and verify(empty[:1])[0].things == ()


def smudge(colour, centre, narrow, wide, height=1.0):
    x, y = torch.arange(32.0) + 0.5 - centre[0], (torch.arange(32.0) + 0.5 - centre[1])[:, None]
    blob = torch.exp(-0.5 * (((x + y) / (2**0.5 * wide)) ** 2 + ((x - y) / (2**0.5 * narrow)) ** 2))
    return height * blob * (torch.tensor(PALETTE[COLOURS.index(colour)]) - BACKGROUND)[:, None, None]


def test_extra_things_and_smudges_are_refused():
    caption = "a small red circle at the left"
    image = render_caption(caption)
    three = render_caption("a small green cross above a small green square") + image - BACKGROUND
    spoiled = torch.stack(
        [
            image,
            image + smudge("red", (24, 20), 2, 2),
            image + smudge("cyan", (22, 7), 1.5, 3, 0.8),
            image + smudge("yellow", (26, 26), 3, 5, 0.7),
            image + render_caption("a small red circle at the right") - BACKGROUND,
            three,
        ]
    )
    assert check(spoiled, [caption] * 6).full.tolist() == [True] + [False] * 5
    pair = "a small green cross above a small green square"
    assert not check(three[None], [pair]).full.any()
    for shape in SHAPES:
        alone = torch.stack([smudge("red", (8, 16), *w) + BACKGROUND for w in ((2, 2), (2.5, 2.5), (2, 3.5), (1.5, 4))])
        assert not check(alone, [f"a red {shape} at the left"] * 4).full.any()


def test_pale_and_other_colours_are_refused():
    caption = "a large red circle in the center"
    image = render_caption(caption)
    pale = BACKGROUND + 0.5 * (image - BACKGROUND)
    grey = (image - BACKGROUND).norm(dim=0, keepdim=True).expand(3, -1, -1) * 0.58 + BACKGROUND
    verdict = check(torch.stack((pale, grey)), [caption] * 2)
    assert not verdict.colour.any() and verdict.shape.all() and verdict.count.all()


def test_a_picture_is_read_alone_as_in_a_batch(data):
    images, shown = data
    noisy = images[:20] + 0.3 * torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    together = check(noisy, shown[:20])
    for k in range(0, 20, 5):
        alone = check(noisy[k : k + 1], shown[k : k + 1])
        assert all(getattr(alone, name)[0] == getattr(together, name)[k] for name in NAMES)


def test_all_relations_of_things_of_one_colour():
    """The second thing must not be taken for a part of the first."""
    specs = [
        Spec((Thing("blue", a, size), Thing("blue", b, size)), None, relation)
        for a in SHAPES for b in SHAPES for relation in OPPOSITE for size in SIZES
    ]  # fmt: skip
    assert check(render_specs(specs, seed=5), [spec.caption for spec in specs]).full.all()


@pytest.mark.parametrize(
    "images, asked, message",
    [
        (torch.zeros(2, 1, 32, 32), ["a red circle"] * 2, r"images must be \(B, 3, 32, 32\)"),
        (torch.full((1, 3, 32, 32), torch.nan), ["a red circle"], "not finite"),
        (torch.zeros(2, 3, 32, 32), ["a red circle"], "give 2 captions"),
        (torch.zeros(1, 3, 32, 32), "a red circle", "give 1 captions"),
        (torch.zeros(1, 3, 32, 32), [""], "cannot read the caption"),
    ],
)
def test_wrong_input_raises(images, asked, message):
    with pytest.raises(ValueError, match=message):
        check(images, asked)


def test_tokens_of_data_can_be_checked():
    images, tokens = draw(torch.arange(16))
    assert check(images, detokenize(tokens)).full.all()

from __future__ import annotations

import itertools

import pytest
import torch

import fewstep as fs
from fewstep.data.captions import COLOURS, SHAPES
from fewstep.data.captions import parse as still
from fewstep.data.moving import (
    AHEAD,
    DIRECTIONS,
    HIGH,
    LOW,
    SPEEDS,
    TEXT,
    Moving,
    captions,
    draw,
    held_out,
    parse,
    path,
    render,
    scenes,
    together,
)
from fewstep.data.open import open_data
from fewstep.data.shapes_render import BACKGROUND, PALETTE

EVERY = [Moving(*words) for words in itertools.product(COLOURS, SHAPES, DIRECTIONS, (*SPEEDS, None))]


def test_every_caption_is_read_back():
    assert len({spec.caption for spec in EVERY}) == len(EVERY) == 288
    assert all(parse(spec.caption) == spec for spec in EVERY)
    assert all(TEXT.words(TEXT.tokens(spec.caption)) == spec.caption for spec in EVERY)
    assert parse("A red Circle moving left").caption == "a red circle moving left"


@pytest.mark.parametrize(
    "caption, message",
    [
        ("a red circle", "cannot read the caption 'a red circle': say 'a COLOUR SHAPE moving left"),
        ("a red circle moving fast left", "cannot read the caption"),
        ("a red circle movin left", "unknown word 'movin': did you mean 'moving'"),
    ],
)
def test_no_other_text_is_a_caption(caption, message):
    with pytest.raises(ValueError, match=message):
        parse(caption)


def test_a_still_model_says_so_of_a_caption_of_motion():
    message = "'a red circle moving left' asks for motion, but .* still pictures: leave 'moving' out"
    with pytest.raises(ValueError, match=message):
        fs.sample(fs.load("shapes"), 1, text="a red circle moving left", steps=1)
    with pytest.raises(ValueError, match=message):
        still("a red circle moving left")


def test_a_path_is_reflected_at_the_edges():
    start = torch.tensor([[LOW + 1, 8.0], [HIGH - 0.5, 8.0]], dtype=torch.float64)
    found = path(start, torch.tensor([[-0.75, 0.0], [1.5, 0.0]], dtype=torch.float64), 4)
    expected = [[LOW + 1, LOW + 0.25, LOW + 0.5, LOW + 1.25], [HIGH - 0.5, HIGH - 1, HIGH - 2.5, HIGH - 4]]
    torch.testing.assert_close(found[..., 0], torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(found[..., 1], torch.full((2, 4), 8.0, dtype=torch.float64))


def test_clips_show_what_their_attributes_say():
    rows = torch.arange(300)
    made, (clips, tokens) = scenes(rows), draw(rows)
    centres, ways = made.centres(), torch.tensor(list(DIRECTIONS.values()))[made.direction]
    assert clips.shape == (300, 8, 3, 16, 16) and clips.dtype == torch.float32
    assert float(centres.min()) >= LOW - 1e-5 and float(centres.max()) <= HIGH + 1e-5
    # The first steps go the named way at the named speed, and some clips bounce later.
    steps = centres.diff(dim=1)
    speed = torch.tensor(list(SPEEDS.values()))[made.speed, None]
    torch.testing.assert_close(steps[:, :AHEAD], (ways * speed)[:, None].expand(-1, AHEAD, -1), rtol=0, atol=1e-5)
    assert 0.2 < float(((steps * ways[:, None]).sum(2) < 0).any(1).float().mean()) < 0.9
    # The pixel under the centre has the colour, the corner the ground; each frame's mass lies around its centre.
    at = centres.floor().long()
    under = clips.permute(0, 1, 3, 4, 2)[torch.arange(300)[:, None], torch.arange(8), at[..., 1], at[..., 0]]
    torch.testing.assert_close(under, torch.tensor(PALETTE)[made.colour][:, None].expand_as(under))
    assert torch.equal(clips[..., 0, 0], torch.full((300, 8, 3), BACKGROUND))
    for spec, caption in zip(made.specs(), captions(rows), strict=True):
        asked = parse(caption)
        assert caption == spec.caption or asked == Moving(spec.colour, spec.shape, spec.direction)
    assert 0.6 < sum(caption == s.caption for s, caption in zip(made.specs(), captions(rows), strict=True)) / 300 < 0.9
    assert torch.equal(tokens, torch.tensor([TEXT.tokens(caption) for caption in captions(rows)]))


def test_a_still_path_is_a_still_clip():
    still = render(torch.tensor([2]), torch.tensor([0]), torch.full((1, 5, 2), 8.0))
    assert still.shape == (1, 5, 3, 16, 16) and torch.equal(still, still[:, :1].expand_as(still))


def test_combinations_are_held_out():
    train, validation = (scenes(torch.arange(3000), split).specs() for split in ("train", "validation"))
    assert not any(map(held_out, train)) and all(map(held_out, validation))
    share = sum(map(held_out, EVERY)) / 192
    assert 0.05 < share < 0.2 and len(set(train)) + len(set(validation)) == 192
    assert not held_out(Moving("red", "circle", "left"))


def test_it_opens_by_name():
    data = open_data("moving")
    assert data.spec.shape == (8, 3, 16, 16) and len(data) == 200_000 and data.spec.text == TEXT
    rows = torch.tensor([5, 199_999, 0])
    images, condition = data.batch(rows)
    assert torch.equal(images, draw(rows)[0]) and torch.equal(condition["text"], draw(rows)[1])
    assert data.images.shape[0] == 2000


def test_faulty_arguments():
    with pytest.raises(ValueError, match="use the split 'train' or 'validation'"):
        open_data("moving", split="all")
    with pytest.raises(ValueError, match="moving comes as 16x16, not as 32"):
        open_data("moving", size=32)
    with pytest.raises(ValueError, match="unknown split 'tst'"):
        draw(torch.arange(2), "tst")
    with pytest.raises(ValueError, match="rows must be .* whole numbers from 0"):
        draw(torch.tensor([-1]))
    with pytest.raises(ValueError, match="unknown direction 'lef': did you mean 'left'"):
        Moving("red", "circle", "lef")


def test_clips_of_mixed_lengths_are_refused():
    clips = [torch.zeros(8, 3, 16, 16), torch.zeros(6, 3, 16, 16)]
    with pytest.raises(ValueError, match="clips must be of one length, got some of 6 and some of 8 frames"):
        together(clips)
    with pytest.raises(ValueError, match="frames must be of one size"):
        together([clips[0], torch.zeros(8, 3, 16, 12)])
    with pytest.raises(ValueError, match="give clips .* at least one"):
        together([])
    assert together(clips[:1] * 3).shape == (3, 8, 3, 16, 16)

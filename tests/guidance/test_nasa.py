"""NASA: against attention written out word by word, its ends, students, and the other methods around it."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.core.student import Student
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.nasa import Nasa
from fewstep.hub.pipeline import PipelineDenoiser
from fewstep.networks.surgery import replaced
from fewstep.networks.unet import Attention, UNet
from fewstep.processes.vp import VP

F64 = torch.float64
WORDS = ("a", "red", "blue", "circle")


def model_of(student: Student | None = None, **options) -> NetworkDenoiser:
    """A network whose only block of attention is in the middle, over 2 x 2 tokens."""
    torch.manual_seed(0)
    sizes = {"channels": 1, "size": 4, "width": (8, 8), "attention": (2,), "classes": None, "captions": 3}
    network = UNet(**(sizes | {"vocabulary": 4} | options))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    conditions = {"text": Text(WORDS, 3)} if network.vocabulary else {"label": Label(3)}
    return NetworkDenoiser(network.double().eval(), VP(), "v", (1, 4, 4), conditions, student=student)


@pytest.fixture
def case():
    model = model_of()
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    return model, x, torch.tensor(0.6, dtype=F64), model.check_condition({"text": "a circle"}, 3, x.device)


class ByHand(torch.nn.Module):
    """`Attn(Q, K+, V+) - alpha Attn(Q, K-, V-)`, query by query, of a block of attention and a negative caption."""

    def __init__(self, block, words, alpha):
        super().__init__()
        self.block, self.away, self.alpha = block, words, alpha

    def forward(self, x, embedding):
        block, width = self.block, x.shape[1]
        tokens = block.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (tokens @ block.qkv.weight.T + block.qkv.bias).split(width, dim=2)
        out = torch.zeros_like(v)
        for b in range(len(x)):
            own, other = (
                (words @ block.words.weight.T + block.words.bias).split(width, dim=1)
                for words in (embedding[b, 1:], self.away)
            )
            for i in range(tokens.shape[1]):
                with_own = torch.cat([k[b], own[0]]), torch.cat([v[b], own[1]])
                read = [self._read(q[b, i], *pair) for pair in (with_own, other)]
                out[b, i] = read[0] - self.alpha * read[1]
        return x + (out @ block.out.weight.T + block.out.bias).transpose(1, 2).reshape(x.shape)

    @staticmethod
    def _read(query, keys, values):
        weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


@torch.no_grad()
def test_attention_by_hand(case):
    model, x, t, condition = case
    for alpha in (0.3, 1.0):
        found = fs.guide(model, "nasa", negative="red", alpha=alpha)(x, t, **condition).value
        words = model.network.text(torch.tensor([[2, 0, 0]]))[0]
        blocks = {name: block for name, block in model.network.blocks.items() if isinstance(block, Attention)}
        assert len(blocks) == 3
        parts = {f"network.{name}": ByHand(block, words, alpha) for name, block in blocks.items()}
        expected = replaced(model, parts)(x, t, **condition).value
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_ends_and_what_is_said_anew(case):
    model, x, t, condition = case
    base = model(x, t, **condition).value
    for negative in ("red", "", ["red", "", "blue"]):
        assert torch.equal(fs.guide(model, "nasa", negative=negative, alpha=0)(x, t, **condition).value, base)
    away = {word: fs.guide(model, "nasa", negative=word)(x, t, **condition).value for word in ("red", "blue", "")}
    assert len({float(value.sum()) for value in (*away.values(), base)}) == 4
    guided = fs.guide(model, "nasa", negative="red")
    named = guided.check_condition({"text": "a circle", "negative": ["blue", "red", ""]}, 3, x.device)
    each = guided(x, t, **named).value
    for row, word in enumerate(("blue", "red", "")):
        torch.testing.assert_close(each[row], away[word][row])
    listed = fs.guide(model, "nasa", negative=["blue", "red", ""])
    told = listed.check_condition({"text": "a circle"}, 3, x.device)
    assert torch.equal(listed(x, t, **told).value, each)


def test_every_student_takes_it_and_its_plan_stays(case):
    _, x, t, condition = case
    for kind in ("denoiser", "jump"):
        student = model_of(Student(kind, "dmd2", guidance=2.0))
        student.plan = fs.plan(student.process, "ddim", 1)
        guided = fs.guide(student, "nasa", negative="red", alpha=0.3)
        assert guided.student is student.student and guided.plan is student.plan
        made = [fs.sample(one, 2, text="a circle", seed=1) for one in (student, guided)]
        assert not torch.equal(*made) and fs.sample(guided, 2, text="a circle").shape == (2, 1, 4, 4)
        for model in (student, guided):
            with pytest.raises(ValueError, match="this student's guidance is inside"):
                fs.guide(model, "cfg", scale=2.0)


def test_one_pass_and_together_with_cfg(case):
    model, x, t, condition = case
    nasa = fs.guide(model, "nasa", negative="red")
    result = fs.plan(model.process, "ddim", 2).run(nasa, x, text="a circle", dtype=F64)
    assert result.report["rows"] == 2
    both = fs.guide(nasa, "cfg", scale=2.0)  # each of its branches keeps away from the word
    given, empty = (nasa(x, t, text=model.check_condition({"text": text}, 3, x.device)["text"]).value
                    for text in ("a circle", None))  # fmt: skip
    named = both.check_condition({"text": "a circle"}, 3, x.device)
    torch.testing.assert_close(both(x, t, **named).value, empty + 2 * (given - empty))
    other = fs.guide(fs.guide(model, "cfg", scale=2.0), "nasa", negative="red")
    torch.testing.assert_close(other(x, t, **other.check_condition({"text": "a circle"}, 3, x.device)).value,
                               both(x, t, **named).value)  # fmt: skip
    many = fs.guide(fs.guide(model, "cfg", scale=2.0), "nasa", negative=["red", "blue", ""])
    with pytest.raises(ValueError, match="words to keep away from for 3 samples, and the network is called with 6"):
        many(x, t, **condition)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "PixArtAlphaPipeline"])
def test_diffusers_by_processors_of_attention(kind):
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny

    model = PipelineDenoiser(tiny(kind, matching("ddim", kind)))
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    x, t = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1)), torch.tensor(400.0)
    nasa = Nasa(model, ["blurry", "a red dog"], 0.4)
    named = nasa.check_condition({"text": ["a cat", "the red dog"]}, 2, x.device)
    found = nasa(x, t, **named).value
    own = {name: value for name, value in named.items() if name in model.conditions}
    away = model.check_condition({"text": ["blurry", "a red dog"]}, 2, x.device)
    base = model(x, t, **own).value
    none = Nasa(model, "blurry", 0.0)
    assert torch.equal(none(x, t, **none.check_condition({"text": ["a cat", "the red dog"]}, 2, x.device)).value, base)
    text = away["text"].to(x.dtype)
    if kind == "PixArtAlphaPipeline":
        text = model.network.caption_projection(text)
    written = Written(text, away.get("mask"), 0.4)
    places = [name for name in model.network.attn_processors if ".attn2." in name]
    assert places
    for name in places:
        model.network.get_submodule(name.removesuffix(".processor")).set_processor(written)
    torch.testing.assert_close(found, model(x, t, **own).value, rtol=1e-5, atol=1e-5)
    assert float((found - base).abs().max()) > 1e-3


class Written:
    """A processor of diffusers' attention with the difference written out."""

    def __init__(self, text, mask, alpha):
        self.text, self.mask, self.alpha = text, mask, alpha

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **options):
        q = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        bias = None if self.mask is None else (1 - self.mask.to(q.dtype)) * -10000.0
        kept = None if attention_mask is None else attention_mask.view(len(q), 1, 1, -1)
        other = None if bias is None else bias[:, None, None]
        read = [self._read(attn, q, *pair) for pair in ((encoder_hidden_states, kept), (self.text, other))]
        z = (read[0] - self.alpha * read[1]).transpose(1, 2).flatten(2)
        return attn.to_out[0](z)

    @staticmethod
    def _read(attn, q, text, bias):
        k, v = (to(text).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_k, attn.to_v))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        return (scores if bias is None else scores + bias).softmax(3) @ v


def test_faulty_arguments(case):
    model = case[0]
    with pytest.raises(ValueError, match="the method of guidance 'nasa' needs negative="):
        fs.guide(model, "nasa", alpha=0.3)
    for negative in (None, [], ["red", None]):
        with pytest.raises(ValueError, match="'nasa' needs a caption to keep away from, negative='red', got"):
            Nasa(model, negative)
    with pytest.raises(ValueError, match="unknown word 'rad': did you mean 'red'"):
        fs.guide(model, "nasa", negative="rad")
    for alpha in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha must be at least 0 and finite"):
            fs.guide(model, "nasa", negative="red", alpha=alpha)
    for wordless in (
        model_of(vocabulary=None, classes=3),
        GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, VP()),
    ):
        with pytest.raises(ValueError, match="'nasa' needs a network that reads captions; this model reads no words"):
            fs.guide(wordless, "nasa", negative="red")

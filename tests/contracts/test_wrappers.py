"""The contract of everything that wraps a denoiser: a card with the fact `wraps` enters by itself.

`changes` on the card names the facts and methods that are not the wrapped model's.
"""

from __future__ import annotations

import copy
import functools
import itertools
import zlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from sampled import sampled
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.conditions.label import Label
from fewstep.conditions.number import Number
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.facts import Facts
from fewstep.core.memory import Memory, ask
from fewstep.core.methods import find, methods
from fewstep.core.prediction import Prediction
from fewstep.core.student import Student
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.interpolant import MixtureInterpolant
from fewstep.denoisers.learned_variance import SpreadPrediction
from fewstep.networks.blocks import networks_of
from fewstep.networks.dit import DiT
from fewstep.networks.unet import UNet
from fewstep.processes.interpolants import Interpolant
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

# Not those that are for one network alone, which their own tests have.
NETWORKS = (None, "transformer", "captions")  # a wrapper of another network has tests of its own
WRAPPERS = {c.name: c for c in methods() if c.facts.get("wraps") and c.facts.get("network") in NETWORKS}
SHAPE = (2, 4, 6)
PICTURE, MASK = torch.linspace(-1, 1, 2 * 8 * 12).reshape(2, 8, 12), torch.zeros(8, 12)
MASK[:, :4] = 1.0

# A method of guidance around a label, whose scale 1 is none.
GUIDED = (lambda make, model: make(model, 2.0), lambda make, model: make(model, 1.0))


def ink(x0: Tensor, ink: Tensor) -> Tensor:
    return (x0.flatten(1).mean(1) - ink).square()


def bright(x: Tensor, t: Tensor, ink: Tensor) -> Tensor:
    return -(x.flatten(1).mean(1) - ink).square()


def calibrated(make: Any, model: Denoiser, part: str = "whole") -> Any:
    """A schedule for twelve evaluations of ddim, in which the part stands at every second one."""
    rows = ["whole", part] * 6
    return make(model, rows, plan(model.process, "ddim", 12).moments, [2] * 12, "ddim")


def attention(model: Denoiser) -> str:
    """The name of a block of attention."""
    return next(name for name in networks_of(model)[0] if name.split(".")[-1] == "attn")


def by_magnitude(make: Any, model: Denoiser, threshold: float) -> Any:
    """Twelve evaluations of ddim, of which the sum of changes leaves out every second one after the third."""
    return make(model, [1.0, *[1.1] * 11], plan(model.process, "ddim", 12).moments, threshold)


def changing(make: Any, model: Denoiser, delta: float) -> Any:
    """Block caching of twelve evaluations of ddim, of which every block was measured to change by a tenth at each."""
    names = [name for name, block in networks_of(model)[0].items() if block.skippable]
    return make(
        model, {name: [0.0] + [0.1] * 11 for name in names}, plan(model.process, "ddim", 12).moments, "ddim", delta
    )


# How each is made around a model: at work, and at strength zero, where it must be the model bit for bit. A wrapper
# without a row fails by its name.
EXAMPLES: dict[str, tuple[Any, Any]] = {
    "cfg": GUIDED,
    "adaptive": GUIDED,
    "apg": GUIDED,
    "fdg": GUIDED,
    "tcfg": GUIDED,
    "zero-star": GUIDED,
    "autoguidance": (
        lambda make, model: make(model, fewer_weights(model), 2.0),
        lambda make, model: make(model, model, 1.0),
    ),
    "slg": (lambda make, model: make(model, 2.0), lambda make, model: make(model, 0.0)),
    "pag": (lambda make, model: make(model, 2.0), lambda make, model: make(model, 0.0)),
    "seg": (lambda make, model: make(model, 2.0), lambda make, model: make(model, 2.0, 0.0)),
    "sag": (lambda make, model: make(model, 2.0), lambda make, model: make(model, 0.0)),
    "blur": (lambda make, model: make(model, 2.0), lambda make, model: make(model, 0.0)),
    "nasa": (lambda make, model: make(model, "red", 0.5), lambda make, model: make(model, "red", 0.0)),
    "power": (lambda make, model: make(model, 1.5), lambda make, model: make(model, 1.0)),
    "nag": (
        lambda make, model: make(model, 1.0, null=Other(model)),
        lambda make, model: make(model, 0.0, null=Other(model)),
    ),
    "lacon": (
        lambda make, model: make(model, Head(), PICTURE[:, :4, :6], ["mid.res0"], 0.2),
        lambda make, model: make(model, Head(), PICTURE[:, :4, :6], ["mid.res0"], 0.0),
    ),
    "known": (
        lambda make, model: make(model, PICTURE * model.value_range[1], MASK),
        lambda make, model: make(model, PICTURE * model.value_range[1], torch.zeros_like(MASK)),
    ),
    "dynamic-thresholding": (
        lambda make, model: make(model, 0.9, (-0.1, 0.1)),
        lambda make, model: make(model, 1.0, (-1e6, 1e6)),
    ),
    "masked": (lambda make, model: make(model, {0.4: [attention(model)]}), lambda make, model: make(model, {})),
    "fixed": (lambda make, model: make(model, label=1), lambda make, model: make(model, label=1)),
    "deepcache": (lambda make, model: make(model, 2), lambda make, model: make(model, 1)),
    "clockwork": (lambda make, model: make(model, 2), lambda make, model: make(model, 1)),
    "taylorseer": (lambda make, model: make(model, 2), lambda make, model: make(model, 1)),
    "inherit": (lambda make, model: make(model, 2), lambda make, model: make(model, 1)),
    "pab": (lambda make, model: make(model, 2), lambda make, model: make(model, 1, 1)),
    "magcache": (
        lambda make, model: by_magnitude(make, model, 0.15),
        lambda make, model: by_magnitude(make, model, 0.0),
    ),
    "teacache": (lambda make, model: make(model, 0.5), lambda make, model: make(model, 0.0)),
    "first-block": (lambda make, model: make(model, threshold=0.5), lambda make, model: make(model, threshold=0.0)),
    "dbcache": (
        lambda make, model: make(model, threshold=0.5, warmup=2),
        lambda make, model: make(model, threshold=0.0),
    ),
    "faster-cache": (lambda make, model: make(model, 2, 1), lambda make, model: make(model, 1, 1)),
    "budget": (lambda make, model: calibrated(make, model, "output"), lambda make, model: calibrated(make, model)),
    "token-merging": (lambda make, model: make(model, 0.5), lambda make, model: make(model, 0.0)),
    "encoder-propagation": (lambda make, model: make(model, 2), lambda make, model: make(model, 1)),
    "distrifusion": (lambda make, model: make(model, 2), lambda make, model: make(model, 1)),
    "pcpp": (lambda make, model: make(model, 2, 1), lambda make, model: make(model, 1, 0)),
    "block-caching": (
        lambda make, model: changing(make, model, 0.15),
        lambda make, model: changing(make, model, 0.0),
    ),
    "compose": (
        lambda make, model: make(model, [copy.deepcopy(model)], [2.0, 1.0]),
        lambda make, model: make(model, [copy.deepcopy(model)], [1.0, 0.0], [1.0, 0.0]),
    ),
    "factorized": (
        lambda make, model: make(model, [("low-1", {}), ("high-1", {"label": 2} if model.conditions else {})]),
        lambda make, model: make(model, [("all", {})]),
    ),
    "energy": (
        lambda make, model: make(model, None, ink, 0.5, conditions={"ink": Number(0.0, None, 0.3)}),
        lambda make, model: make(model, ink, None, 0.0, conditions={"ink": Number(0.0, None, 0.3)}),
    ),
    "classifier": (
        lambda make, model: make(model, bright, scale=0.5, conditions={"ink": Number(0.0, None, 0.3)}),
        lambda make, model: make(model, bright, scale=0.0, conditions={"ink": Number(0.0, None, 0.3)}),
    ),
    "flowchef": (
        lambda make, model: make(model, ink, 0.5, conditions={"ink": Number(0.0, None, 0.3)}),
        lambda make, model: make(model, ink, 0.0, conditions={"ink": Number(0.0, None, 0.3)}),
    ),
    "diffusehigh": (
        lambda make, model: make(model, PICTURE * model.value_range[1], 2),
        lambda make, model: make(model, PICTURE * model.value_range[1], 0),
    ),
    "experts": (
        lambda make, model: make([model, copy.deepcopy(model)], [0.5]),
        lambda make, model: make([model, model], [0.5]),
    ),
    "cluster-experts": (
        lambda make, model: make([model, fewer_weights(model)], Inked()),
        lambda make, model: make([model]),
    ),
}
# Inner and outer that do not go together: without conditions there is nothing to fix and nothing to guide by.
GUIDANCE = {name for name, row in EXAMPLES.items() if row is GUIDED}
CACHES = [name for name, card in WRAPPERS.items() if card.kind == "cache" and card.facts.get("keeps", True)]
DIVIDED = [name for name, card in WRAPPERS.items() if card.kind == "parallel"]  # nor do these do anything outside a run
CAPTIONED = {name for name, card in WRAPPERS.items() if card.facts.get("network") == "captions"}
ALONE = itertools.product((*CACHES, *DIVIDED), repeat=2)
REFUSED = {("fixed", "fixed"), *(("fixed", name) for name in GUIDANCE | CAPTIONED), *ALONE}
TRANSFORMERS = {name for name, card in WRAPPERS.items() if card.facts.get("network") == "transformer"}
UNETS = CAPTIONED | {"deepcache", "clockwork", "encoder-propagation", "lacon"}  # whose rows name what only a UNet has
# All that are refused, and a quarter of the other pairs, by a checksum of their names: each wrapper comes inside and
# outside of some ten others.
PAIRS = [
    pytest.param(
        inner,
        outer,
        marks=pytest.mark.slow if (inner, outer) not in REFUSED and zlib.crc32(f"{inner} {outer}".encode()) % 4 else [],
    )
    for inner, outer in itertools.product(WRAPPERS, WRAPPERS)
    if (inner, outer) in REFUSED or not ({inner, outer} & UNETS and {inner, outer} & TRANSFORMERS)
]


class Model(Denoiser):
    """A latent model with every fact set, a spread beside its answers, and blocks that can be left out."""

    def __init__(self, network: nn.Module | None = None, captions: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.process, self.shape, self.conditions = VP(), SHAPE, {"label": Label(3)}
        self.conditions |= {"text": Text(("a", "red", "circle"), 3)} if captions else {}
        self.value_range, self.data, self.data_std = (-1.0, 1.0), "digits", 0.7
        unet = functools.partial(UNet, channels=2, size=(4, 6), width=(8, 16), blocks=1, attention=(2,), classes=3)
        words = {"vocabulary": 3, "captions": 3} if captions else {}
        self.network = unet(**words) if network is None else network
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        self.autoencoder = nn.Linear(1, 1)
        self.plan, self.solver, self.timesteps = plan(self.process, "ddim", 3), "heun", times
        self.student = Student("denoiser", "progressive")

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> SpreadPrediction:
        output = self.network(x.float(), t.float().expand(len(x)), **condition).to(x.dtype)
        return SpreadPrediction(output, "v", x, t, self.process, torch.sigmoid(3 * output))

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return nn.functional.avg_pool2d(data, 2)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2)


class Head(nn.Module):
    """Two channels of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.layer(x.float()).to(x.dtype)


class Inked(nn.Module):
    """A router that tells two clusters apart by how bright a sample is."""

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        bright = x.flatten(1).mean(1)
        return torch.stack((bright, -bright), 1)


class Other(Denoiser):
    """Another model of the same process and shape, which does not look at the time."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.process, self.shape = model.process, model.shape
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(self.layer(x.float()).to(x.dtype), "eps", x, t, self.process)


def times(process: Any, steps: int, end: str) -> list[float]:
    raise AssertionError("advice, which nobody takes here")


def fewer_weights(model: Denoiser) -> Denoiser:
    """The model with other weights of its own."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    return other


def base_of(*names: str) -> Denoiser:
    """A model that these wrappers go around: their cards say where they need a transformer."""
    transformer = DiT(channels=2, size=(4, 6), patch=2, width=8, depth=4, classes=3)
    if CAPTIONED.intersection(names):
        return Model(captions=True)
    return Model(transformer if TRANSFORMERS.intersection(names) and names[0] not in UNETS else None)


def made(name: str, model: Denoiser, neutral: bool = False) -> Denoiser:
    assert name in EXAMPLES, f"{WRAPPERS[name].file} wraps a denoiser: give {name!r} a row in EXAMPLES"
    return EXAMPLES[name][int(neutral)](WRAPPERS[name].load(), model)


def asked(model: Denoiser, x: Tensor) -> dict[str, Tensor]:
    return model.check_condition({"label": 1} if "label" in model.conditions else {}, len(x), x.device)


@functools.cache
def shared(transformer: bool, captions: bool = False) -> Denoiser:
    return base_of(*sorted(TRANSFORMERS)[: int(transformer)], *sorted(CAPTIONED)[: int(captions)], "cfg").eval()


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Denoiser:
    """The model that the test's wrappers go around."""
    params = getattr(request.node, "callspec", None)
    names = [] if params is None else [params.params[key] for key in ("name", "inner", "outer") if key in params.params]
    captions = bool(CAPTIONED.intersection(names))
    return shared(bool(names and TRANSFORMERS.intersection(names) and names[0] not in UNETS), captions)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_there_are_wrappers_and_every_one_has_an_example():
    assert {"cfg", "known", "dynamic-thresholding", "masked", "experts", "fixed"} <= set(WRAPPERS)
    assert set(EXAMPLES) == set(WRAPPERS)


@sampled("name, dtype, times", list(WRAPPERS), [torch.float32, torch.float64], ["one for all", "one each"])
def test_shape_dtype_class_and_what_is_said_beside_are_kept(name, dtype, times, model, x):
    wrapped, x = made(name, model), x.to(dtype)
    t = torch.tensor([0.2, 0.4, 0.8], dtype=dtype) if times == "one each" else torch.tensor(0.4, dtype=dtype)
    with torch.no_grad():
        answer, base = wrapped(x, t, **asked(wrapped, x)), model(x, t, **asked(model, x))
    assert answer.value.shape == x.shape and answer.value.dtype == dtype and answer.kind == base.kind
    assert type(answer) is SpreadPrediction and answer.fraction.shape == x.shape
    assert answer.x is x and answer.t is t and answer.process is model.process
    if name not in ("masked", "token-merging", "nasa"):  # which change the network, and so the spread
        torch.testing.assert_close(answer.fraction, base.fraction, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", WRAPPERS)
def test_at_work_it_changes_something(name, model, x):
    wrapped = made(name, model)
    with torch.no_grad():
        answer, base = (one(x, torch.tensor(0.4), **asked(one, x)).value for one in (wrapped, model))
        # What needs a run is idle outside one.
        idle = name in ("fixed", "experts", "diffusehigh") or name in (*CACHES, *DIVIDED)
        assert torch.equal(answer, base) == idle


@pytest.mark.parametrize("name", WRAPPERS)
def test_strength_zero_is_the_base_bit_for_bit(name, model, x):
    wrapped = made(name, model, neutral=True)
    with torch.no_grad():
        for t in (torch.tensor(0.4), torch.tensor(1.0)):
            answer, base = wrapped(x, t, **asked(wrapped, x)), model(x, t, **asked(model, x))
            assert torch.equal(answer.value, base.value) and torch.equal(answer.fraction, base.fraction)


def check_facts(wrapped: Denoiser, model: Denoiser, changes: set[str]) -> None:
    own, base = wrapped.facts, model.facts
    for field in fields(Facts):
        if field.name not in changes:
            assert getattr(own, field.name) is getattr(base, field.name), field.name
            if getattr(base, field.name) is not None:
                assert getattr(wrapped, field.name) is getattr(base, field.name), field.name


@pytest.mark.parametrize("name", WRAPPERS)
def test_facts_are_kept_but_those_that_the_card_names(name, model):
    check_facts(made(name, model), model, set(WRAPPERS[name].facts.get("changes", ())))
    for change in set(WRAPPERS[name].facts.get("changes", ())) & {field.name for field in fields(Facts)}:
        assert getattr(made(name, model).facts, change) != getattr(model.facts, change), change


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_model_is_left_as_it_was(name, model, x):
    before, names = {key: value.clone() for key, value in model.state_dict().items()}, set(vars(model))
    for training in (True, False):
        inner = copy.deepcopy(model).train(training)
        wrapped = made(name, inner)
        with torch.no_grad():
            wrapped(x, torch.tensor(0.4), **asked(wrapped, x))
        assert inner.training == training and set(vars(inner)) == names
        assert all(torch.equal(value, before[key]) for key, value in inner.state_dict().items())
    tensors = [id(tensor) for tensor in wrapped.state_dict(keep_vars=True).values()]
    assert len(tensors) == len(set(tensors)) and {id(p) for p in inner.parameters()} <= set(tensors)


@pytest.mark.parametrize("name", WRAPPERS)
def test_conditions_coordinates_and_description(name, model, x):
    wrapped, changes = made(name, model), WRAPPERS[name].facts.get("changes", ())
    if "conditions" not in changes:
        for given in ({}, {"label": 2}, {"label": [0, 1, 2]}):
            ours, theirs = (one.check_condition(given, 3, x.device)["label"] for one in (wrapped, model))
            assert torch.equal(ours, theirs)
        with pytest.raises(ValueError, match="did you mean 'label'"):
            wrapped.check_condition({"labl": 2}, 3, x.device)
    assert torch.equal(wrapped.encode(PICTURE[None]), model.encode(PICTURE[None]))
    assert torch.equal(wrapped.decode(x), model.decode(x)) or "decode" in changes
    assert wrapped.describe()["process"] == model.process.config()
    assert (wrapped.device, wrapped.dtype) == (model.device, model.dtype)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name, card in WRAPPERS.items() if not card.facts.get("reads")])
def test_nothing_is_read_from_the_device(name, model, x):
    wrapped = made(name, model)
    named, t = asked(wrapped, x), torch.tensor(0.4)
    times = plan(model.process, "ddim", 12).moments if WRAPPERS[name].facts.get("plan") else (0.4, 0.4, 0.4)
    with torch.no_grad():
        for watch in (nullcontext(), seen := Seen()):  # the first run finds the host's numbers of each time
            memory = Memory(len(x), times, 0.0, None, "ddim")
            memory.advance()
            ask(wrapped, x, t, memory, named)  # what is kept from the first evaluation on
            with watch:
                for _ in range(2):
                    memory.advance()
                    ask(wrapped, x, t, memory, named)
    assert "addmm" in seen.names
    assert not seen.names & {"_local_scalar_dense", "item", "nonzero", "unique", "_unique2", "equal", "is_nonzero"}


@pytest.mark.parametrize("inner, outer", PAIRS)
def test_two_of_them_keep_what_each_keeps(inner, outer, model, x):
    if (inner, outer) in REFUSED:
        with pytest.raises(
            ValueError, match="unconditional|needs a model that is conditioned|is cached already|divided|no words"
        ):
            made(outer, made(inner, model))
        return
    stacked = made(outer, made(inner, model))
    changes = {*WRAPPERS[inner].facts.get("changes", ()), *WRAPPERS[outer].facts.get("changes", ())}
    check_facts(stacked, model, changes)
    with torch.no_grad():
        answer = stacked(x, torch.tensor(0.4), **asked(stacked, x))
        assert type(answer) is SpreadPrediction and bool(torch.isfinite(answer.value).all())
        neutral = made(outer, made(inner, model, neutral=True), neutral=True)
        base = model(x, torch.tensor(0.4), **asked(model, x))
        assert torch.equal(neutral(x, torch.tensor(0.4), **asked(neutral, x)).value, base.value)


def test_every_wrapper_comes_inside_and_outside_of_others():
    kept = [row.values for row in PAIRS if not row.marks and row.values not in REFUSED]
    for place in (0, 1):
        count = Counter(row[place] for row in kept)
        assert set(count) == set(WRAPPERS) and min(count.values()) >= 3


def test_a_prediction_of_some_rows_and_its_replacement():
    x, t = torch.randn(4, 3), torch.rand(4)
    answer = SpreadPrediction(2 * x, "eps", x, t, VP(), x.sigmoid())
    some = answer.part(torch.tensor([2, 0]))
    assert torch.equal(some.fraction, x[[2, 0]].sigmoid()) and torch.equal(some.t, t[[2, 0]])
    other = some.replaced(torch.zeros(2, 3))
    assert type(other) is SpreadPrediction and other.fraction is some.fraction and other.kind == "eps"
    whole = Prediction(2 * x, "eps", x, t[0], VP()).part(slice(1, 3))
    assert whole.t is t[0] or whole.t.ndim == 0 and whole.value.shape == (2, 3)


def test_facts_are_what_was_set_wherever_it_was_set():
    class Declared(Denoiser):
        process, shape, data = VP(), (3,), "shapes"

    one = Declared()
    assert one.facts == Facts(VP(), (3,), data="shapes") == replace(one.facts, solver=None)
    one.shape, one.plan = (5,), plan(VP(), "ddim", 2)
    assert one.facts.shape == (5,) and one.facts.plan is one.plan


def test_a_data_set_kept_as_a_tensor_is_no_name_of_one():
    exact = DatasetDenoiser(torch.rand(5, 3), VP())
    assert exact.data.shape == (5, 3) and exact.facts.data is None
    wrapped = find("dynamic-thresholding", "correction")(exact, 1.0, (0.0, 1.0))
    assert wrapped.facts.data is None and wrapped.model.data is exact.data


def test_what_another_velocity_says_of_an_interpolants_parts_is_not_made_up():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    covariances = root @ root.mT + torch.eye(6, dtype=torch.float64)
    process = Interpolant(latent="brownian")
    exact = MixtureInterpolant(torch.ones(2), torch.zeros(2, 2, 3), covariances, process)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    answer = exact(x, torch.tensor(0.4, dtype=torch.float64))
    assert torch.equal(answer.part(slice(1, 3)).latent, answer.latent[1:3])
    assert type(answer.replaced(2 * answer.value)) is Prediction

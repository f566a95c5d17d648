"""The contract of saving: every denoiser and wrapper with a card comes back from its folder, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.caching.clockwork import Adaptor
from fewstep.conditions.label import Label
from fewstep.conditions.negative import Negative
from fewstep.conditions.picture import Picture
from fewstep.conditions.text import Text
from fewstep.core.config import built, config
from fewstep.core.methods import find, methods
from fewstep.data.pyramid import Pyramid
from fewstep.denoisers.coordinates import DCT, CoordinateDenoiser
from fewstep.denoisers.folder import CONFIG, FORMERLY, _fingerprint, load_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.restorer import Restorer
from fewstep.guidance.known import Region
from fewstep.networks.dit import DiT
from fewstep.networks.mlp import MLP
from fewstep.networks.reference import ReferenceDiT
from fewstep.networks.unet import UNet
from fewstep.processes.ddbm import DDBM
from fewstep.processes.interpolants import Interpolant
from fewstep.processes.pfgmpp import PFGMpp
from fewstep.processes.reflected import Reflected
from fewstep.processes.restoration_chain import RestorationChain
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.training.lora import add_lora, add_timed_lora, lora_parameters

F64 = torch.float64
CARDS = {card.name: card for card in methods() if card.kind == "denoiser" or card.facts.get("wraps")}
# What is made around something that no file can hold.
UNSAVED = {
    "wrap": "a function",
    "energy": "a function",
    "classifier": "a function",
    "flowchef": "a function",
}
OWN = {"sinddm"}  # samples by a method of its own, below


def shaken(module: nn.Module) -> Any:
    """With weights that say something: layers that start at zero would make every answer the same."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def unet(**options: Any) -> UNet:
    return shaken(UNet(**({"channels": 2, "size": 4, "width": (8,), "attention": (), "classes": 3} | options)))


def base(**options: Any) -> NetworkDenoiser:
    return NetworkDenoiser(unet(), VP(), "v", (2, 4, 4), {"label": Label(3)}, **options)


def attentive() -> NetworkDenoiser:
    return NetworkDenoiser(unet(attention=(4,)), VP(), "v", (2, 4, 4), {"label": Label(3)})


def captioned() -> NetworkDenoiser:
    network = unet(attention=(4,), classes=None, vocabulary=3, captions=2)
    return NetworkDenoiser(network, VP(), "v", (2, 4, 4), {"text": Text(("a", "red", "circle"), 2)})


def referred() -> NetworkDenoiser:
    network = shaken(ReferenceDiT(2, 4, 2, 32, 2, 3, references=2))
    return NetworkDenoiser(network, VP(), "v", (2, 4, 4), {"label": Label(3), "y": Picture((2, 2, 4, 4))})


def transformer() -> NetworkDenoiser:
    network = shaken(DiT(channels=2, size=4, width=16, depth=4, classes=3))
    return NetworkDenoiser(network, VP(), "v", (2, 4, 4), {"label": Label(3)})


def adaptor() -> Adaptor:
    return shaken(Adaptor(8, 8, 8))


def pairs(d: int) -> torch.Tensor:
    root = torch.randn(d, d, generator=torch.Generator().manual_seed(5), dtype=F64)
    return root @ root.mT + torch.eye(d, dtype=F64)


DATA = torch.rand(7, 3, generator=torch.Generator().manual_seed(6))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
PICTURE = torch.linspace(-1, 1, 32).reshape(2, 4, 4)
EXAMPLES: dict[str, Callable[[Any], Any]] = {
    "network": lambda make: make(
        unet(), VP(beta_max=15.0), "x0", (2, 4, 4), {"label": Label(3)}, "edm", 0.37, (0.0, 2.0), "digits"
    ),
    "learned-variance": lambda make: make(unet(out=4), VP(), "v", (2, 4, 4), {"label": Label(3)}),
    "bridge-network": lambda make: make(
        shaken(MLP((3,), picture=3)), DDBM(), "x0", (3,), precondition="bridge", picture_std=0.7, correlation=0.3
    ),
    "coordinates": lambda make: make(unet(), VP(), DCT((2, 4, 4)), "v", (2, 4, 4), {"label": Label(3)}),
    "latent": lambda make: make(
        CARDS["gaussian-mixture"].load()(torch.ones(2), DATA[:2], 0.3, VP()),
        find("principal-components", "autoencoder")(torch.rand(1, 2, 3), torch.eye(6)[: DATA.shape[1]], 0.8),
        (-1, 1),
    ),
    "joint": lambda make: make(
        CARDS["gaussian-mixture"].load()(torch.ones(2), DATA[:2], 0.3, VP()),
        CARDS["gaussian-mixture"].load()(torch.ones(1), DATA[:1], 0.1, VP()),
    ),
    "slices": lambda make: make(CARDS["gaussian-mixture"].load()(torch.ones(2), torch.rand(2, 1, 2, 2), 0.3, VP()), 3),
    "spherical": lambda make: make(
        CARDS["gaussian-mixture"].load()(torch.ones(2), torch.rand(2, 1, 4, 4), 0.3, VP()), (4, 8), 12, 100
    ),
    "adapt": lambda make: make(base(), fs.operators.Inpaint(torch.eye(4)), rank=2),
    "posterior": lambda make: make(
        CARDS["gaussian-mixture"].load()(torch.ones(2), DATA[:2], 0.3, VP()),
        fs.operators.Matrix(torch.ones(1, 3)) @ fs.operators.Inpaint(torch.tensor([1.0, 0.0, 1.0])),
        0.1,
        "mmps",
        {"iterations": 2},
    ),
    "interpolant-network": lambda make: make(shaken(MLP((3,), out=2)), Interpolant(latent="brownian"), "both", (3,)),
    "reflected-network": lambda make: make(shaken(MLP((3,))), Reflected(), shape=(3,)),
    "dataset": lambda make: make(DATA, VP(), LABELS, (0.0, 1.0)),
    "pfgmpp-dataset": lambda make: make(DATA, PFGMpp(), (0.0, 1.0)),
    "reflected-dataset": lambda make: make(DATA, Reflected()),
    "reflected-density": lambda make: make(torch.tensor([[0.3, 0.1], [-0.2, 0.2]]), Reflected()),
    "gaussian-mixture": lambda make: make(
        torch.tensor([1.0, 2.0]), DATA[:2], pairs(3)[None].repeat(2, 1, 1), VP(), "eps"
    ),
    "gaussian-map": lambda make: make(DATA[0], pairs(3), VP(), "map"),
    "exact-map": lambda make: make(CARDS["gaussian-mixture"].load()(torch.ones(2), DATA[:2], 0.3, VP()), 4, "map"),
    "noise-free": lambda make: make(
        CARDS["gaussian-mixture"].load()(torch.ones(2), DATA[:2], 0.3, VP()), [0.1, 0.4, 0.8], "v"
    ),
    "gaussian-bridge": lambda make: make(DATA[:2], pairs(6), DDBM()),
    "mixture-interpolant": lambda make: make(
        torch.tensor([1.0, 2.0]), DATA[:4].reshape(2, 2, 3), pairs(6)[None].repeat(2, 1, 1), Interpolant()
    ),
    "experts": lambda make: make([base(), base(data_std=0.5)], [0.4]),
    "cluster-experts": lambda make: make(
        [base(), base(data_std=0.6)], {"network": unet(out=2), "clusters": 2, "data_std": 0.7}, 1, "digits", 0.7
    ),
    "boundary": lambda make: make(base()),
    "masked": lambda make: make(base(), {0.4: ["mid.res0"], 0.2: ["mid.res0", "mid.res1"]}),
    "fixed": lambda make: make(base(), label=2),
    "taylorseer": lambda make: make(attentive(), 2, 2, 0.1, 0.9),
    "inherit": lambda make: make(attentive(), 3, "unit", ["mid.attn", "mid.res1"], [(0.0, 2), (0.5, 3)], 2, 0.1, 0.9),
    "pab": lambda make: make(attentive(), 2, 4, 2, 0.0),
    "magcache": lambda make: make(transformer(), [1.0, 1.1], fs.plan(VP(), "ddim", 2).moments, 0.5, 2, 0.5),
    "teacache": lambda make: make(transformer(), 0.5, [0.3, 1.5, -0.01], 4),
    "first-block": lambda make: make(transformer(), 2, 1, 0.5, 1, 3),
    "dbcache": lambda make: make(transformer(), threshold=0.5, warmup=1),
    "faster-cache": lambda make: make(CARDS["cfg"].load()(attentive(), 2.0, {"label": 1}), 2, 3, 0.1, 0.0),
    "budget": lambda make: make(
        base(),
        ["whole", "output"],
        fs.plan(VP(), "ddim", 2).moments,
        [1, 1],
        "ddim",
        bound={"value": 0.1, "share": 0.9, "sure": 0.95, "noises": 100},
        figures={"error": 0.05},
    ),
    "encoder-propagation": lambda make: make(base(), [0, 3], order=2, inject=0.1),
    "block-caching": lambda make: make(
        base(),
        {"mid.res0": [0.0, 0.1], "mid.res1": [0.0, 0.3]},
        fs.plan(VP(), "ddim", 2).moments,
        "ddim",
        0.2,
        2,
        {"mid.res0": torch.linspace(-1, 1, 32).reshape(2, 2, 8)},
    ),
    "deepcache": lambda make: make(NetworkDenoiser(unet(width=(8, 8)), VP(), "v", (2, 4, 4), {"label": Label(3)}), 2),
    "clockwork": lambda make: make(
        NetworkDenoiser(unet(width=(8, 8)), VP(), "v", (2, 4, 4), {"label": Label(3)}), 2, adaptor=adaptor()
    ),
    "token-merging": lambda make: make(attentive(), 0.25, ["mid.attn"], (2, 4), 3),
    "reference": lambda make: make(referred()),
    "distrifusion": lambda make: make(transformer(), 2, None),
    "pcpp": lambda make: make(transformer(), 2, 1, 0),
    "cfg": lambda make: make(base(), 2.5, {"label": 1}),
    "adaptive": lambda make: make(base(), 2.5, 0.1, "cosine"),
    "apg": lambda make: make(base(), 2.5, 0.2, 0.3, -0.5, {"label": 1}, interval=(0.1, 4.0)),
    "fdg": lambda make: make(base(), 2.5, (0.5, 1.0)),
    "tcfg": lambda make: make(base(), 2.5, clamp=(-1.0, 1.0)),
    "zero-star": lambda make: make(base(), 2.5, rescale=0.5),
    "compose": lambda make: make(base(), [base(data_std=0.7), {"label": 2}], [1.0, 0.5, -0.25], [0.5, 0.25, 0.25]),
    "factorized": lambda make: make(base(), [("low-1", {"label": 1}), ("high-1", {})], (1, PICTURE)),
    "diffusehigh": lambda make: make(base(), PICTURE, 2),
    "by-condition": lambda make: make([base(), base(data_std=0.7)], [[0, 2], [1]]),
    "autoguidance": lambda make: make(base(), base(data_std=0.7), 2.5),
    "slg": lambda make: make(base(), 1.5, ["mid.res0"]),
    "pag": lambda make: make(attentive(), 1.5, ["mid.attn"]),
    "seg": lambda make: make(attentive(), 1.5),
    "sag": lambda make: make(attentive(), 1.5, 0.9),
    "blur": lambda make: make(base(), 1.5),
    "nasa": lambda make: make(captioned(), ["red", "a circle", "red"], 0.5),
    "sun-adapter": lambda make: shaken(make(captioned(), 1.0, 4.0)),
    "control-adapter": lambda make: shaken(make(base())),
    "power": lambda make: make(base(), 1.5),
    "nag": lambda make: make(base(noise_dropout=0.2), 0.5),
    "lacon": lambda make: make(base(), unet(channels=8, classes=None, out=1), PICTURE[:1], ["mid.res1"], 0.5),
    "known": lambda make: make(base(), PICTURE, torch.tensor([1.0, 0.0, 0.5, 0.0]).expand(4, 4)),
    "dynamic-thresholding": lambda make: make(base(), 0.9, (-0.5, 0.5)),
}


def numbers(kind: Any, n: int) -> torch.Tensor:
    """Labels, numbers from the least on, or captions of a word each."""
    found, kind = torch.arange(n) % 3, kind.of if isinstance(kind, Negative) else kind
    if isinstance(kind, fs.Number) and kind.low is not None:
        return found + kind.low
    return torch.nn.functional.pad(found[:, None], (0, kind.length - 1)) if isinstance(kind, Text) else found


def answers(model: Any, n: int = 3) -> list[torch.Tensor]:
    """The values at a few times, with what stands beside them, and samples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *model.shape, generator=generator)
    given = {
        name: torch.randn(n, *kind.shape, generator=generator) if isinstance(kind, Picture) else numbers(kind, n)
        for name, kind in model.conditions.items()
        if not isinstance(kind, Region)  # what is known by itself
    }
    condition = model.check_condition(given, n, x.device)
    found = []
    with torch.no_grad():
        for t in (0.2, 0.4, 0.9):
            answer = model(x, torch.tensor(t), **condition)
            rows = {name: v for name, v in answer._rows().items() if name not in ("x", "t")}
            found += list(rows.values())
        found.append(fs.sample(model, n, steps=2, solver="ddim", seed=1, **given))
    return found


def same(model: Any, again: Any) -> bool:
    first, second = answers(model), answers(again)
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_denoiser_has_an_example_or_a_reason():
    assert set(EXAMPLES) | set(UNSAVED) | OWN == set(CARDS), "give each new denoiser or wrapper a row in EXAMPLES"


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_comes_back_bit_for_bit(name, tmp_path):
    model = EXAMPLES[name](CARDS[name].load()).eval()
    again = fs.load(fs.save(model, tmp_path / "model"))
    assert type(again) is type(model) and not again.training and same(model, again)
    theirs, ours = again.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[k], ours[k]) and theirs[k].dtype == ours[k].dtype for k in ours)
    for fact in ("process", "shape", "conditions", "value_range", "data", "data_std", "solver", "student"):
        assert getattr(again.facts, fact) == getattr(model.facts, fact), fact
    assert config(again) == config(model) == json.loads(json.dumps(config(model)))
    assert (tmp_path / "model" / "README.md").is_file()


def test_stacks_are_one_tree(tmp_path):
    routed = CARDS["experts"].load()([fs.guide(base(), "cfg", scale=1.5) for _ in range(2)], [0.5])
    known = fs.guide(routed, "known", picture=PICTURE, mask=torch.ones(4, 4) * 0.5)
    model = find("fixed", "denoiser")(find("dynamic-thresholding", "correction")(known), label=1).eval()
    plan = fs.plan(model.process, "dpmpp-2m", 3)
    again = fs.load(fs.save(model, tmp_path / "model", plan))
    assert same(model, again) and again.plan == plan
    tree = json.loads((tmp_path / "model" / CONFIG).read_text())["model"]
    assert tree["model"]["model"]["model"]["denoisers"][1]["name"] == "cfg"


def test_a_shared_network_is_written_twice(tmp_path):
    one = base()
    model = CARDS["experts"].load()([fs.guide(one, "cfg", scale=2.0) for _ in range(2)], [0.5]).eval()
    assert same(model, fs.load(fs.save(model, tmp_path / "model")))


def test_what_cannot_be_saved_says_so_and_leaves_nothing(tmp_path):
    class Mine(fs.Denoiser):
        process, shape = VP(), (3,)

    function = fs.wrap(lambda x, t: x, VP(), shape=(2, 4, 4), conditions={"label": Label(3)})
    for model in (Mine(), function, fs.guide(function, "cfg", scale=2.0)):
        with pytest.raises(ValueError, match="cannot be saved"):
            fs.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_network_is_saved_as_itself(tmp_path):
    plain = base().eval()
    compiled = base().eval()
    compiled.network = torch.compile(plain.network, backend="eager")
    for number, model in enumerate(
        (compiled, fs.guide(compiled, "cfg", scale=2.0), torch.compile(plain, backend="eager"))
    ):
        again = fs.load(fs.save(model, tmp_path / str(number)))
        inner = again.model if number == 1 else again
        assert inner.network.state_dict().keys() == plain.network.state_dict().keys() and same(inner, plain)


def test_adapters_are_merged(tmp_path):
    pytest.importorskip("peft")
    model = add_lora(base(), rank=2)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(0.1)
    again = fs.load(fs.save(fs.guide(model.eval(), "cfg", scale=2.0), tmp_path / "model"))
    for a, b in zip(answers(again.model), answers(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="adapters that depend on the time .* cannot be merged"):
        fs.save(add_timed_lora(base(), [0.2, 0.8], rank=2), tmp_path / "timed")


def test_folders_of_the_former_format_have_the_same_bits(tmp_path):
    """Written as they were: the network's weights alone, under their own names."""
    from safetensors.torch import save

    torch.manual_seed(0)
    model = CoordinateDenoiser(
        unet(), EDM(), DCT((2, 4, 4)), "x0", (2, 4, 4), {"label": Label(3)}, precondition="edm", data="digits"
    ).eval()
    weights = save({name: tensor.half() for name, tensor in model.network.state_dict().items()})
    about = {
        "format": FORMERLY,
        "network": model.network.config(),
        "process": model.process.config(),
        "predicts": "x0",
        "precondition": "edm",
        "data_std": 0.5,
        "shape": [2, 4, 4],
        "value_range": [-1.0, 1.0],
        "data": "digits",
        "conditions": {"label": {"kind": "label", "classes": 3}},
        "dtype": "float32",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "denoiser": "coordinates",
        "further": {"coordinates": {"coordinates": "dct", "shape": [2, 4, 4]}},
    }
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / CONFIG).write_text(json.dumps(about | {"config_sha256": _fingerprint(about)}))
    again = load_model(tmp_path)
    for tensor in model.network.state_dict().values():
        tensor.copy_(tensor.half())
    assert type(again) is CoordinateDenoiser and again.dtype == torch.float32 and same(model, again)
    assert again.facts.data == "digits" and again.value_range == (-1.0, 1.0)


def test_a_tree_without_tensors_is_the_thing_as_it_begins():
    for thing in (VP(beta_max=15.0), Label(3), DCT((2, 4, 4)), unet()):
        tree = config(thing)
        assert {"kind", "name"} <= set(tree) and config(built(json.loads(json.dumps(tree)))) == tree


def test_a_model_of_one_picture_keeps_its_pyramid(tmp_path):
    picture = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(1))
    model = shaken(CARDS["sinddm"].load()(Pyramid(picture, coarsest=8, crop=12), width=8, depth=2)).eval()
    again = fs.load(fs.save(model, tmp_path / "model"))
    assert type(again) is type(model) and again.pyramid.starts == model.pyramid.starts
    assert torch.equal(again.sample(2, (16, 20), steps=2), model.sample(2, (16, 20), steps=2))
    drawn, expected = (m.pyramid(2, torch.Generator().manual_seed(4)) for m in (again, model))
    assert torch.equal(drawn[0], expected[0]) and torch.equal(drawn[1]["y"], expected[1]["y"])


def test_a_restorer_comes_back_with_the_same_samples(tmp_path):  # the method restoring-generator
    chain = RestorationChain((0.6, 0.3, 0.1), (0.1, 0.3, 0.6))
    torch.manual_seed(0)
    restorer = Restorer(MLP((2,), width=8, depth=1, picture=2), chain, (2,), (2,)).eval()
    with torch.no_grad():
        for parameter in restorer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    again = load_model(fs.save(restorer, tmp_path / "restorer"))
    assert isinstance(again, Restorer) and again.chain == chain
    assert torch.equal(again.sample(5, seed=3), restorer.sample(5, seed=3))
    with pytest.raises(ValueError, match="samples without a plan"):
        fs.save(restorer, tmp_path / "other", plan=fs.plan(VP(), "ddim", 2))

"""What recipes name: weightings, couplings, importance, shares of the data, learned variance, captions."""

from __future__ import annotations

import json

import pytest
import torch

import fewstep as fs
from fewstep.denoisers.learned_variance import LearnedVariance
from fewstep.processes.ve import EDM
from fewstep.training.checkpoint import checkpoints, load_checkpoint
from fewstep.training.couplings import optimal_transport
from fewstep.training.importance import ImportanceLevels
from fewstep.training.recipe import Recipe
from fewstep.training.state import TrainingState
from fewstep.training.trainer import _accelerator, train
from fewstep.training.weightings import min_snr

EVERYTHING = {
    "weighting": {"name": "min-snr", "gamma": 3.0},
    "coupling": {"name": "minibatch-ot"},
    "noise_levels": {"draw": "log-normal", "mean": -1.0, "std": 1.2, "importance": True},
}


def weights(out):
    return load_checkpoint(checkpoints(out)[-1])[0]


@pytest.mark.parametrize(
    "section, values",
    [
        ("weighting", {"name": "debiased"}),
        pytest.param("coupling", {"name": "immiscible"}, marks=pytest.mark.slow),
        pytest.param(
            "noise_levels",
            {"draw": "log-normal", "mean": -1.0, "std": 1.2, "importance": True},
            marks=pytest.mark.slow,
        ),
        ("train", {"multiscale": 2}),
        pytest.param("data", {"share": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_each_changes_what_is_learned(make_recipe, tmp_path, section, values):
    plain, changed = make_recipe(steps=12), make_recipe(steps=12).to_dict()
    changed[section] = (changed[section] or {}) | values
    train(plain, tmp_path / "plain", device="cpu", progress=False)
    train(Recipe.from_dict(changed), tmp_path / "changed", device="cpu", progress=False)
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "changed")
    differs = not all(torch.equal(a[name], b[name]) for name in a if name.startswith("network."))
    # Twelve steps are fewer than importance needs to have seen every bin.
    assert differs or values.get("importance")


def test_everything_resumes_in_the_same_bits(make_recipe, tmp_path):
    recipe = make_recipe(EVERYTHING, steps=20, batch=18)
    train(recipe, tmp_path / "whole", device="cpu", progress=False)
    train(recipe, tmp_path / "halves", device="cpu", progress=False, steps=9)
    train(recipe, tmp_path / "halves", device="cpu", progress=False, resume=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert int(a["levels.seen"].sum()) == 20 * 18


def test_what_they_name_is_what_they_get(make_recipe):
    recipe = make_recipe(EVERYTHING)
    t = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    assert torch.equal(recipe.make_weighting()(EDM(), t), min_snr(EDM(), t, gamma=3.0))
    x0, eps = torch.randn(2, 6, 1, 4, 4)
    generator = torch.Generator()
    assert torch.equal(recipe.make_coupling()(x0, eps, generator), optimal_transport(x0, eps, generator))
    assert isinstance(recipe.make_levels(), ImportanceLevels)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_importance_draws_where_the_losses_are_and_weighs_them_down(make_recipe):
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(make_recipe(EVERYTHING), accelerator)
        levels = state.levels
        t = levels.base.quantile((torch.arange(640, dtype=torch.float64) + 0.5) / 640)
        levels.update(t, torch.where(t > t.median(), 9.0, 1.0))
        before = levels.seen.clone()
        state.advance()
    assert (levels.seen - before).sum() == 6
    assert levels.weight(t[:1]) > 4 * levels.weight(t[-1:])


def test_a_learned_variance_is_saved_with_the_model(make_recipe, tmp_path):
    recipe = make_recipe({"denoiser": {"precondition": "edm", "learned_variance": True}}, steps=2)
    out = train(recipe, tmp_path / "run", device="cpu", progress=False).out
    model = fs.load(out / "model")
    assert isinstance(model, LearnedVariance) and model.network.out_channels == 2
    assert fs.sample(model, 2, steps=3, solver="ddpm-learned", label=1).shape == (2, 1, 4, 4)


@pytest.mark.slow
def test_captions_train_and_sample(tmp_path):
    values = {
        "data": {"source": "shapes", "captions": True},
        "network": {"name": "unet", "width": [8, 8], "patch": 4, "attention": [4], "embedding": 16},
        "process": {"name": "edm"},
        "denoiser": {"precondition": "edm"},
        "train": {"batch": 6, "steps": 2, "lr": 1e-3, "condition_dropout": 0.5},
    }
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(Recipe.from_dict(values | {"train": values["train"] | {"batch": 64}}), accelerator)
        seen = []
        state.objective.register_forward_pre_hook(lambda module, args: seen.append(args[3]["text"]))
        state.advance()
    empty = (seen[0] == 0).all(1)
    assert 16 < int(empty.sum()) < 48 and seen[0].shape == (64, 10)
    train(Recipe.from_dict(values), tmp_path / "run", device="cpu", progress=False)
    model = fs.load(tmp_path / "run" / "model")
    assert fs.sample(model, 2, steps=2, text="a red circle").shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="unknown word 'redd'"):
        fs.sample(model, 2, steps=2, text="a redd circle")


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"weighting": {"name": "min-srn"}}, "unknown weighting 'min-srn': did you mean 'min-snr'"),
        ({"weighting": {"name": "min-snr", "gama": 3}}, "unknown option of the weighting 'min-snr' 'gama'"),
        ({"weighting": {"gamma": 3}}, r"section \[weighting\] needs a name"),
        ({"coupling": {"name": "imiscible"}}, "unknown coupling 'imiscible': did you mean 'immiscible'"),
        ({"coupling": {"name": "minibatch-ot", "k": 3}}, "the coupling 'minibatch-ot' has no options, got 'k'"),
        ({"terms": {"name": "hybrid-vlb"}}, "unknown section 'terms': did you mean 'term'"),
        ({"term": {"name": "hybrid-vbl"}}, "unknown term 'hybrid-vbl': did you mean 'hybrid-vlb'"),
        ({"term": {"name": "hybrid-vlb", "step": 3}}, "unknown option of the term 'hybrid-vlb' 'step': did you mean"),
        ({"term": [{"name": "constraint"}]}, "the term 'constraint' needs residual"),
        ({"term": {"name": "repa", "block": "mid.res0"}}, "the term 'repa' needs teacher"),
        ({"term": {"name": "repa", "blok": "mid.res0"}}, "unknown option of the term 'repa' 'blok'"),
        ({"backward": {"name": "pcgrad"}}, "'pcgrad' needs cuts"),
        ({"clusters": {"name": "interval-clusters", "k": 2}}, r"\[clusters\] is for a section \[backward\]"),
        ({"distance": {"name": "multiscal"}}, "unknown distance 'multiscal': did you mean 'multiscale'"),
        ({"denoiser": {"predict": "x0"}}, r"unknown key in section \[denoiser\] 'predict': did you mean 'predicts'"),
        ({"denoiser": {"name": "brige-network"}}, "unknown denoiser 'brige-network': did you mean 'bridge-network'"),
        ({"denoiser": {"name": "gaussian-mixture"}}, "'gaussian-mixture' is made of no network"),
        ({"denoiser": {"name": "coordinates"}}, r"section \[coordinates\] goes with \[denoiser\]"),
        ({"denoiser": {"name": "interpolant-network", "precondition": "edm"}}, "takes no precondition, got 'edm'"),
        (
            {"levels": {"name": "importance"}, "noise_levels": {"importance": True}},
            r"section \[levels\] and noise_levels.importance say the same",
        ),
        (
            {"levels": {"name": "importance"}, "backward": {"name": "pcgrad", "cuts": [0.5]}},
            "weigh the gradients themselves",
        ),
    ],
)
def test_faulty_sections(make_recipe, sections, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(sections)


def no_ink(x0, condition):
    return x0.flatten(1).mean(1) + 1


def test_several_terms_with_factors_and_options_that_are_functions(make_recipe):
    sections = {
        "term": [{"name": "constraint", "residual": no_ink, "factor": 0.5}, {"name": "fokker-planck", "factor": 0.0}],
        "objective": {"name": "ambient"},
        "data": make_recipe().to_dict()["data"] | {"noise": 0.4, "clean": 0.5},
    }
    recipe = make_recipe(sections, condition_dropout=0.0)
    assert json.loads(json.dumps(recipe.to_dict()))["term"][0]["residual"].endswith("test_recipe_methods.no_ink")
    with pytest.raises(ValueError, match="a recipe has from Python alone, got '.*no_ink'"):
        with _accelerator("fp32", "cpu") as accelerator:
            TrainingState(Recipe.from_dict(recipe.to_dict()), accelerator)
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(recipe, accelerator)
        objective = state.objective.objective
        assert [factor for factor, _ in objective.terms] == [0.5]  # a factor of 0 leaves the other out
        x0, given = state._take(0, slice(0, 6))
    assert sorted(set(given["noise_level"].tolist())) == [0.0, pytest.approx(0.4)]
    clean, _ = state.data.batch(state.draws.rows(0, 6))
    apart = (x0 - clean).flatten(1).std(1)
    assert (apart[given["noise_level"] == 0] == 0).all() and (apart[given["noise_level"] > 0] > 0.2).all()
    assert torch.equal(x0, state._take(0, slice(0, 6))[0])  # a row's noise is its own


def test_a_bridge_sharpens_what_is_coarse(make_recipe, tmp_path):
    sections = {"degrade": {"operator": "downsample:2"}, "process": {"name": "ddbm"}, "noise_levels": {}}
    sections["denoiser"] = {"name": "bridge-network", "precondition": "bridge"}
    recipe = make_recipe(sections, steps=2)
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(recipe, accelerator)
        x0, given = state._take(0, slice(0, 6))
    assert torch.allclose(given["y"][:, :, 0, 0], x0[:, :, :2, :2].mean((2, 3)), atol=1e-6)
    assert 0 < state.denoiser.correlation < 1 and state.denoiser.picture_std < state.denoiser.data_std
    model = fs.load(train(recipe, tmp_path / "run", device="cpu", progress=False).out / "model")
    assert fs.sample(model, 2, steps=2, label=1, y=given["y"][:2]).shape == (2, 1, 4, 4)


def test_a_checkpoint_of_a_recipe_without_the_later_keys_goes_on(make_recipe, tmp_path):
    recipe = make_recipe(steps=4)
    train(recipe, tmp_path / "whole", device="cpu", progress=False)
    train(recipe, tmp_path / "run", device="cpu", progress=False, steps=2)
    (path,) = (tmp_path / "run").glob("checkpoints/*/state.json")
    facts = json.loads(path.read_text())
    for key in (
        "levels",
        "term",
        "objective",
        "distance",
        "backward",
        "clusters",
        "rows",
        "average",
        "coordinates",
        "degrade",
    ):
        assert facts["recipe"].pop(key) is None
    for key in ("noise", "clean"):
        assert facts["recipe"]["data"].pop(key) == 0
    for key in ("name", "options"):
        facts["recipe"]["denoiser"].pop(key)
    path.write_text(json.dumps(facts))
    train(recipe, tmp_path / "run", device="cpu", progress=False, resume=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_does_not_go_together(make_recipe):
    def state(recipe):
        with _accelerator("fp32", "cpu") as accelerator:
            TrainingState(recipe, accelerator)

    data = make_recipe().to_dict()["data"]
    with pytest.raises(ValueError, match="data.share must be above 0 and at most 1, got 0"):
        make_recipe({"data": data | {"share": 0}})
    with pytest.raises(ValueError, match="data.captions = true, yet .* comes without captions"):
        state(make_recipe({"data": data | {"captions": True}}))
    captions = {"source": "shapes", "captions": True}
    with pytest.raises(ValueError, match="a network 'dit' takes no captions"):
        state(make_recipe({"data": captions, "network": {"name": "dit", "patch": 8}}))


@pytest.fixture
def shards(tmp_path):
    """Two shards of seven pictures, with classes."""
    import io
    import tarfile

    from PIL import Image

    for shard in range(2):
        with tarfile.open(tmp_path / f"part-{shard}.tar", "w") as file:
            for number in range(7):
                buffer = io.BytesIO()
                pixels = torch.randint(0, 256, (4, 4), generator=torch.Generator().manual_seed(7 * shard + number))
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(buffer, "png")
                for suffix, content in (("png", buffer.getvalue()), ("cls", b"%d" % (number % 3))):
                    entry = tarfile.TarInfo(f"{number:03}.{suffix}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))
    return str(tmp_path / "part-{0..1}.tar")


def test_shards_train_and_resume_in_the_same_bits(make_recipe, tmp_path, shards):
    data = {"source": shards, "labels": True, "mode": "L"}
    recipe = make_recipe({"data": data}, steps=8)
    train(recipe, tmp_path / "whole", device="cpu", progress=False)
    train(recipe, tmp_path / "halves", device="cpu", progress=False, steps=5)
    train(recipe, tmp_path / "halves", device="cpu", progress=False, resume=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert fs.load(tmp_path / "whole" / "model").conditions["label"].classes == 3
    with pytest.raises(ValueError, match="a stream of shards is no place for validate_every"):
        train(make_recipe({"data": data}, validate_every=2), tmp_path / "other", device="cpu", progress=False)

"""Clusters as files for runs apart, experts that see nothing else, and a router that learns the posterior."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.open import open_data
from fewstep.denoisers.cluster_experts import ClusterExperts, Router
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.vp import VP
from fewstep.scale.decentralized import Clusters, clusters, train_cluster_experts, train_router, write_clusters

MEANS = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -3.0]])


def heaps(n=90):
    """Three heaps far apart, in turn."""
    generator = torch.Generator().manual_seed(0)
    return MEANS[torch.arange(n) % 3] + 0.3 * torch.randn(n, 2, generator=generator), torch.arange(n) % 3


def mlp(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP((2,), 32, 2, **options)


def test_clusters_are_the_heaps():
    data, heap = heaps()
    found = clusters(data, 3, seed=1)
    assert len(found) == 3 and found.shares == pytest.approx((1 / 3,) * 3)
    assert all(len(found.of[heap == k].unique()) == 1 for k in range(3)) and len(found.of.unique()) == 3
    assert torch.equal(clusters(data, 3, seed=1).of, found.of)
    shifted = clusters(data, 2, features=lambda x: (x[:, :1] > 0).float() + 1e-3 * x)  # in a space of one's own
    assert torch.equal(shifted.of == shifted.of[0], (data[:, 0] > 0) == (data[0, 0] > 0))
    for k, message in ((0, "k must be a whole number of at least 1"), (91, "90 samples make at most as many")):
        with pytest.raises(ValueError, match=message):
            clusters(data, k)


def pictures(kind):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (12, 1, 4, 4), generator=generator).to(torch.uint8)
    labels = torch.arange(12) % 3
    images = raw if kind == "bytes" else raw.float() / 255 * 2 - 0.5
    value_range = (-1.0, 1.0) if kind == "bytes" else (-0.5, 1.5)
    return Dataset(DataSpec("made", (1, 4, 4), value_range, 5, 12), images, labels)


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_files_hold_the_rows_of_their_cluster(tmp_path, kind):
    data = pictures(kind)
    found = Clusters((data.labels > 0).long(), (1 / 3, 2 / 3))
    files = write_clusters(data, found, tmp_path / "clusters")
    assert [path.name for path in files] == ["cluster-0.npz", "cluster-1.npz"]
    for k, path in enumerate(files):
        opened = open_data(path, split="all", validation=0.0)
        rows = (found.of == k).nonzero().squeeze(1)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))
        assert torch.equal(opened.images, data[rows[order]][0]) and torch.equal(opened.labels, data.labels[rows[order]])
        assert opened.spec.classes == 5 and opened.spec.value_range == data.spec.value_range
    with pytest.raises(ValueError, match="is not empty"):
        write_clusters(data, found, tmp_path / "clusters")


def test_what_no_file_can_hold(tmp_path):
    data = pictures("bytes")
    with pytest.raises(ValueError, match="clusters are of 3 rows, and made has 12"):
        write_clusters(data, Clusters(torch.zeros(3, dtype=torch.int64), (1.0,)), tmp_path / "a")
    beside = replace(data, given={"y": data.images})
    with pytest.raises(ValueError, match="for which no .npz has a place"):
        write_clusters(beside, Clusters(torch.zeros(12, dtype=torch.int64), (1.0,)), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_classes_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3), classes=np.array(2))
    with pytest.raises(ValueError, match="classes in .* must be a whole number above the largest label, 2"):
        open_data(tmp_path / "x.npz", split="all")


@pytest.mark.slow
def test_a_router_learns_the_posterior():
    """Against the exact one of a mixture, over all noise levels: far nearer than the clusters' shares are."""
    exact = GaussianMixture(torch.ones(3), MEANS / 2, torch.full((3,), 0.3), VP())
    data = exact.sample(3000, seed=1).float()
    own = [GaussianMixture(torch.ones(1), MEANS[k : k + 1] / 2, 0.3, VP()) for k in range(3)]
    posterior = ClusterExperts(own, [1 / 3] * 3)
    generator = torch.Generator().manual_seed(2)
    zero = torch.tensor(0.0, dtype=torch.float64)
    found = Clusters(
        torch.multinomial(posterior.weights(data.double(), zero), 1, generator=generator)[:, 0], (1 / 3,) * 3
    )
    router = train_router(Router(mlp(out=3), VP(), 3, 1.0), data, found, steps=600, lr=5e-3, batch=128, seed=0)
    assert not router.training and not any(p.requires_grad for p in router.parameters())
    x0, eps = exact.sample(2000, seed=5), torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(2000, generator=generator, dtype=torch.float64)
    x = VP().alpha(t)[:, None] * x0 + VP().sigma(t)[:, None] * eps
    with torch.no_grad():
        wrong = (router(x, t).softmax(1) - posterior.weights(x, t)).abs().mean()
    prior = (1 / 3 - posterior.weights(x, t)).abs().mean()
    assert wrong < 0.15 * prior


def test_conditions_of_the_router_are_hidden_now_and_then():
    data, heap = heaps()
    found = clusters(data, 3)
    kinds = {"label": Label(3)}
    seen = []

    class Watched(Router):
        def forward(self, x, t, **condition):
            seen.append(condition["label"])
            return super().forward(x, t, **condition)

    router = Watched(mlp(out=3, classes=3), VP(), 3)
    train_router(router, data, found, steps=20, batch=50, given={"label": heap}, conditions=kinds, hidden=0.25)
    labels = torch.cat(seen)
    assert 0.2 < (labels == 3).double().mean() < 0.3 and set(labels.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"the conditions are \[\], and values are given for \['label'\]"):
        train_router(router, data, found, steps=1, given={"label": heap})
    with pytest.raises(ValueError, match="clusters are of 90 rows, and the data have 7"):
        train_router(router, data[:7], found, steps=1)


def test_an_expert_is_the_one_of_a_run_that_has_its_cluster_alone():
    from fewstep.training.fit import fit, rows_of

    data, heap = heaps()
    found = clusters(data, 3)
    base = NetworkDenoiser(mlp(), VP(), "x0", (2,), precondition="edm", data_std=1.5, value_range=None)
    before = copy.deepcopy(base.state_dict())
    router = Router(mlp(1, out=3), VP(), 3, 1.5)
    options = {"batch": 16, "lr": 1e-3}
    model = train_cluster_experts(base, data, found, router, steps=[3, 4, 5], router_steps=2, seed=7, **options)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    alone = fit(copy.deepcopy(base), rows_of(data[found.of == 1]), steps=4, seed=8, **options)
    theirs = model.denoisers[1].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in alone.state_dict().items())
    assert fs.sample(model, 3, steps=2).shape == (3, 2)
    with pytest.raises(ValueError, match="3 clusters need as many numbers of steps, got 2"):
        train_cluster_experts(base, data, found, router, steps=[1, 2], router_steps=1)


RECIPE = """
[data]
source = "digits"
labels = true
[network]
name = "unet"
width = [8]
attention = []
[process]
name = "edm"
[denoiser]
predicts = "x0"
precondition = "edm"
[train]
batch = 16
steps = 3
lr = 1e-3
save_every = 3
"""


@pytest.mark.slow
def test_runs_apart_by_the_command_line(tmp_path):
    """Each cluster by `fewstep train` in a process of its own; the models are put together, saved and sampled."""
    data = open_data("digits")
    found = clusters(data.images, 2)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    folders = []
    for path in write_clusters(data, found, tmp_path / "clusters"):
        out = tmp_path / path.stem
        words = ["train", "recipe.toml", "--data", str(path), "--out", str(out), "--device", "cpu", "--json"]
        root = str(Path(fs.__file__).parents[1])
        run = subprocess.run(
            [sys.executable, "-m", "fewstep", *words], cwd=tmp_path, capture_output=True, text=True,
            env={"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": ""},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        folders.append(json.loads(run.stdout)["model"])
    network = fs.load(folders[0]).network.config() | {"out": 2}
    from fewstep.core.methods import made

    router = Router(made("network", network.pop("network"), **network)(), fs.load(folders[0]).process, 2, 0.75)
    given = {"given": {"label": data.labels}, "conditions": fs.load(folders[0]).conditions}
    train_router(router, data.images, found, steps=3, batch=16, **given)
    model = ClusterExperts([fs.load(folder) for folder in folders], router, data="digits", data_std=0.75).eval()
    again = fs.load(fs.save(model, tmp_path / "together"))
    assert torch.equal(fs.sample(again, 4, label=3, steps=2), fs.sample(model, 4, label=3, steps=2))

"""Decentralized training: the data in clusters, an expert for each that is trained alone, and a router between them.

An expert is any training run on its cluster's file: nothing passes between the runs, so they may be on machines that
never meet. What is put together at the end is one denoiser (`fewstep.denoisers.cluster_experts.ClusterExperts`).
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.conditions.picture import Picture
from fewstep.core.arguments import check_whole
from fewstep.core.condition import Condition
from fewstep.core.files import claim_folder, write
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.data.dataset import Dataset
from fewstep.data.open import open_data
from fewstep.denoisers.cluster_experts import ClusterExperts, Router
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.features import Features, find_features
from fewstep.training.fit import fit, rows_of
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.players import Player, cosine, optimise

METHODS = (
    Method(
        "decentralized",
        kind="trainer",
        paper="Decentralized Diffusion Models (McAllister et al., 2025)",
        arxiv="2501.05450",
        claim="experts of clusters, each trained alone, against one model at equal training FLOPs",
        use="train_cluster_experts",
    ),
)


@dataclass(frozen=True)
class Clusters:
    """A data set in clusters: the cluster of each row `(N,)`, and the clusters' shares of the rows."""

    of: Tensor
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.shares)


def clusters(
    images: Tensor, k: int, features: str | Features | Callable[[Tensor], Tensor] = "pixels", seed: int = 0
) -> Clusters:
    """k clusters of samples `(N, *shape)` by k-means in a feature space, the best of ten starts.

    Args:
        features: as the metrics take them: "pixels", "blocks", "digits", or a function (B, *shape) -> (B, F).

    Raises:
        ValueError: k below 1 or above the number of samples; samples that are not finite.
    """
    from sklearn.cluster import KMeans

    k = check_whole("k", k)
    if k > len(images):
        raise ValueError(f"{len(images)} samples make at most as many clusters, got k={k}")
    rows = find_features(features)(images).numpy()
    found = torch.from_numpy(KMeans(k, n_init=10, random_state=seed).fit_predict(rows).astype(np.int64))
    return Clusters(found, tuple((found.bincount(minlength=k).double() / len(found)).tolist()))


def write_clusters(source: str | Path | Dataset, found: Clusters, folder: str | Path) -> tuple[Path, ...]:
    """One `.npz` for each cluster of a data set, which `fewstep train RECIPE --data FILE` takes anywhere.

    The files hold what the data set holds: bytes or floats with their range, and labels, of as many classes as all
    the data have, so that the experts take the same conditions.

    Args:
        source: a data set, or what `open_data` takes, of which the training split is meant.
        found: the clusters of its rows. folder: absent or empty.

    Raises:
        ValueError: other rows than those that were clustered, captions (for which an `.npz` has no place).
    """
    data = source if isinstance(source, Dataset) else open_data(source)
    if len(found.of) != len(data):
        raise ValueError(f"the clusters are of {len(found.of)} rows, and {data.spec.name} has {len(data)}")
    if data.spec.text is not None or data.given:
        raise ValueError(f"{data.spec.name} has captions or pictures beside its images, for which no .npz has a place")
    place = claim_folder(folder)
    place.mkdir(parents=True, exist_ok=True)
    made = []
    for k in range(len(found)):
        rows = (found.of == k).nonzero().squeeze(1)
        images = data.raw[rows] if data.raw.dtype == torch.uint8 else data[rows][0]
        arrays: dict[str, Any] = {"images": images.movedim(1, -1).numpy()}
        if images.dtype != torch.uint8:
            arrays["value_range"] = np.array(data.spec.value_range, dtype=np.float64)
        if data.labels is not None:
            arrays |= {"labels": data.labels[rows].numpy(), "classes": np.array(data.spec.classes)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        made.append(write(place / f"cluster-{k}.npz", buffer.getvalue()))
    return tuple(made)


def train_router(
    router: Router,
    data: Tensor,
    found: Clusters,
    *,
    steps: int,
    given: Mapping[str, Tensor] | None = None,
    conditions: Mapping[str, Condition] | None = None,
    hidden: float = 0.1,
    levels: NoiseLevels | None = None,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
) -> Router:
    """Train a router in place by cross-entropy on noised data; it returns in evaluation mode.

    The minimum of the cross-entropy is the posterior of the cluster given the noisy sample, its time and its condition.

    Args:
        data: samples `(N, *shape)`, and `found` their clusters. given: conditions of each, (N, ...), by name.
        conditions: their kinds, as the experts have them; each is hidden with probability `hidden`.
        levels: the noise levels, by default uniform in t: those of the experts' training are the ones that count.

    Raises:
        ValueError: a cluster for each row that is not there, a condition without its kind.
    """
    if len(found.of) != len(data):
        raise ValueError(f"the clusters are of {len(found.of)} rows, and the data have {len(data)}")
    kinds, given = dict(conditions or {}), dict(given or {})
    if set(kinds) != set(given):
        raise ValueError(f"the conditions are {sorted(kinds)}, and values are given for {sorted(given)}")
    levels, device = levels or NoiseLevels(router.process), next(router.parameters()).device
    take = rows_of(data, cluster=found.of, **given)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        x0, named = take(count, generator)
        own = dict(named)
        cluster = own.pop("cluster")
        eps = router.process.eps(lambda: torch.randn(x0.shape, generator=generator))
        t = levels.quantile(torch.rand(count, generator=generator, dtype=torch.float64))
        away = torch.rand(count, generator=generator) < hidden
        for name, kind in kinds.items():
            if not isinstance(kind, Picture):
                empty = kind.check(name, None, 1, own[name].device)
                own[name] = torch.where(away.reshape(-1, *[1] * (own[name].ndim - 1)), empty, own[name])
        alpha, sigma = (expand(scale, x0).to(x0) for scale in (router.process.alpha(t), router.process.sigma(t)))
        moved = {name: value.to(device) for name, value in own.items()}
        return (alpha * x0 + sigma * eps).to(device), t.to(device), moved, cluster.to(device)

    def loss(drawn: tuple[Tensor, Tensor, dict[str, Tensor], Tensor]) -> Tensor:
        x, t, condition, cluster = drawn
        return F.cross_entropy(router(x, t, **condition).float(), cluster, reduction="none")

    player = Player(router, loss, lr=cosine(lr, steps), betas=(0.9, 0.999))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout layers
        optimise({"model": player}, draw, steps=steps, batch=batch, seed=torch.Generator().manual_seed(seed))
    return router.eval().requires_grad_(False)


def train_cluster_experts(
    base: NetworkDenoiser,
    data: Tensor,
    found: Clusters,
    router: Router,
    *,
    steps: int | Sequence[int],
    router_steps: int,
    given: Mapping[str, Tensor] | None = None,
    levels: NoiseLevels | None = None,
    top: int | None = None,
    seed: int = 0,
    **options: Any,
) -> ClusterExperts:
    """Experts from copies of `base`, each by `fit` on its own cluster, and a router trained beside them.

    `fit` sees the rows of one cluster at a time, as a machine would that has nothing else. For runs on machines apart,
    `write_clusters` writes what each needs, and `ClusterExperts([fs.load(folder) for folder in runs], router)` puts
    their models together.

    Args:
        steps: one number for all experts, or one for each. router_steps: of the router, at the same batch and levels.
        given: conditions of the rows, (N, ...) by name. options: of `fit`.
    """
    each = [steps] * len(found) if isinstance(steps, int) else list(steps)
    if len(each) != len(found):
        raise ValueError(f"{len(found)} clusters need as many numbers of steps, got {len(each)}")
    made = []
    for k, count in enumerate(each):
        rows = (found.of == k).nonzero().squeeze(1)
        own = rows_of(data[rows], **{name: value[rows] for name, value in (given or {}).items()})
        made.append(fit(copy.deepcopy(base), own, steps=count, levels=levels, seed=seed + k, **options))
    batch = {"batch": options["batch"]} if "batch" in options else {}
    trained = train_router(
        router, data, found, steps=router_steps, given=given, conditions=base.conditions if given else None,
        levels=levels, seed=seed, **batch,
    )  # fmt: skip
    return ClusterExperts(made, trained, top).eval()

"""Caches beside diffusers' own hooks: the same small transformers with the same weights, deviation against seconds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.table import table
from claims.pipelines import matching, tiny
from fewstep.caching.magcache import calibrate
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.hub.pipeline import PipelineDenoiser
from fewstep.sampling.build import fixed_plan
from fewstep.searching.cache import cache

STEPS, BATCHES, SIZE, ROUNDS = 50, (1, 4), 32, 3
MODELS: dict[str, dict[str, Any]] = {
    "DiTPipeline": {"num_layers": 8, "num_attention_heads": 4, "attention_head_dim": 16},
    "FluxPipeline": {"num_layers": 3, "num_single_layers": 5},
}
THRESHOLDS, MAGNITUDES, INTERVALS = (0.02, 0.05, 0.1), (0.03, 0.06, 0.12), (2, 3)

Row = dict[str, Any]


def _model(kind: str) -> PipelineDenoiser:
    """A transformer whose gates and last layers are off their zeros."""
    model = PipelineDenoiser(tiny(kind, matching("ddim", kind), **MODELS[kind]), size=SIZE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return model


def _asked(model: Denoiser, n: int) -> dict[str, Any]:
    return {"label": [k % 5 for k in range(n)]} if "label" in model.conditions else {"text": "a cat"}


def _hooked(model: PipelineDenoiser, apply: Callable[[nn.Module, Any], Any], config: Any) -> Denoiser:
    """Another instance with diffusers' hooks, which keep what they keep in it: a new one for each run."""
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    other = copy.deepcopy(model)
    apply(other.network, config)
    _set_cache_context(other.network, CacheContext("cond"))  # `cache_context`, which a DiT lacks
    return other


def _arms(model: PipelineDenoiser, made: Plan, noise: Tensor) -> list[tuple[str, str, str, Callable[[], Denoiser]]]:
    """Library, method, setting, and what makes the model of a run."""
    from diffusers import hooks
    from diffusers.hooks.mag_cache import MagCacheConfig

    found: list[tuple[str, str, str, Callable[[], Denoiser]]] = []

    def both(method: str, setting: str, ours: dict[str, Any], apply: Callable[..., Any] | None, config: Any) -> None:
        own = cache(model, method, **ours)
        found.append(("fewstep", method, setting, lambda: own))
        if apply is not None:
            found.append(("diffusers", method, setting, lambda: _hooked(model, apply, config())))

    for threshold in THRESHOLDS:
        both(
            "first-block", f"threshold {threshold:g}", {"threshold": threshold},
            hooks.apply_first_block_cache, lambda threshold=threshold: hooks.FirstBlockCacheConfig(threshold),
        )  # fmt: skip
    ratios = calibrate(model, made, noise[:1], **model.check_condition(_asked(model, 1), 1, noise.device))
    for threshold in MAGNITUDES:
        both(
            "magcache", f"threshold {threshold:g}", {**ratios, "threshold": threshold, "most": 3, "retention": 0.2},
            hooks.apply_mag_cache,
            lambda threshold=threshold: MagCacheConfig(threshold, 3, 0.2, made.nfe, ratios["ratios"]),
        )  # fmt: skip
    for interval in INTERVALS:
        for order in (2, 3):
            paths = [rf"{name.replace('.', '[.]')}" for name in cache(model, "taylorseer").recipe.parts]  # type: ignore[attr-defined]
            both(
                "taylorseer", f"interval {interval}, order {order}", {"interval": interval, "order": order},
                hooks.apply_taylorseer_cache,
                lambda interval=interval, order=order, paths=paths: hooks.TaylorSeerCacheConfig(
                    interval, 1, None, order - 1, torch.float32, cache_identifiers=paths
                ),
            )  # fmt: skip
    return found


def _run(made: Plan, make: Callable[[], Denoiser], noise: Tensor, asked: dict[str, Any]) -> tuple[Tensor, float]:
    """Samples, and the least seconds of processor time of some runs."""
    least = float("inf")
    for _ in range(ROUNDS):
        model = make()
        begin = time.process_time()
        samples = made(model, noise, **asked)
        least = min(least, time.process_time() - begin)
    return samples, least


def measure(nfes: Any = None, workers: int = 1) -> tuple[dict[str, Any], list[Row]]:
    """One row a model, batch, library, method and setting."""
    threads, rows = torch.get_num_threads(), list[Row]()
    torch.set_num_threads(1)
    try:
        for kind in MODELS:
            model = _model(kind)
            made = fixed_plan(model.process, "ddim", STEPS)
            for n in BATCHES:
                noise, asked = Noise(0).normal(0, (n, *(model.shape or ()))), _asked(model, n)
                whole, seconds = _run(made, lambda model=model: model, noise, asked)
                for library, method, setting, make in _arms(model, made, noise):
                    samples, took = _run(made, make, noise, asked)
                    off = float((samples - whole).norm() / whole.norm())
                    row = {"model": kind.removesuffix("Pipeline"), "batch": n, "library": library, "method": method}
                    rows.append(row | {"setting": setting, "deviation": off, "seconds": took / seconds})
    finally:
        torch.set_num_threads(threads)
    return {"steps": STEPS}, rows


def render(about: dict[str, Any], rows: list[Row]) -> str:
    cells = [
        [
            row["model"],
            str(row["batch"]),
            row["method"],
            row["setting"],
            row["library"],
            f"{row['deviation']:.2g}",
            f"{row['seconds']:.2f}",
        ]
        for row in rows
    ]
    columns = ["model", "batch", "method", "setting", "library", "deviation", "share of the time"]
    return (
        "## Caches\n\n"
        f"Small transformers of diffusers (eight blocks, random weights), {about['steps']} steps of ddim: the deviation"
        " of the samples from the whole run's, and the share of its processor time; one thread, least of three."
        " Weights, settings and noises are the same; diffusers' hooks decide for a batch by its mean, fewstep's for"
        " each sample.\n\n" + table(columns, cells)
    )

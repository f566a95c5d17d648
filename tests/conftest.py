"""Shared problems: a smooth mixture whose probability-flow ODE every solver can be measured on; few candidates.

`--part 2/3` runs the second third of the tests.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sampled import part, within

from fewstep.core.process import Process
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.vp import VP
from fewstep.searching import candidates

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", type=part, default=(1, 1), help="K/N: the K-th of N parts of the tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = {item for item in items if within(item.nodeid, config.getoption("part"))}
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = [item for item in items if item in mine]


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()  # thousands of items live to the end: they need not be walked again and again


def mixture(
    process: Process, shape: tuple[int, ...] = (2,), predicts: str = "x0", spread: float = 0.8
) -> GaussianMixture:
    """Five broad anisotropic components (standard deviations 0.35 to 0.6)."""
    d = int(torch.tensor(shape).prod())
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(5, d, d, generator=generator, dtype=torch.float64))
    std = 0.35 + 0.25 * torch.rand(5, d, generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(5, generator=generator, dtype=torch.float64)
    means = spread * torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    return GaussianMixture(weights, means, basis @ torch.diag_embed(std**2) @ basis.mT, process, predicts)


@pytest.fixture(scope="session")
def smooth() -> GaussianMixture:
    return mixture(VP())


@pytest.fixture(scope="session")
def make_mixture():
    return mixture


FEW = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "vab-3", "plms"]


@pytest.fixture(scope="session")
def plans_built_once() -> Callable[..., Any]:
    """The plans of hand-made candidates: every search asks for the same ones."""
    return functools.cache(candidates.make_plan)


@pytest.fixture(scope="module")
def few_candidates(plans_built_once: Callable[..., Any]) -> Iterator[None]:
    """The whole list of hand-made candidates takes its time, and what uses this does not depend on its length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "_tried", lambda: FEW)
        patch.setattr(candidates, "make_plan", plans_built_once)
        yield


class _Silent:
    def normal(self, draw, shape, device="cpu", dtype=torch.float32):
        return torch.zeros(shape, device=device, dtype=dtype)


@pytest.fixture
def silent():
    """A source of steps' noise that is zero."""
    return _Silent()

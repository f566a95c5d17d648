"""A model is told from others by its weights, every one of them, and by what it is made of."""

from __future__ import annotations

import copy

import torch

import fewstep as fs
from fewstep.core.identity import identity, weights_sum
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.thresholding import Thresholded


def law(process, **options):
    return GaussianMixture(torch.ones(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]]), 0.3, process, **options)


def test_a_sum_knows_every_weight():
    model = law(VP())
    other = copy.deepcopy(model)
    assert weights_sum(other) == weights_sum(model) and len(weights_sum(model)) == 16
    other.means[-1, -1] += 1e-6
    assert weights_sum(other) != weights_sum(model) and identity(other) != identity(model)


def test_it_is_the_same_for_the_same_model_alone():
    known = identity(law(VP()))
    assert known == identity(law(VP())) and len(known) == 16
    others = law(Flow()), law(VP(beta_max=15.0)), law(VP(), predicts="eps")
    others += Thresholded(law(VP()), 1.0, (0.0, 1.0)), Thresholded(law(VP()), 0.9, (0.0, 1.0))
    assert len({known, *map(identity, others)}) == 6


def test_one_without_a_configuration_is_told_by_what_it_says():
    one, other = (fs.wrap(lambda x, t: x, process, "x0", (2,)) for process in (VP(), Flow()))
    assert identity(one) == identity(one) != identity(other)

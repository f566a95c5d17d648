"""Sampling of denoising diffusion GANs: each step draws a latent for the network, then from the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.ddim import noisy_step

METHODS = (
    Method(
        "ddgan",
        paper="Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao et al., 2022)",
        arxiv="2112.07804",
        claim="a few large steps from the posterior given an x0 that is itself drawn",
        use="ddgan",
        facts={"stochastic": True, "latent": True},
    ),
)


def ddgan(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """`x_b ~ q(x_b | x_a, G(x_a, z, a))` with a fresh latent z at every step (Xiao et al., eq. 4).

    Without z, with a model whose x0 is the mean, this is "ddpm".
    """
    x = trace.start()
    for a, b in pairwise(times):
        x = noisy_step(trace, process, x, a, b, trace.evaluate(x, a, latent=trace.noise()), eta=1.0)
    return x

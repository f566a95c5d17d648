"""SA-Solver: a stochastic Adams predictor and corrector on x0, for a reverse SDE of any noise level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import Frame, Point, noise_std, step, step_weights

METHODS = (
    Method(
        "sa-solver",
        paper="SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023)",
        arxiv="2309.05019",
        claim="the reverse SDE at one evaluation per step, order 3 in its drift, tau times its noise",
        use="sa_solver",
        facts={"stochastic": True, "drift_order": 3},
    ),
)


def sa_solver(
    trace: Trace,
    process: Process,
    times: Sequence[float],
    tau: float = 1.0,
    predictor_order: int = 2,
    corrector_order: int = 3,
) -> Value:
    """`x_b = sigma_b/sigma_a e^(-tau^2 h) x_a + alpha_b (1 + tau^2) integral of e^(-(1 + tau^2)(lambda_b - lambda)) x0
    + sigma_b sqrt(1 - e^(-2 tau^2 h)) z` (Xue et al., proposition 4.2), x0 a polynomial in the log-SNR lambda.

    The predictor's goes through the newest `predictor_order` predictions. The network answers at the predicted state,
    and the corrector makes the step again, with the same noise, through that answer and the `corrector_order - 1`
    before it (0: no corrector). The order of the drift is the smaller of `predictor_order + 1` and `corrector_order`,
    or `predictor_order` alone. From order 4 on the start is corrected as in `adams_bashforth`, at (p - 3)(p - 2)/2
    evaluations more, its noise carried along.

    `tau` scales the noise: 0 is the ODE (a deterministic multistep method), 1 the reverse SDE.
    """
    if not tau >= 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    if predictor_order < 1 or corrector_order < 0:
        raise ValueError(
            "predictor_order must be at least 1 and corrector_order at least 0,"
            f" got {predictor_order} and {corrector_order}"
        )
    frame = Frame("x0", "log_snr", tau * tau)
    goal = min(predictor_order + 1, corrector_order) if corrector_order else predictor_order
    warm_up = min(goal, len(times) - 1) - 2 if process.alpha(times[0]) > 0 else 0
    first = x = previous = trace.start()
    points: list[Point] = []
    noises: list[Value] = []  # what noise has added to the start's states
    fresh: Value | None = None
    for k, (a, b) in enumerate(pairwise(times)):
        points.append((a, trace.evaluate(x, a)))
        if 1 <= k <= warm_up:
            before = times[k - 1]
            carried = noises[-1] * step_weights(process, frame, before, times[k], [before])[0] if noises else Value({})
            noises.append(carried if fresh is None else carried + fresh)
            if k < warm_up:
                states = [step(process, frame, first, times[0], t, points) for t in times[1 : k + 1]]
                corrected = zip(times[1 : k + 1], states, noises, strict=True)
                points[1:] = [(t, trace.evaluate(v + noise, t)) for t, v, noise in corrected]
            x = step(process, frame, first, times[0], a, points) + noises[-1]
        elif k > 0 and corrector_order and process.alpha(times[k - 1]) > 0:
            x = step(process, frame, previous, times[k - 1], a, points[-corrector_order:])
            x = x if fresh is None else x + fresh
        previous = trace.keep(x)
        x = step(process, frame, x, a, b, points[-predictor_order:])
        fresh = None
        if (std := noise_std(process, frame.eta, a, b)) > 0:
            fresh = trace.noise(a, b) * std
            x = x + fresh
    return x

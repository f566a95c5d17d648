"""Any function or module as a denoiser: `fs.wrap(f, process=VP(), predicts="eps")`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.arguments import checked
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import KINDS, Prediction, expand
from fewstep.core.process import Process

METHODS = (
    Method(
        "wrap",
        claim="any f(x, t) under any process and solver, whatever it predicts and whatever time it takes",
        use="wrap",
    ),
)

Clock = Callable[[Tensor], Tensor]
LIMIT = 20.0  # of |log-SNR| as a network's time: pure noise and clean samples have infinite ones

# What a callable may take in place of the process's time t, and in place of the state x.
TIMES = ("t", "sigma", "log_sigma", "log_snr", "c_noise")
SCALES = ("state", "alpha", "vp", "edm")


def clock(process: Process, time: str | Clock | None) -> Clock:
    """The function of t that gives a callable's time; float64 in and out."""
    if time is None or time == "t":
        return lambda t: t
    if callable(time):
        return time
    if time not in TIMES:
        raise suggest("time", time, TIMES)
    factor = {"sigma": -1.0, "log_sigma": -1.0, "log_snr": 1.0, "c_noise": -0.25}[time]

    def made(t: Tensor) -> Tensor:
        value = factor * process.log_snr(t).clamp(-LIMIT, LIMIT)
        return value.exp() if time == "sigma" else value

    return made


def input_scale(process: Process, scale: str | Clock | None, data_std: float) -> Clock:
    """The function of t by which the state is multiplied before a callable sees it; float64 in and out."""
    if scale is None or scale == "state":
        return torch.ones_like
    if callable(scale):
        return scale
    if scale not in SCALES:
        raise suggest("input scale", scale, SCALES)

    def made(t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        if scale == "alpha":
            return 1 / alpha.clamp_min(math.exp(-LIMIT))
        return (sigma**2 + (alpha * (data_std if scale == "edm" else 1.0)) ** 2).rsqrt()

    return made


class Wrapped(Denoiser):
    """The denoiser that `wrap` makes; its arguments are described there.

    `network` is the module inside, or None; `function` is None where the module itself is called.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None,
        process: Process,
        predicts: str,
        shape: tuple[int, ...] | None,
        conditions: Mapping[str, Condition],
        time: str | Clock | None,
        scale_input: str | Clock | None,
        data_std: float,
        value_range: tuple[float, float] | None,
        drop_variance: bool,
        network: nn.Module | None,
    ):
        super().__init__()
        self.function, self.network, self.process = function, network, process
        self.predicts, self.shape, self.conditions = predicts, shape, dict(conditions)
        self.value_range, self.drop_variance, self.data_std = value_range, drop_variance, data_std
        self.time, self.scale_input = time or "t", scale_input or "state"
        self.clock, self.scale = clock(process, time), input_scale(process, scale_input, data_std)

    def describe(self) -> dict[str, Any]:
        def name(value: Any) -> str:
            return value if isinstance(value, str) else getattr(value, "__qualname__", type(value).__name__)

        own = {"callable": name(self.function or self.network), "predicts": self.predicts}
        return own | {"time": name(self.time), "input": name(self.scale_input)} | super().describe()

    def answer(self, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The callable's answer `(B, *shape)` to exactly this input and time `(B,)`, in x's dtype."""
        dtype = self.dtype if self.network is not None else x.dtype
        # Times stay in float32 at least: bfloat16 has three digits, too few to distinguish two steps.
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        call: Any = self.function or self.network
        output = self._tensor(call(x.to(dtype), time.to(exact).expand(len(x)), **condition))
        if self.drop_variance:
            if output.shape[1] != 2 * x.shape[1]:
                raise ValueError(
                    f"drop_variance takes the first half of {2 * x.shape[1]} channels, the callable answered"
                    f" shape {tuple(output.shape)}"
                )
            output = output[:, : x.shape[1]]
        if output.shape != x.shape:
            extra = ""
            if output.ndim == x.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
                extra = ": if its second half is a learned variance, say drop_variance=True"
            raise ValueError(
                f"the callable answered shape {tuple(output.shape)} for an input of {tuple(x.shape)}{extra}"
            )
        return output.to(x.dtype)

    def _tensor(self, output: Any) -> Tensor:
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if isinstance(output, Tensor):
            return output
        for name in ("sample", "prediction"):
            value = getattr(output, name, None)
            if isinstance(value, Tensor):
                return value
        if isinstance(value := getattr(output, "x0", None), Tensor):
            if self.predicts != "x0":
                raise ValueError(f"the callable answers with .x0, not {self.predicts}: say predicts='x0'")
            return value
        raise ValueError(
            f"the callable must answer a tensor, a tuple that begins with one, or an object with .sample, .prediction"
            f" or .x0, got {type(output).__name__}"
        )

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        t64 = t.double()
        seen = x if self.scale_input == "state" else expand(self.scale(t64), x) * x
        value = self.answer(seen, self.clock(t64), condition)
        negative = self.predicts.startswith("-")
        return Prediction(-value if negative else value, self.predicts.lstrip("-"), x, t, self.process)


@checked
def wrap(
    function: Callable[..., Any],
    process: Process,
    predicts: str = "eps",
    shape: tuple[int, ...] | None = None,
    conditions: Mapping[str, Condition] | None = None,
    *,
    time: str | Clock | None = None,
    scale_input: str | Clock | None = None,
    data_std: float = 0.5,
    value_range: tuple[float, float] | None = (-1.0, 1.0),
    drop_variance: bool = False,
    network: nn.Module | None = None,
) -> Wrapped:
    """`function(x, time, **condition)` as a denoiser, for every solver, search and plan.

    x is `(B, *shape)` and time `(B,)`. The function returns a tensor of x's shape, a tuple that begins with one, or an
    object that holds one as `.sample`, `.prediction` or `.x0`. `fs.check_denoiser` tests whether the arguments here fit
    the function.

    Args:
        function: a function or a module. A module is put in evaluation mode, and works in its own dtype.
        process: the process it was trained under, such as `VP()`, `Discrete.linear()`, `Flow()`, `EDM()`.
        predicts: what it predicts: x0, eps, v, velocity, score or flow, with "-" in front for the negative
            ("-flow" is data minus noise).
        shape: one sample's shape; without it every call of `fs.sample` must name one.
        conditions: what it may be conditioned on, by argument name: `{"label": Label(10)}`.
        time: what it takes in place of the process's t: "t", "sigma" (sigma / alpha), "log_sigma" (its logarithm),
            "log_snr" (`log(alpha / sigma)`), "c_noise" (`log(sigma / alpha) / 4`, EDM's), or a function of t, such as
            `lambda t: 999 * t`. Log-SNRs are kept within 20 of 0.
        scale_input: what it takes in place of the state x: "state", "alpha" (`x / alpha`, the state of a
            variance-exploding process), "vp" (`x / sqrt(alpha^2 + sigma^2)`), "edm" (EDM's
            `x / sqrt(sigma^2 + alpha^2 data_std^2)`), or a function of t that gives the factor.
        value_range: the range of the data, or None.
        drop_variance: the function returns twice the channels, of which the second half is a learned variance.
        network: the module inside a function that is not itself one, so that its device and dtype are known.

    Raises:
        ValueError: something that is not callable or not a process, an unknown name, a data_std that is not positive;
            at a call, an answer of another shape.
    """
    if isinstance(function, Denoiser):
        raise ValueError("this is a denoiser already: use it as it is")
    if predicts.removeprefix("-") not in KINDS:
        raise suggest("prediction kind", predicts, KINDS)
    if not data_std > 0:
        raise ValueError(f"data_std must be positive, got {data_std}")
    own = isinstance(function, nn.Module)
    made = Wrapped(
        None if own else function,
        process,
        predicts,
        tuple(shape) if shape is not None else None,
        conditions or {},
        time,
        scale_input,
        float(data_std),
        tuple(value_range) if value_range is not None else None,  # type: ignore[arg-type]
        drop_variance,
        function if own else network,  # type: ignore[arg-type]
    )
    return made.eval()

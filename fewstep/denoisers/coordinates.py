"""A network whose process runs in other coordinates than the data: frequencies, whitened values, logarithms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.coordinates import Coordinates, coordinates_from_config
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.model import Callback
from fewstep.core.ops import one_level
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.operators.cosine import cosine_matrix
from fewstep.operators.spectrum import on_axis

METHODS = (
    Method(
        "coordinates",
        claim="one network, any coordinates: correlated, multiplicative and uneven noise under every solver",
        use="CoordinateDenoiser",
    ),
    Method(
        "dct",
        kind="coordinates",
        paper="Discrete Cosine Transform (Ahmed, Natarajan and Rao, 1974)",
        claim="orthonormal cosine transform: white noise stays white, and the network still works on pixels",
        use="DCT",
    ),
)


class DCT(Coordinates):
    """The orthonormal cosine transform (DCT-II) of every axis but the channels, as products with a matrix each.

    The network works on pixels: it receives the inverse transform, and its answer is transformed. shape: of a
    sample, `(C, *size)`.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"the cosine transform takes samples of shape (C, *size), got {self.shape}")
        for axis, n in enumerate(self.shape[1:]):
            self.register_buffer(f"matrix_{axis}", cosine_matrix(n).clone(), persistent=False)

    def config(self) -> dict[str, Any]:
        return {"coordinates": "dct", "shape": list(self.shape)}

    def _product(self, x: Tensor, inverse: bool) -> Tensor:
        for axis in range(len(self.shape) - 1):
            matrix = getattr(self, f"matrix_{axis}").to(x.dtype)
            x = on_axis(x, matrix.T if inverse else matrix, axis + 1)
        return x

    def encode(self, data: Tensor, condition: Mapping[str, Any]) -> Tensor:
        return self._product(data, inverse=False)

    def decode(self, x: Tensor, condition: Mapping[str, Any]) -> Tensor:
        return self._product(x, inverse=True)

    def answer(self, output: Tensor, condition: Mapping[str, Any]) -> Tensor:
        return self._product(output, inverse=False)


class CoordinateDenoiser(NetworkDenoiser):
    """A network denoiser of states `x = coordinates.encode(data)`: the process, predictions and losses are in x.

    `coordinates` may be their configuration. Other arguments are those of `NetworkDenoiser`. Training takes states,
    `model.encode(data)`.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        coordinates: Coordinates | Mapping[str, Any],
        *args: Any,
        **options: Any,
    ):
        super().__init__(network, process, *args, **options)
        made = coordinates if isinstance(coordinates, Coordinates) else coordinates_from_config(coordinates)
        self.coordinates = made

    def config(self) -> dict[str, Any]:
        return super().config() | {"coordinates": self.coordinates}

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.coordinates.encode(data, condition)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.coordinates.decode(x, condition)

    def _call(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> Tensor:
        seen, given = self.coordinates.seen(x, noise, condition)
        return self.coordinates.answer(super()._call(seen, noise, given).to(x.dtype), condition)

    def loss_pair(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        return super().loss_pair(x0, self.coordinates.eps(x0, eps, t, condition), t, **condition)


def sample_as_data(
    model: Denoiser,
    plan: Plan,
    state: Tensor,
    *,
    seed: int = 0,
    first: int = 0,
    callback: Callback | None = None,
    **condition: Any,
) -> Tensor:
    """Data `(B, *shape)` from a noisy state at the plan's first time, such as a picture with known noise.

    The run starts at that state, not at noise: at `plan.times[0]` the process has the state's noise level. It computes
    in the state's dtype; seed and first belong to the noise of stochastic steps.
    """
    alpha = one_level(plan.start[0])
    if alpha == 0:
        raise ValueError("the plan starts at pure noise, where nothing of the state is left: start it later")
    named: dict[str, Any] = dict(model.check_condition(condition, len(state), state.device))
    begun = plan.run(
        model,
        torch.zeros_like(state),
        init=state / alpha,
        seed=seed,
        first=first,
        dtype=state.dtype,
        callback=callback,
        **named,
    )
    return model.decode(begun.samples, **named)

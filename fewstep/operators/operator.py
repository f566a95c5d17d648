"""What every operator is: a map from a sample to a measurement, and, where it is linear, its adjoint and inverse."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fewstep.core.methods import find, methods
from fewstep.core.noise import Noise
from fewstep.core.spelling import spelt_value
from fewstep.operators.krylov import conjugate_gradients
from fewstep.operators.noise import NoiseModel, as_noise
from fewstep.operators.spectrum import Axes, Dense, Spectrum

COLUMNS = 4096  # of the largest matrix that is decomposed where nothing better is known
VECTORS = 256  # columns of a matrix that are found at once


def size_axes(shape: Sequence[int]) -> range:
    """The axes of a sample's size, counted without the batch's: all but the channels', or a vector's one."""
    return range(min(1, len(shape) - 1), len(shape))


class Operator(nn.Module):
    """`y = A(x)`, of each sample alone: `(B, *shape)` to `(B, *measured(shape))`, in any float dtype.

    A kind of operator writes `prepare`, which learns the sample's shape and says that of its measurement, and `act`. A
    sample is `(C, *size)` or a vector `(n,)`, whose one axis is its size. An operator belongs to the shape that it
    first meets; `ValueError` for any other.
    """

    linear: ClassVar[bool] = False
    shape: tuple[int, ...] | None = None  # of a sample
    out: tuple[int, ...] = ()  # of its measurement
    at: torch.device = torch.device("cpu")  # where it lies: it goes where its samples are

    @property
    def holds(self) -> Tensor | None:
        """Which elements of a measurement hold something of the sample, `(*out)` of booleans; None: all."""
        return None

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Checks the shape of a sample, makes what depends on it, and returns that of its measurement."""
        raise NotImplementedError

    def act(self, x: Tensor) -> Tensor:
        """`A(x)` of samples whose shape is right."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The options that make it again."""
        raise NotImplementedError

    def fit(self, shape: Sequence[int]) -> Self:
        """The operator itself, bound to samples of a shape; `ValueError` where they do not fit it."""
        shape = tuple(int(n) for n in shape)
        if self.shape is None:
            self.out = self.prepare(shape)
            self.shape = shape
            self.to(self.at)  # with what was made
        elif shape != self.shape:
            raise ValueError(f"{self} measures samples of shape {self.shape}, not {shape}: make another one for those")
        return self

    def measured(self, shape: Sequence[int] | None = None) -> tuple[int, ...]:
        """The shape of a measurement, of samples of a shape (by default, of those that it is bound to)."""
        if shape is None and self.shape is None:
            raise ValueError(f"{self} has met no sample yet: say their shape")
        return self.fit(shape if shape is not None else self.shape or ()).out

    def forward(self, x: Tensor) -> Tensor:
        """`A(x)` of samples `(B, *shape)`; `ValueError` for a shape that does not fit."""
        if not x.is_floating_point() or x.ndim < 2:
            raise ValueError(f"operators take samples (B, *shape) of floats, got {tuple(x.shape)} of {x.dtype}")
        self.fit(x.shape[1:])
        self._go(x)
        return self.act(x)

    def _go(self, x: Tensor) -> None:
        if self.at != x.device:
            self.to(x.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Whatever moves a module; `at` follows."""
        moved = super()._apply(fn, recurse)
        self.at = fn(torch.empty(0, device=self.at)).device
        return moved

    def measure(self, x: Tensor, noise: float | NoiseModel = 0.0, seed: int = 0, first: int = 0) -> Tensor:
        """A measurement `(B, *measured)` of samples, `A(x)` and noise.

        Args:
            noise: its standard deviation in the data's own units, or one of `fewstep.operators`' laws of noise.
            seed, first: the noise is that of samples number `first, first + 1, ...` under the seed.
        """
        return self.received(as_noise(noise).draw(self(x), Noise(seed, first)))

    def pulled(self, x: Tensor, y: Tensor) -> Tensor:
        """`J^T y` `(B, *shape)`, J the Jacobian of A at samples x, by differentiation; differentiable in y."""
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            made = self(x)
        (back,) = torch.autograd.grad(made, x, y, create_graph=graph, materialize_grads=True)
        return back

    def jacobian(self, x: Tensor) -> Tensor:
        """The Jacobians `(B, m, d)` of A at samples x."""
        unit = torch.eye(math.prod(self.measured(x.shape[1:])), dtype=x.dtype, device=x.device)
        with torch.no_grad():
            rows = [self.pulled(x, one.reshape(1, *self.out).expand(len(x), *self.out)) for one in unit]
        return torch.stack([row.flatten(1) for row in rows], 1)

    def received(self, y: Tensor) -> Tensor:
        """A measurement with zeros where it holds nothing of the sample, such as in the hole of a picture."""
        return y if self.holds is None else torch.where(self.holds.to(y.device), y, 0.0)

    def check_measurement(self, y: Tensor, what: str = "y") -> Tensor:
        """The measurements `(B, *measured)`; one without a batch's axis counts as a batch of one. `ValueError` else."""
        if y.ndim == len(self.out):
            y = y[None]
        if tuple(y.shape[1:]) != self.out:
            raise ValueError(
                f"{what} of shape {tuple(y.shape)} is no measurement of {self}, which makes {self.out} of samples"
                f" {self.shape}"
            )
        self._go(y)
        return y

    def __str__(self) -> str:
        return spelt(self)

    def __matmul__(self, other: Operator) -> Operator:
        """`(A @ B)(x) = A(B(x))`: the right one acts first."""
        if not isinstance(other, Operator):
            return NotImplemented
        return _made("composed" if self.linear and other.linear else "chained", self, other)

    def __rmul__(self, factor: float) -> Operator:
        return _made("scaled", self, factor)

    def __add__(self, other: Operator) -> Operator:
        return _made("added", self, other) if isinstance(other, Operator) else NotImplemented


class LinearOperator(Operator):
    """An operator `A x`, with its adjoint, and what follows from both.

    A kind writes `adjoint` too where automatic transposition is not good enough, and `find_spectrum` or `along`, where
    its singular values are known.
    """

    linear = True

    def __init__(self) -> None:
        super().__init__()
        self._found: Spectrum | None = None
        self._looked = False

    def transpose(self, y: Tensor) -> Tensor:
        """`A^T y` `(B, *shape)` of measurements whose shape is right: by differentiation."""
        assert self.shape is not None
        return self.pulled(torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device), y)

    def along(self) -> tuple[Tensor | None, ...] | None:
        """Matrices in float64, one for each axis of a sample (None: the identity), whose Kronecker product it is."""
        return None

    def find_spectrum(self) -> Spectrum | None:
        """Its singular values and vectors: from `along`, or of a matrix of at most `COLUMNS` columns."""
        assert self.shape is not None
        if (axes := self.along()) is not None:
            return Axes(axes, self.shape, self.out)
        return Dense(self.matrix(), self.shape, self.out) if self.matrix_size() <= COLUMNS else None

    def adjoint(self, y: Tensor) -> Tensor:
        """`A^T y` `(B, *shape)` of measurements `(B, *measured)`."""
        self._bound()
        return self.transpose(self.check_measurement(y))

    def spectrum(self, shape: Sequence[int] | None = None) -> Spectrum | None:
        """Its singular values and vectors for samples of a shape; None where they are not known."""
        self._bound(shape)
        if not self._looked:
            found = self.find_spectrum()
            self._found, self._looked = None if found is None else found.to(self.at), True
        return self._found

    def matrix_size(self) -> int:
        """The larger side of its matrix."""
        return max(math.prod(self.shape or ()), math.prod(self.out))

    def matrix(self) -> Tensor:
        """A as a matrix `(m, d)` in float64."""
        self._bound()
        d = math.prod(self.shape or ())
        columns = [
            self.act(part.reshape(-1, *(self.shape or ()))).flatten(1)
            for part in torch.eye(d, dtype=torch.float64, device=self.at).split(VECTORS)
        ]
        return torch.cat(columns).T.detach()

    def pinv(self, y: Tensor) -> Tensor:
        """`A^+ y` `(B, *shape)`, the pseudo-inverse: of all x with the least `|y - A x|`, the shortest."""
        self._bound()
        y, spectrum = self.check_measurement(y), self.spectrum()
        if spectrum is not None:
            return spectrum.back(spectrum.of(y) * spectrum.inverse().to(y))
        # From zero on A^T A, whose Krylov space holds the shortest of the solutions.
        back = self.transpose(y)
        return conjugate_gradients(lambda x: self.transpose(self.act(x)), back, tolerance=1e-9, most=500).value

    def project(self, x: Tensor) -> Tensor:
        """`A^+ A x`: what the measurement sees of samples."""
        return self.pinv(self(x))

    def null(self, x: Tensor) -> Tensor:
        """`x - A^+ A x`: what it does not see."""
        return x - self.project(x)

    def _bound(self, shape: Sequence[int] | None = None) -> None:
        self.measured(shape)


def _made(name: str, *given: Any) -> Operator:
    """One of the operators that are made of others, which import this file."""
    return find(name, "operator")(*given)  # type: ignore[no-any-return]


def spelt(operator: Operator) -> str:
    """An operator as the command line takes it: `blur:gaussian,width=1`; an array is shown by its shape."""
    name = next(
        (card.name for card in methods("operator") if (card.module, card.use) == _home(operator)),
        type(operator).__name__,
    )
    first = next(iter(inspect.signature(type(operator)).parameters), "")  # the option that may stand without its name
    parts = [
        spelt_value(value) if option == first else f"{option}={spelt_value(value)}"
        for option, value in operator.config().items()
        if value is not None
    ]
    return name + (":" + ",".join(parts) if parts else "")


def _home(operator: Operator) -> tuple[str, str]:
    return type(operator).__module__, type(operator).__name__

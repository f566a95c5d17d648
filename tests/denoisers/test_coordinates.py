"""Networks in other coordinates than the data's: the transform, what the network sees, losses, starts.

Methods: coordinates, dct.
"""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn
from torch import nn

from fewstep.conditions.picture import Picture
from fewstep.core.coordinates import Coordinates, coordinates_from_config
from fewstep.denoisers.coordinates import DCT, CoordinateDenoiser, sample_as_data
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.function_noise import FunctionNoise
from fewstep.processes.multiplicative import Multiplicative
from fewstep.processes.spatial_noise import SpatialNoise
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


class Linear(nn.Module):
    """`(0.3 + noise) x`, and what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def forward(self, x, noise):
        self.seen = x
        return (self.scale + noise.to(x).reshape(-1, *[1] * (x.ndim - 1))) * x


class Doubled(Coordinates):
    def encode(self, data, condition):
        return data / 2

    def decode(self, x, condition):
        return 2 * x

    def answer(self, output, condition):
        return output / 2


@pytest.mark.parametrize("shape", [(2, 5), (1, 4, 6), (3, 2, 3, 4)])
def test_the_transform_is_scipys_and_orthonormal(shape):
    data = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    dct = DCT(shape)
    found = dct.encode(data, {})
    wanted = dctn(data.numpy(), type=2, norm="ortho", axes=tuple(range(2, data.ndim)))
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dct.decode(found, {}), data, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.square().sum(), data.square().sum())
    with pytest.raises(ValueError, match=r"\(C, \*size\)"):
        DCT((5,))


@pytest.mark.parametrize("options", [{}, {"precondition": "edm", "predicts": "x0"}], ids=["plain", "edm"])
def test_an_orthonormal_transform_changes_nothing_but_the_basis(options):
    """A linear network commutes with it, so runs and losses agree with those of the plain denoiser."""
    shape, network, dct = (1, 4, 6), Linear(), DCT((1, 4, 6))
    plain = NetworkDenoiser(network, VP(), shape=shape, **options)
    model = CoordinateDenoiser(network, VP(), dct, shape=shape, **options)
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    made = plan(VP(), "dpmpp-2m", 5)
    x, y = made(model, dct.encode(noise, {}), dtype=F64), made(plain, noise, dtype=F64)
    torch.testing.assert_close(model.decode(x), y, rtol=1e-5, atol=1e-6)
    x0, t = torch.randn_like(noise), torch.tensor([0.2, 0.8], dtype=F64)
    pairs = [
        model.loss_pair(dct.encode(x0, {}), dct.encode(noise, {}), t),
        plain.loss_pair(x0, noise, t),
    ]
    losses = [(output - target).square().sum() for output, target in pairs]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


def test_the_network_sees_data_and_answers_in_them():
    model = CoordinateDenoiser(Linear(), VP(), Doubled(), shape=(3,))
    x, t = torch.ones(2, 3, dtype=F64), torch.tensor(0.5, dtype=F64)
    value = model(x, t).value
    assert torch.equal(model.network.seen, 2 * x)
    torch.testing.assert_close(value, torch.full_like(x, 0.8))


def test_restoring_starts_at_the_state_itself():
    model = CoordinateDenoiser(Linear(), EDM(0.01, 1.0), Doubled(), shape=(3,))
    state = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    made = plan(model.process, "ddim", 3)
    torch.testing.assert_close(sample_as_data(model, made, state), 2 * made(model, state / made.start[1]))
    flow = CoordinateDenoiser(Linear(), Flow(), Doubled(), shape=(3,))
    with pytest.raises(ValueError, match="pure noise"):
        sample_as_data(flow, plan(Flow(), "ddim", 3), state)
    half = plan(Flow(), "ddim", timesteps=[0.4, 0.2, 0.0])
    begun = half.run(flow, state, trajectory=True).trajectory[0] / half.start[1]
    torch.testing.assert_close(begun, state)


@pytest.mark.parametrize(
    "made", [DCT((2, 5)), FunctionNoise("matern-3/2", 0.3, 1e-3), Multiplicative(), SpatialNoise()], ids=str
)
def test_coordinates_come_back_from_their_configuration(made):
    again = coordinates_from_config(made.config())
    assert type(again) is type(made) and again.config() == made.config()


def test_a_model_in_other_coordinates_is_saved_with_them(tmp_path):
    torch.manual_seed(0)
    kernel = FunctionNoise("matern-5/2", 0.4, 1e-3)
    model = CoordinateDenoiser(MLP((6,), picture=6), VP(), kernel, "v", (6,), {"y": Picture((6,))})
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    times, data = torch.rand(3, 6).sort(-1).values, torch.randn(3, 6)
    state = model.encode(data, y=times)
    assert torch.equal(again.encode(data, y=times), state)
    t = torch.tensor(0.4)
    with torch.no_grad():
        assert torch.equal(again(state, t, y=times).value, model(state, t, y=times).value)


def test_unknown_coordinates():
    with pytest.raises(ValueError, match="unknown coordinates 'spatial-nose': did you mean 'spatial-noise'"):
        coordinates_from_config({"coordinates": "spatial-nose"})
    with pytest.raises(ValueError, match="unknown coordinates 'ddim'"):
        coordinates_from_config({"coordinates": "ddim"})
    with pytest.raises(ValueError, match="coordinates 'function-noise': .*'lenght'"):
        coordinates_from_config({"coordinates": "function-noise", "lenght": 2})

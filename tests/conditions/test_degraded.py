"""What a restorer is given: measurements in a form that its network takes."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.degraded import Degraded
from fewstep.core.condition import condition_from_config

CPU = torch.device("cpu")


def pictures(n=5, shape=(1, 8, 8)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_every_sample_has_the_noise_of_its_number():
    x = pictures()
    for noise in (0.1, (0.0, 0.3), "poisson:30", "camera:0.02,0.01"):
        kind = Degraded(data=(1, 8, 8), operator="downsample:2", noise=noise)
        y = kind.measured(x, 3, 10)
        assert torch.equal(y[2:4], kind.measured(x[2:4], 3, 12))
        assert not torch.equal(y, kind.measured(x, 4, 10))
        assert torch.equal(kind.degraded(x, 3, 10), kind.measure.pinv(y))


def test_levels_of_a_range_are_drawn_evenly():
    kind = Degraded(data=(1, 8, 8), noise=(0.1, 0.3))
    x = torch.zeros(2000, 1, 8, 8)
    level = kind.measured(x, 0).flatten(1).square().mean(1).sqrt()
    assert 0.06 < float(level.min()) and float(level.max()) < 0.42
    assert float(level.mean()) == pytest.approx(0.2, abs=0.003)
    assert float((level < 0.2).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_laws_have_their_moments():
    x = torch.full((1, 1, 100, 100), 0.5)  # light of 1.5 from -1 on
    for noise, variance in (("poisson:30", 1.5 / 30), ("camera:0.2,0.01", 0.2**2 + 0.01 * 1.5), (0.3, 0.09)):
        y = Degraded(data=(1, 100, 100), noise=noise).measured(x, 0)
        assert float(y.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(y.var()) == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize(
    ("operator", "picture", "shape"),
    [
        ("blur:gaussian,width=1", "measurement", (3, 8, 8)),
        ("downsample:2", "pinv", (3, 8, 8)),
        ("sensing:16", "pinv", (3, 8, 8)),
        ("grey", "pinv", (3, 8, 8)),
        (("blur:gaussian,width=1", "downsample:4"), "pinv", (3, 8, 8)),
    ],
)
def test_the_form_follows_from_the_operator(operator, picture, shape):
    kind = Degraded(data=(3, 8, 8), operator=operator)
    assert (kind.picture, kind.shape) == (picture, shape)
    assert condition_from_config(kind.config()) == kind
    x = pictures(3, (3, 8, 8))
    y = kind.measured(x, 1)
    seen = kind.degraded(x, 1)
    assert torch.equal(kind.check("y", y, 3, CPU), seen)
    assert torch.equal(kind.check("y", kind.check("y", seen, 3, CPU), 3, CPU), seen)  # a picture stays as it is
    torch.testing.assert_close(kind.check("y", y[:1], 3, CPU), seen[:1].expand(3, *shape))


def test_upsampled_pictures_are_smooth_ones_of_the_datas_size():
    kind = Degraded(data=(1, 8, 8), operator="downsample:2", picture="upsampled")
    flat = torch.full((2, 1, 8, 8), 0.3)
    torch.testing.assert_close(kind.degraded(flat, 0), flat)
    assert Degraded(data=(1, 8, 8), operator="downsample:2", picture="measurement").shape == (1, 4, 4)


def test_what_does_not_fit_is_said():
    def refused(match, **options):
        with pytest.raises(ValueError, match=match):
            Degraded(**{"data": (1, 8, 8)} | options)

    refused("unknown operator 'blurr'", operator="blurr")
    refused(r"needs sizes that 3 divides, got samples of shape \(1, 8, 8\)", operator="downsample:3")
    refused("noise is a deviation, two ends", noise=(0.2, 0.1))
    refused("noise is a deviation, two ends", noise="poisson:x")
    refused("noise is a deviation, two ends", noise="camera:0.1")
    refused("peak of Poisson noise", noise="poisson:-3")
    refused("at least 0, got -1", noise=-1.0)
    refused("picture", operator="downsample:2", picture="pin")
    refused("have the data's shape already: picture is 'measurement'", operator="blur:gaussian,width=1", picture="pinv")
    refused("is not linear", operator="magnitude(downsample:2)", picture="pinv")
    refused("no pictures to be made larger", operator="sensing:16", picture="upsampled")
    refused(r"pictures of this measurement are \(1, 8, 8\), got \(1, 4, 4\)", operator="downsample:2", shape=(1, 4, 4))
    kind = Degraded(data=(1, 8, 8), operator="downsample:2")
    with pytest.raises(ValueError, match=r"y must be measurements \(1, 4, 4\), or pictures of them \(1, 8, 8\), got"):
        kind.check("y", torch.zeros(1, 5, 5), 1, CPU)
    with pytest.raises(ValueError, match="one measurement for all or 3 of them, got 2"):
        kind.check("y", torch.zeros(2, 1, 4, 4), 3, CPU)
    with pytest.raises(ValueError, match="needs y"):
        kind.check("y", None, 3, CPU)

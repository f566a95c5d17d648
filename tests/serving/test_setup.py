"""What a server is made of, as plain data."""

from __future__ import annotations

import pickle  # noqa: S403  (what another process of the same job is told)

import pytest

from fewstep.serving.served import Limits
from fewstep.serving.setup import Setup, check_model


def test_another_process_can_be_told(tmp_path):
    setup = Setup(("digits", "x=shapes"), {"device": "cpu"}, limits=Limits(samples=3), memory=1000)
    assert pickle.loads(pickle.dumps(setup)) == setup and setup.sources == {"digits": "digits", "x": "shapes"}
    service = setup.service()
    assert service.models.loaded == [] and service.models.memory == 1000 and service.limits.samples == 3
    with pytest.raises(ValueError, match="this server has 1000 for all"), service.models.using("digits"):
        pass


def test_replicas_keep_no_pictures():
    service = Setup(("digits",)).service(replicated=True)
    with pytest.raises(ValueError, match="ask for b64_json"):
        service.begin({"response_format": "url"}, {})
    assert service.models.loaded == []


@pytest.mark.parametrize(
    "options, said",
    [
        ({"max_batch": 0}, "--max-batch must be at least 1, got 0"),
        ({"limits": Limits(samples=0)}, "--max-samples must be at least 1"),
        ({"limits": Limits(deadline=0.0)}, "--deadline must be above 0, got 0"),
        ({"memory": -1}, "--memory must be above 0, got -1"),
        ({"models": ("digits", "digits")}, "two models would be served as 'digits'"),
        ({"models": ("digit",)}, "unknown model 'digit'"),
    ],
)
def test_what_cannot_be_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        Setup(**({"models": ("digits",)} | options))


def test_what_may_be_a_model(tmp_path):
    check_model("org/name")  # a repository
    check_model("digits")
    with pytest.raises(ValueError, match="holds no model"):
        check_model(str(tmp_path))

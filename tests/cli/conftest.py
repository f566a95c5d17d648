"""A small untrained model in a folder, and the command line in process."""

from __future__ import annotations

import pytest
import torch

from fewstep.cli.main import run
from fewstep.conditions.label import Label
from fewstep.denoisers.folder import save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM


def tiny(classes: int | None = 10, data: str | None = "digits") -> NetworkDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(channels=1, size=8, width=(8, 16), classes=classes)
        for parameter in network.parameters():  # layers that start at zero would make it constant
            torch.nn.init.normal_(parameter, std=0.05)
    conditions = {"label": Label(classes)} if classes else {}
    return NetworkDenoiser(network, EDM(), "x0", (1, 8, 8), conditions, precondition="edm", data=data).eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A conditional model's folder."""
    return save_model(tiny(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """A conditional model's folder that says of itself that it is a student of one evaluation."""
    from fewstep.core.student import Student
    from fewstep.distillation.distill import plan_of

    model = tiny()
    model.student = Student("jump", "kd", "tiny", 5.0, (5.0,))
    plan = plan_of(model.process, "jump", 1, 5.0, (5.0,))
    return save_model(model, tmp_path_factory.mktemp("models") / "student", plan=plan)


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory):
    return save_model(tiny(None, None), tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    """A model that reads captions."""
    from fewstep.conditions.text import Text
    from fewstep.denoisers.folder import save_model
    from fewstep.denoisers.network import NetworkDenoiser
    from fewstep.networks.unet import UNet
    from fewstep.processes.ve import EDM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(3, 8, (8, 16), classes=None, vocabulary=4, captions=3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    text = Text(("a", "red", "green", "square"), 3)
    model = NetworkDenoiser(network, EDM(), "x0", (3, 8, 8), {"text": text}, "edm")
    return save_model(model, tmp_path_factory.mktemp("models") / "captioned")


@pytest.fixture
def fewstep(capsys, tmp_path, monkeypatch):
    """`code, out, err = fewstep("sample", ...)`, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def fails(fewstep):
    """The one line of an error; nothing else is said, and nothing on stdout."""

    def call(*words: object) -> str:
        code, out, err = fewstep(*words)
        assert code == 2 and out == "", (code, out, err)
        lines = [line for line in err.splitlines() if not line.startswith("data: ")]  # said before the work
        assert len(lines) == 1 and lines[0].startswith("fewstep: "), err
        return lines[0].removeprefix("fewstep: ")

    return call

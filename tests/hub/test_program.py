"""A plan and its network as one exported program."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.conditions.number import Number
from fewstep.conditions.time import Time
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.program import export_program, load_program
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.per_element import PerElement
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.tell import tell

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = MLP((2, 3), classes=4, width=16, depth=1)
    return NetworkDenoiser(network, EDM(), "x0", (2, 3), {"label": Label(4)}, precondition="edm", data_std=0.7).eval()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    return export_program(plan(model.process, "ddpm", 3), model, tmp_path_factory.mktemp("program") / "a.pt2")


def test_a_stochastic_plan_of_any_batch(model, written):
    program, made = load_program(written), plan(model.process, "ddpm", 3)
    assert program.plan == made and program.draws == 2 and program.batch is None
    for batch in (1, 5):
        noise = torch.randn(batch, 2, 3)
        torch.testing.assert_close(program(noise, seed=4, label=3), made(model, noise, seed=4, label=3), **CLOSE)
        assert (program(noise, seed=5, label=3) - program(noise, seed=4, label=3)).abs().max() > 1e-3
    noise, steps = torch.randn(2, 2, 3), torch.zeros(2, 2, 2, 3)

    class Silent:
        def normal(self, draw, shape, device="cpu", dtype=torch.float32):
            return torch.zeros(shape, dtype=dtype)

    expected = made(model, noise, source=Silent(), label=[0, 2])
    torch.testing.assert_close(program(noise, steps=steps, label=[0, 2]), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc-3"])
def test_deterministic_plans_of_a_fixed_batch(name, tmp_path):
    torch.manual_seed(1)
    model = NetworkDenoiser(MLP((5,), width=8, depth=1), Flow(), "velocity", (5,)).eval()
    made = plan(model.process, name, 4)
    program = load_program(export_program(made, model, tmp_path / "b.pt2", batch=3))
    noise = torch.randn(3, 5)
    torch.testing.assert_close(program(noise), made(model, noise), **CLOSE)
    free = load_program(export_program(made, model, tmp_path / "free.pt2"))
    torch.testing.assert_close(free(torch.cat([noise, noise]))[3:], made(model, noise), **CLOSE)
    with pytest.raises(ValueError, match=r"takes noise \(3, 5\), got \(2, 5\)"):
        program(torch.randn(2, 5))
    with pytest.raises(ValueError, match="takes no 'label'; it takes none"):
        program(noise, label=1)


def test_what_does_not_fit(model, written, tmp_path):
    program = load_program(written)
    with pytest.raises(ValueError, match=r"takes noise \(B, 2, 3\), got \(2, 3\)"):
        program(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"steps must have shape \(2, 4, 2, 3\)"):
        program(torch.randn(4, 2, 3), steps=torch.zeros(1, 4, 2, 3))
    with pytest.raises(ValueError, match="label 9 is out of range"):
        program(torch.randn(4, 2, 3), label=9)
    with pytest.raises(ValueError, match="made for another process"):
        export_program(plan(Flow(), "ddim", 2), model, tmp_path / "c.pt2")
    with pytest.raises(ValueError, match="has no table"):
        export_program(plan(model.process, "rk-adaptive"), model, tmp_path / "c.pt2")
    with pytest.raises(ValueError, match="there is no folder"):
        export_program(plan(model.process, "ddim", 2), model, tmp_path / "no" / "c.pt2")
    assert not list(tmp_path.iterdir())


def changed(written, path, change):
    """The archive with one of its files changed, or one more."""
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(path, "w") as new:
        files = {name: old.read(name) for name in old.namelist()}
        change(files)
        for name, data in files.items():
            new.writestr(name, data)
    return path


def test_nothing_that_could_run_code_is_opened(written, tmp_path):
    pickled = io.BytesIO()
    torch.save(torch.zeros(2), pickled)

    def edit(name, change):
        def apply(files):
            data = json.loads(files[name])
            change(data)
            files[name] = json.dumps(data).encode()

        return apply

    def first(data):
        return next(iter(data["config"].values()))

    graph = "archive/models/model.json"
    cases = {
        "example inputs": lambda files: files.update({"archive/data/sample_inputs/model.pt": pickled.getvalue()}),
        "it holds 'data/weights/model.pt'": lambda files: files.update({"archive/data/weights/model.pt": b"x"}),
        "it holds 'data/aotinductor/model/a.so'": lambda f: f.update({"archive/data/aotinductor/model/a.so": b"x"}),
        "outside its own folder": lambda files: files.update({"version": b"8.0"}),
        "as a pickle": edit(
            "archive/data/weights/model_weights_config.json", lambda d: first(d).update(use_pickle=True)
        ),
        "'.*' as a pickle": edit(
            "archive/data/constants/model_constants_config.json", lambda d: first(d).update(path_name="opaque_obj_0")
        ),
        "code to execute": edit(graph, lambda data: data.update(guards_code=["print(1)"])),
        "calls 'torch.os.system'": edit(
            graph, lambda data: data["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system")
        ),
        "states a size by": lambda files: files.update(
            {graph: files[graph].replace(b'"expr_str": "Symbol', b'"expr_str": "exec(chr(49)) + Symbol', 1)}
        ),
    }
    for number, (message, change) in enumerate(cases.items()):
        path = changed(written, tmp_path / f"{number}.pt2", change)
        with pytest.raises(ValueError, match=f"is not a program that export_program wrote: .*{message}"):
            load_program(path)
    (tmp_path / "cut.pt2").write_bytes(written.read_bytes()[:999])
    with pytest.raises(ValueError, match="is not a program"):
        load_program(tmp_path / "cut.pt2")
    load_program(changed(written, tmp_path / "same.pt2", lambda files: None))  # the changes alone are to blame


def test_bands_of_noise_levels_and_told_numbers(tmp_path):
    class Told(NetworkDenoiser):
        """Answers under guidance-like numbers: they scale the network's answer."""

        def forward(self, x, t, *, strength=None, **condition):
            answer = super().forward(x, t, **condition)
            return answer.replaced(answer.value * strength[:, None])

    torch.manual_seed(2)
    process = PerElement((VP(), VP(beta_max=12.0)), (0, 1, 0, 1, 1), (5,))
    model = Told(MLP((5,), width=8, depth=1), process, "v", (5,)).eval()
    model.conditions = {"strength": Number(0.0, None, 1.0)}
    with torch.no_grad():  # the last layer begins at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made = tell(plan(process, "dpmpp-2m", 3), strength=[0.5, 2.0, 1.0])
    program = load_program(export_program(made, model, tmp_path / "bands.pt2"))
    noise = torch.randn(4, 5)
    torch.testing.assert_close(program(noise), made(model, noise), **CLOSE)
    assert (made(model, noise) - plan(process, "dpmpp-2m", 3)(model, noise)).abs().max() > 1e-3
    assert program.plan == made


@pytest.mark.slow
def test_the_times_of_a_flow_map_are_inside(tmp_path):
    class Aimed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x, noise, target=None):
            target = noise if target is None else target
            return torch.tanh(self.layer(x)) * (1 + noise)[:, None] + target[:, None]

    model = NetworkDenoiser(Aimed(), VP(), "x0", (3,), {"to": Time()}).eval()
    made = plan(VP(), "flow-map", 3, gamma=0.5)
    program, noise = load_program(export_program(made, model, tmp_path / "map.pt2")), torch.randn(4, 3)
    assert program.plan == made
    torch.testing.assert_close(program(noise, seed=2), made(model, noise, seed=2), **CLOSE)

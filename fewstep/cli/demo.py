"""`fewstep demo`: the main job from end to end, as a report."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.acceleration.pipeline import Accelerated
    from fewstep.core.plan import Plan
    from fewstep.denoisers.network import NetworkDenoiser
    from fewstep.searching.shared import Ran

FORMAT = "fewstep-demo-1"
MODEL, STUDENT = "digits", "digits-1"
# Euler is left out: where sigma is the time, as here, it is DDIM. A rule other than TIMESTEPS stands behind "on".
SOLVERS = (
    "ddim",
    "heun",
    "dpmpp-2m",
    "dpmpp-3m",
    "unipc-2",
    "unipc-3",
    "deis-3",
    "dpmpp-2m on short",
    "vab-3 on short",
)
NFES = (4, 5, 6, 8, 10, 20)
TIMESTEPS = "log-snr"
REFERENCE_NFE = 100
FAST_NFE = 4
ITERATIONS = 6  # of learning, after its starts: what a result rests on is no clock's affair
NOISES = 204  # to learn from and to hold out
N = 256  # noises to judge on, each with one label, the classes in turn
COLUMNS = 10  # noises shown
OURS = ("result.json", "report.html", "samples.png", "accelerated")


def demo(
    out: Annotated[Path, typer.Option(help="Where the report goes. The output of an earlier demo is replaced.")] = Path(
        "runs/demo"
    ),
    seed: common.Seed = 0,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Compare solvers on digits, and report.

    Draws the same noises with the common solvers, accelerates the model to four evaluations, adds its student of one,
    and compares all with a reference of a hundred. Takes about a minute and a half. Writes report.html, samples.png,
    result.json and the accelerated model.

    \b
    Example:
        fewstep demo
        fewstep sample runs/demo/accelerated -n 64 --label 3
    """
    _check_out(out)
    begin, processor = time.perf_counter(), time.process_time()
    common.say("loading torch and the model")
    model = common.open_model(MODEL, device)
    from fewstep.acceleration.pipeline import accelerate_for
    from fewstep.searching.shared import threads_for

    with threads_for(model) as threads, fast_layout(model):
        job = Job(model, seed, common.Stages())
        job.reference()
        job.solvers()
        common.say(f"accelerating to {FAST_NFE} evaluations")
        found = accelerate_for(
            model, FAST_NFE, job.runs, job.reference_error,
            seed=seed, noises=NOISES, iterations=ITERATIONS, progress=True,
        )  # fmt: skip
        job.accelerated(found)
        job.student(common.open_model(STUDENT, device))
    result = job.result(found, threads, time.perf_counter() - begin, time.process_time() - processor)
    _write(out, job, found, result)
    if as_json:
        common.print_json(result)
    else:
        for line in summary(result, out):
            typer.echo(line)


@contextmanager
def fast_layout(model: NetworkDenoiser) -> Iterator[None]:
    """The weights with their channels last, in which small convolutions take a quarter less; as before at the end."""
    import torch

    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class Job:
    """The measurements: every sampler from the same noises, which neither search nor learning sees.

    `rows` holds one dict a sampler with its figures, `shown` the first samples of each.
    """

    def __init__(self, model: NetworkDenoiser, seed: int, stages: common.Stages) -> None:
        import torch

        from fewstep.data import digits

        self.model, self.seed, self.stages = model, seed, stages
        self.stream = seed + 1  # `accelerate` draws from the stream of `seed`
        self.device = next(model.parameters()).device
        self.labels = torch.arange(N) % digits.CLASSES
        self.real, _ = digits.load("train")
        self.held_out, _ = digits.load("validation")
        self.rows: list[dict[str, Any]] = []
        self.shown: list[Tensor] = []

    def reference(self) -> None:
        """The reference's samples and how far they are from those with half the evaluations."""
        import torch

        from fewstep.searching.reference import error_estimate, reference_plan, solve
        from fewstep.searching.shared import Ran, Runs

        plan, begin = reference_plan(self.model, REFERENCE_NFE), time.perf_counter()
        with self.stages.stage(f"reference, {REFERENCE_NFE} evaluations", 1) as advance:
            self.problem = solve(self.model, self.stream, 0, N, REFERENCE_NFE, torch.float32)
            self.runs = Runs(self.model, self.problem)
            advance()
        self.truth = self._seen(self.problem.reference)
        self._record("reference", plan, Ran(self.problem.reference, time.perf_counter() - begin), REFERENCE_NFE)
        with self.stages.stage("the reference's own error", 1) as advance:
            self.reference_error = error_estimate(self.model, self.problem, REFERENCE_NFE)
            advance()

    def solvers(self) -> None:
        """Every solver at every number of evaluations, in shared calls; a plan that serves two numbers is run once."""
        from fewstep.sampling.build import fixed_plan as make_plan

        asked = []
        known: dict[tuple[str, int], Plan] = {}
        for solver in SOLVERS:
            name, _, rule = solver.partition(" on ")
            for nfe in NFES:
                plan = make_plan(self.model.process, name, nfe=nfe, timesteps=rule or TIMESTEPS)
                known.setdefault((solver, plan.nfe), plan)
                asked.append((solver, nfe, plan.nfe))
        text = f"{len(SOLVERS)} solvers at {', '.join(map(str, NFES))} evaluations"
        runs = dict(zip(known, self._runs(list(known.values()), text), strict=True))
        for solver, nfe, made in asked:
            self._record(solver, known[solver, made], runs[solver, made], nfe)

    def accelerated(self, found: Accelerated) -> None:
        """The plan that `accelerate` found, on the same noises."""
        (run,) = self._runs([found.plan], f"the accelerated plan, {found.plan.nfe} evaluations")
        self._record("accelerated", found.plan, run, FAST_NFE)

    def student(self, model: NetworkDenoiser) -> None:
        """The embedded student by its own plan, on the same noises."""
        from fewstep.searching.shared import run_shared

        plan = model.plan
        assert plan is not None
        with self.stages.stage(f"the student {STUDENT}, {plan.nfe} evaluation", 1) as advance, fast_layout(model):
            (run,) = run_shared([plan], model, self.problem)
            advance()
        self._record(STUDENT, plan, run, plan.nfe)

    def _runs(self, plans: list[Plan], text: str) -> list[Ran]:
        with self.stages.stage(text, 1) as advance:
            runs = self.runs(plans)
            advance()
        return runs

    def _seen(self, samples: Tensor) -> Tensor:
        return self.model.decode(samples, **self.problem.condition).cpu()

    def _record(self, name: str, plan: Plan, run: Ran, asked: int) -> None:
        import torch

        from fewstep.metrics.accuracy import class_accuracy
        from fewstep.metrics.endpoint import endpoint_error
        from fewstep.metrics.frechet import frechet

        row: dict[str, Any] = {"name": name, "timesteps": plan.about.get("timesteps"), "asked_nfe": asked}
        row |= {"planned_nfe": plan.nfe, "actual_nfe": plan.nfe, "seconds": run.seconds}
        row |= dict.fromkeys(("endpoint", "median", "frechet", "accuracy"))
        if run.samples is None:  # it diverged
            row |= {"actual_nfe": None, "seconds": None}
            self.shown.append(torch.full_like(self.truth[:COLUMNS], -1.0))
        else:
            samples = self._seen(run.samples)
            if name != "reference":
                error = endpoint_error(samples, self.truth)
                row |= {"endpoint": error.value, "median": error.median}
            row["frechet"] = frechet(samples, self.real).value
            row["accuracy"] = class_accuracy(samples, self.labels).value
            self.shown.append(samples[:COLUMNS])
        self.rows.append(row)

    def result(self, found: Accelerated, threads: int, seconds: float, processor: float) -> dict[str, Any]:
        """Everything measured, as JSON."""
        import torch

        import fewstep
        from fewstep.metrics.frechet import frechet

        against = frechet(self.truth, self.real)
        return {
            "format": FORMAT,
            "model": MODEL,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "n": N,
            "seed": self.seed,
            "timesteps": TIMESTEPS,
            "fast_nfe": FAST_NFE,
            "student": STUDENT,
            "reference_nfe": REFERENCE_NFE,
            "reference_error": self.reference_error,
            "features": against.features,
            "floor": {"value": against.floor, "n": against.floor_n},
            "validation": {"value": frechet(self.held_out, self.real).value, "n": len(self.held_out)},
            "rows": self.rows,
            "accelerate": {"rows": found.rows, "figures": found.figures, "notes": list(found.notes)},
            "seconds": seconds,
            "cpu_seconds": processor,
            "machine": {
                "fewstep": fewstep.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": threads,
                "device": str(self.device),
            },
        }


def pick(result: dict[str, Any], name: str, nfe: int) -> dict[str, Any]:
    """The row of a sampler at the number of evaluations that was asked for."""
    return next(row for row in result["rows"] if row["name"] == name and row["asked_nfe"] == nfe)


def summary(result: dict[str, Any], out: Path) -> list[str]:
    """Six lines: the main figures and where the files are."""
    from fewstep.report.table import format_number as text

    fast = pick(result, "accelerated", result["fast_nfe"])
    slow = pick(result, "ddim", max(NFES))
    reference = pick(result, "reference", result["reference_nfe"])
    student = next(row for row in result["rows"] if row["name"] == result["student"])

    def line(name: str, row: dict[str, Any], error: str) -> str:
        word = "evaluation," if row["planned_nfe"] == 1 else "evaluations,"
        return f"{name:12} {row['planned_nfe']:4d} {word:12} error {error}, Frechet distance {text(row['frechet'])}"

    ratio = fast["endpoint"] / slow["endpoint"]
    apart = fast["frechet"] / reference["frechet"] - 1
    return [
        line("accelerated", fast, text(fast["endpoint"])),
        line(result["student"], student, text(student["endpoint"])),
        line("ddim", slow, text(slow["endpoint"])),
        line("reference", reference, text(result["reference_error"])) + f", real data {text(result['floor']['value'])}",
        f"accelerated: {text(ratio)} of ddim's error, Frechet distance {apart:+.1%} from the reference's,"
        f" in {result['seconds']:.0f} s ({result['cpu_seconds']:.0f} CPU seconds)",
        f"{out / 'report.html'}, samples.png, result.json; sample with: fewstep sample {out / 'accelerated'}",
    ]


def _check_out(out: Path) -> None:
    """A folder that is new, empty, or a former demo's; `ValueError` otherwise."""
    from fewstep.core.files import claim_folder

    if not (out.is_dir() and any(out.iterdir())):
        claim_folder(out)
        common.check_writable(out)
        return
    try:
        former = json.loads((out / "result.json").read_text("utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        former = False
    if not former:
        raise ValueError(f"the folder {out} is not empty and no former demo's: choose another with --out")
    common.check_writable(out / OURS[0])


def _write(out: Path, job: Job, found: Accelerated, result: dict[str, Any]) -> None:
    """All files beside their place first, then moved: a former demo's are replaced, others in the folder stay."""
    from fewstep.report.demo import page, picture
    from fewstep.report.files import write_json
    from fewstep.report.page import write_report

    out.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".demo.", dir=out))
    try:
        write_json(fresh / "result.json", result)
        write_report(fresh, page(result, job.shown))
        picture(fresh / "samples.png", result, job.shown)
        found.save(fresh / "accelerated")
        for name in OURS:  # result.json, the marker, first: whatever happens, a rerun knows its own output
            if (out / name).is_dir():
                os.replace(out / name, fresh / f"former-{name}")
            os.replace(fresh / name, out / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)

"""`fs.distill(teacher, "kd", steps=1)`: a student of few evaluations, watched while it trains, and a verdict."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.files import write
from fewstep.core.identity import weights_sum
from fewstep.core.methods import card, made
from fewstep.core.plan import Plan
from fewstep.core.student import Student
from fewstep.data.dataset import Dataset
from fewstep.denoisers.folder import CARD
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.adapter import alone, fits, load_trained, merged, write_file
from fewstep.distillation.card import student_card
from fewstep.distillation.checks import check_answers, check_classes, check_forward_mode
from fewstep.distillation.given import given_rows
from fewstep.distillation.levels import grid
from fewstep.distillation.memory import free, held, spoken_memory
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.origin import (
    base_of,
    data_std_of,
    guidance_of,
    has_network,
    layers_of,
    plan_of,
    start_of,
)
from fewstep.distillation.recipe import DistillRecipe, recipe_of
from fewstep.distillation.scales import followed
from fewstep.distillation.stages import in_stages
from fewstep.distillation.state import DistillState, affordable, planned
from fewstep.distillation.verdict import said, unseen, verdict
from fewstep.distillation.watch import Watch, spoken
from fewstep.guidance.guide import guide
from fewstep.hub.models import load, save
from fewstep.searching.problem import data_for, own_data
from fewstep.searching.reference import solve
from fewstep.training.run import Course, accelerated, newest, run
from fewstep.training.trajectories import frozen

ITERATIONS, BATCH, LR, AVERAGE = 2000, 256, 1e-3, 0.99
CHECKED, CHECK_NFE, JUDGED = 256, 50, 512  # noises of a check, evaluations of their reference, noises of the verdict
CHECKS = 1 << 19  # the number of the first noise of the checks
COLLAPSES = ("stop", "go on")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Distilled:
    """The result: the student with its plan, and what was measured.

    `rows` is the verdict (`fewstep.distillation.verdict`), `figures` JSON: evaluations spent (a forward pass of one
    sample is 1, with its backward pass 3), seconds, iterations, best check. `history` are the log's records. With
    `lora` the model is a plain one, and `adapter` the same student as an adapter on the teacher's own weights, or None
    where it would not fit the teacher: the student has further inputs. `players` are the weights of each that trained,
    by name, of the student the best ones.
    """

    model: Denoiser
    rows: list[dict[str, Any]]
    figures: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    adapter: Denoiser | None = None
    players: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        assert self.model.plan is not None
        return self.model.plan

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the student with its plan and card; `fs.load` and `fewstep sample` take the folder. With `lora` the
        adapter lies beside it, as `--lora` takes it for the teacher."""
        place = Path(folder)
        name = place.parent.name if place.name == "model" else place.name  # of a run
        card = student_card(self.model, name, self.rows, self.notes)
        place = save(self.model, folder, plan=self.model.plan, card=card)
        if self.adapter is not None:
            write_file(self.adapter, place)
        return place


@checked
def distill(
    teacher: Denoiser,
    method: str = "kd",
    *,
    stages: str | Path | Sequence[Mapping[str, Any]] | None = None,
    steps: int | None = None,
    start: float | None = None,
    student: Denoiser | None = None,
    lora: int | None = None,
    data: str | Path | Dataset | None = None,
    conditions: Mapping[str, Any] | None = None,
    iterations: int | None = None,
    seconds: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    ema: float | None = None,
    precision: str = "fp32",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_collapse: str = "stop",
    check_every: int | None = None,
    judge: bool = True,
    begin: Mapping[str, Mapping[str, Tensor]] | None = None,
    recipe: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    tell: Callable[[dict[str, Any]], Any] | None = None,
    **options: Any,
) -> Distilled:
    """A student that needs few evaluations, distilled from a teacher that needs many.

    Args:
        teacher: any denoiser around a network: guided, aligned, with adapters. What is around the network ends up
            inside the student.
        method: a distiller's name (`fewstep methods --room distillation` lists them); **options are its own.
        stages: several methods one after another in place of one, as a recipe's file or name, or as a list of its
            stages (`fewstep.distillation.recipe`): then the other arguments here hold for all of them, and a length is
            that of all together.
        steps: of the student, by default one, or as many as the method is made for. start: the time whose pure noise it
            begins from, by default where the noise is 6.7 times the data's standard deviation, and in pictures of more
            than 8 pixels a side that much further out (`core.student.default_start`).
        student: what to train a copy of, in place of the teacher's network; needed where the teacher has none.
        lora: the student is an adapter of this rank on the teacher's own weights, which are then in memory once, in
            place of a copy of them; `fake="lora"`, an option of distribution matching, is for the score of its samples.
        data: real samples: where a method needs some, by default those that the teacher was trained on; conditions are
            drawn as they come there. Without data every label is drawn equally often.
        conditions: what to draw them from instead, a value or a list by name, `{"label": [3, 5]}` or `{"text": [...]}`;
            rows of several lists go together.
        iterations, seconds: how long: iterations repeat to the bit; a budget of seconds is turned into iterations by
            the speed of the first ones. batch, lr, ema: samples of an iteration, the largest rate, the average's decay.
        precision: of matrix products in training, "fp32" or "bf16"; weights, moments and averages are in the model's
            own, as are checks and the verdict.
        out: a folder for the log, checkpoints and the model; without one nothing is written.
        resume: go on from the newest checkpoint in out; the result has the bits of a run that never stopped.
        on_collapse: "stop" ends a run whose student has collapsed, "go on" only warns. check_every: iterations between
            checks, by default a tenth of the run. judge: whether the student is judged at the end beside the teacher's
            plans (`rows`).
        begin: weights of players to begin with, by name, as another's `players` has them. recipe: the recipe that asks
            for this, kept in checkpoints.
        tell: gets every record of the log.

    Raises:
        ValueError: unknown names and options, a teacher without a network, a method that needs data where there are
            none, steps that it cannot take, a rank below 1 or a network without layers to adapt, conditions that the
            model does not take, more memory than there is, a folder in use, another run's checkpoint.
        FloatingPointError: a loss that is not finite, naming player and iteration.
    """
    if stages is not None:
        train: dict[str, Any] = {"iterations": iterations, "seconds": seconds, "batch": batch, "lr": lr, "ema": ema}
        train |= {"check_every": check_every, "precision": precision if precision != PRECISIONS[0] else None}
        train |= {"seed": seed or None, "on_collapse": on_collapse if on_collapse != COLLAPSES[0] else None}
        own = {"steps": steps, "start": start, "lora": lora, "conditions": conditions}
        if student is not None or begin is not None or options:
            raise ValueError("options, and a student to begin with, are those of one method: leave stages or them out")
        asked = recipe_of(stages, _given(own), _given(train))
        rest: dict[str, Any] = {"resume": resume, "device": device, "progress": progress, "tell": tell, "judge": judge}
        return by_recipe(teacher, asked, data=data, out=out, **rest)
    found, _ = card(method, "distiller")
    build = made("distiller", method, 1, **options)
    steps = int(found.facts.get("usual_steps", 1)) if steps is None else steps
    check_whole("steps", steps, 1)
    check_whole("seed", seed, 0)
    if found.facts["steps"] == 1 and steps != 1:
        raise ValueError(f"the student of {method!r} takes one step, not {steps}")
    if on_collapse not in COLLAPSES:
        raise suggest("on_collapse", on_collapse, COLLAPSES)
    if iterations is not None and seconds is not None:
        raise ValueError("give either iterations or seconds")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if resume and out is None:
        raise ValueError("resume goes on with a run in a folder: give out=...")
    if precision not in PRECISIONS:
        raise suggest("precision", precision, PRECISIONS)
    if lora is not None and student is not None:
        raise ValueError("lora trains an adapter on the teacher's own weights: leave student out")
    beside = bool(found.facts.get("beside"))  # of a student
    base = copy.deepcopy(student) if student is not None else base_of(teacher, beside)
    teacher = followed(teacher, base)
    if base.shape is None:
        raise ValueError("distillation draws noise, so the denoiser needs a shape: set model.shape = (...)")
    folder = None if out is None else Path(out)
    resumed = None if folder is None else newest(folder, resume)
    real = None if data is None else data_for(teacher, data)
    std = data_std_of(teacher, real)
    first = start_of(base, found, std) if start is None else float(start)
    total = iterations if iterations is not None else int(found.facts.get("iterations", ITERATIONS))
    size = batch if batch is not None else int(found.facts.get("batch", BATCH))
    check_whole("iterations", total, 1)
    if check_every is not None:
        check_whole("check_every", check_every, 1)
    check_whole("batch", size, 1)
    if lr is not None and not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    clock = time.perf_counter()
    chosen = {} if conditions is None else given_rows(base, conditions)
    with accelerated(precision, device) as accelerator, frozen(teacher):
        if accelerator.device != teacher.device:
            teacher = copy.deepcopy(teacher).to(accelerator.device)
            base = base_of(teacher, beside) if student is None else copy.deepcopy(base).to(accelerator.device)
        if size % accelerator.num_processes:
            raise ValueError(f"batch={size} does not divide among {accelerator.num_processes} processes")
        setting = Setting(
            teacher, base, first, steps, total, real, lambda: own_data(teacher), std,
            lr=lr if lr is not None else float(found.facts.get("lr", LR)),
            ema=ema if ema is not None else float(found.facts.get("ema", AVERAGE)),
            batch=size, seed=seed, own=student is not None and not isinstance(student, NetworkDenoiser),
            fake=base_of(teacher) if student is not None and has_network(layers_of(teacher)[-1]) else None,
            share=(accelerator.process_index, accelerator.num_processes),
            reduce=(lambda value: accelerator.reduce(value, "mean")) if accelerator.num_processes > 1 else None,
            given=chosen, lora=lora, folder=folder, free=free(accelerator.device),
            first=(begin or {}).get("student", {}),
        )  # fmt: skip
        grid(base.process, steps, first)  # a start outside of the clock
        check_answers(base, first)
        check_classes(base, real)
        torch.manual_seed(seed)  # of weights that are new
        work: Distiller = build(setting)
        for each, tensors in (begin or {}).items():
            if each not in work.players:
                raise suggest(f"player of {method}, to begin with,", each, tuple(work.players))
            if each != "student":  # whose weights the setting has given it already
                load_trained(work.players[each].module, tensors)
        work.draw(2, torch.Generator().manual_seed(0))  # what is missing shows at once
        check_forward_mode(work)
        job = {
            "method": method,
            "options": {name: repr(value) for name, value in sorted(options.items())},
            "teacher": weights_sum(teacher),
            "steps": steps,
            "start": first,
            "batch": size,
            "lr": setting.lr,
            "ema": setting.ema,
            "seed": seed,
            "data": None if real is None else real.spec.name,
            "conditions": None if conditions is None else repr(conditions),
            "lora": lora,
            "precision": precision,
            "recipe": recipe,
        }
        state = DistillState(work, job, seed=seed, batch=size, accelerator=accelerator)
        if seconds is not None:
            total = planned(resumed) if resumed else affordable(state, seconds)
        setting.iterations = job["iterations"] = total
        name = str(recipe["teacher"]["model"]) if recipe else ""
        inside = guidance_of(teacher, work.student) if work.scale_inside is None else work.scale_inside
        facts = Student(work.kind, method, name, first, work.times(), inside, solver=work.solver)
        notes = [f"It was trained for {k} {v} alone." for k, v in (conditions or {}).items()]
        return _run(
            state, work.judged(teacher), base, facts, folder, resumed, real,
            paired=bool(found.facts["pairing"]), opens=(bool(found.facts["data"]) or real is not None) and not chosen,
            every=check_every or max(1, total // 10), stop=on_collapse == "stop", judge=judge, progress=progress,
            tell=tell, clock=clock, notes=notes,
        )  # fmt: skip


def _run(
    state: DistillState, teacher: Denoiser, base: Denoiser, facts: Student, folder: Path | None, resumed: Path | None,
    data: Dataset | None, *, paired: bool, opens: bool, every: int, stop: bool, judge: bool, progress: bool,
    tell: Callable[[dict[str, Any]], Any] | None, clock: float, notes: list[str],
) -> Distilled:  # fmt: skip
    """Train, check, choose the best weights, judge."""
    setting, total, steps = state.method.setting, state.method.setting.iterations, state.method.setting.steps
    plan = plan_of(setting.process, facts.kind, steps, setting.start, facts.times, facts.solver)
    given = setting.given
    own = state.method.problem(CHECKS, CHECKED)
    held_out = own or solve(teacher, setting.seed, CHECKS, CHECKED, CHECK_NFE, torch.float32, data, given=given)
    watch = Watch(held_out, state.method.reward)
    history: list[dict[str, Any]] = []
    name = folder.name if folder is not None else ""

    def heard(record: dict[str, Any]) -> Any:
        history.append(record)
        told = None if tell is None else tell(record)
        return True if stop and "collapsed" in record else told

    def check() -> dict[str, Any]:
        model = state.averaged()
        found = watch.check(model, plan)
        collapsed = watch.judge(found, state.weights(model), state.kept, state.checks, 2 * state.step >= total)
        if collapsed:
            told = f"At iteration {state.step} the student had collapsed: {collapsed}."
            ended = " The run ended, with the best weights before." if stop else ""
            warnings.warn(told + ended, stacklevel=2)
        return found.record() | ({"collapsed": collapsed} if collapsed else {})

    def student() -> Denoiser:
        """The student with its best weights."""
        model = state.averaged()
        if state.kept:
            model.load_state_dict(state.kept, strict=False)  # without what the student shares
        model.student = replace(facts, iterations=state.step, evaluations=setting.spent)  # type: ignore[arg-type]
        model.plan = plan  # type: ignore[assignment]
        return model

    def plain(model: Denoiser) -> Denoiser:
        return alone(model, state.method.student) if setting.lora is None else merged(model)

    def adapts(model: Denoiser) -> bool:
        """Whether the student is an adapter that fits the teacher."""
        return setting.lora is not None and fits(model, base)

    def written(place: Path) -> None:
        model = student()
        save(plain(model), place, card=student_card(model, name))
        if adapts(model):
            write_file(model, place)

    memory = spoken_memory(held(teacher, state.method.players, state.method.copies()))
    if progress and state.accelerator.is_main_process:
        from rich.console import Console

        Console(stderr=True).print(memory, highlight=False, soft_wrap=True)
    course = Course(
        total, total, state.batch, log_every=max(min(10, total), total // 50), save_every=max(1, total // 20),
        rate=lambda step: setting.rate(step, setting.lr), hooks=((every, check),), spoken=spoken, done="distilled",
        doing="distilling",
    )  # fmt: skip
    finished, _ = run(state, course, folder, resumed=resumed, tell=heard, progress=progress, export=written)
    trained = student()
    model, adapter = plain(trained), trained if adapts(trained) else None
    best = state.checks.get("best")
    figures: dict[str, Any] = {
        "iterations": state.step,
        "evaluations": setting.spent,
        "seconds": time.perf_counter() - clock,
        "best_distance": best if state.method.reward is None else None,
        "best_reward": None if best is None or state.method.reward is None else -best,
        "finished": finished,
        "collapsed": next((record["collapsed"] for record in history if "collapsed" in record), None),
        "memory": memory,
    }
    rows: list[dict[str, Any]] = []
    notes += [f"The student had collapsed: {figures['collapsed']}."] if figures["collapsed"] else []
    if judge and own is None and finished and state.accelerator.is_main_process:
        problem = unseen(teacher, setting.seed, JUDGED, data, given)
        rows = verdict(teacher, model, plan, problem, data, paired=paired, real=opens, given=given)
        notes += said(rows)
        if folder is not None:
            write(folder / "model" / CARD, student_card(model, name, rows, notes))
    players = {each: player.module.state_dict() for each, player in state.method.players.items()}
    names = players["student"].keys()
    players["student"] = {key: value for key, value in trained.state_dict().items() if key in names}
    return Distilled(model, rows, figures, history, notes, adapter, players)


def by_recipe(
    teacher: Denoiser,
    recipe: DistillRecipe,
    *,
    data: str | Path | Dataset | None = None,
    out: str | os.PathLike[str] | None = None,
    **rest: Any,
) -> Distilled:
    """Distils a teacher, which stands for the recipe's own, by a recipe, with the guidance and data that this names.

    data: in place of the recipe's. rest: `resume`, `device`, `progress`, `tell` and `judge`, as in `distill`.

    Raises ValueError and FloatingPointError as `distill` does.
    """
    if recipe.teacher.get("guidance") is not None:
        teacher = guide(teacher, "cfg", scale=float(recipe.teacher["guidance"]))
    if data is None and recipe.data:
        opened = {name: value for name, value in recipe.data.items() if name != "source"}
        data = data_for(teacher, recipe.data["source"], **opened)
    folder = None if out is None else Path(out)
    found: Distilled = in_stages(recipe, teacher, distill, folder, data=data, **rest)
    return found


def run_recipe(recipe: DistillRecipe, out: str | os.PathLike[str] | None = None, **rest: Any) -> Distilled:
    """Distils by a recipe; one of several stages has a folder for each in `out`. rest: as in `by_recipe`."""
    return by_recipe(load(recipe.teacher["model"], rest.get("device")), recipe, out=out, **rest)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

"""`fewstep sample`: pictures, or arrays, with the parameters that made them inside."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common, guides, pictures
from fewstep.cli.cache import Cache
from fewstep.cli.drawing import drawing, rows_of
from fewstep.core.words import number_of

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.scale.manifest import Shards

LISTS = ("--seeds",)  # options that take several values, as in `--seeds 3 7 11`
BATCH = 256
SHOWN = 16  # samples at most whose targets are shown


def sample(
    context: typer.Context,
    model: common.Model,
    n: Annotated[
        int | None, typer.Option("-n", help="How many samples (of each prompt) [default: 64, or one per seed].")
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="The class; without it a conditional model draws unconditionally.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="The caption, for models that read one; several by repeating it.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file of captions, one per line; # begins a comment.")
    ] = None,
    negative: common.Negative = None,
    guidance: common.Guidance = None,
    guide: guides.Guide = None,
    nasa: guides.Nasa = None,
    steer: guides.Steer = None,
    reward: guides.RewardName = None,
    cache: Cache = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="For a student: the model whose first steps come before its own."),
    ] = None,
    base_steps: Annotated[
        int | None, typer.Option(help="How many steps of --base [default: 1]; --steps then counts all evaluations.")
    ] = None,
    solver: common.Solver = None,
    steps: common.Steps = None,
    timesteps: common.Timesteps = None,
    nfe: common.Nfe = None,
    plan_file: common.PlanFile = None,
    init: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Noise put on --init, as a share of the grid, above 0 to 1 [default: 0.6; with --mask 1]."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="For --init: white is drawn anew, black stays as it is.")] = None,
    brownian: Annotated[
        bool, typer.Option("--brownian", help="Noise from one path per sample: more steps refine the same picture.")
    ] = False,
    size: common.Size = None,
    dtype: common.Dtype = None,
    tile: common.Tile = None,
    compiled: common.Compile = False,
    offload: common.Offload = False,
    download: common.Download = False,
    variant: common.Variant = None,
    lora: common.Lora = None,
    long_prompts: common.LongPrompts = False,
    out: Annotated[
        Path, typer.Option(help="A .png (one grid), a .gif (of clips), an .npz, or a folder (one PNG per sample).")
    ] = Path("samples.png"),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    seed: common.Seed = 0,
    seeds: Annotated[
        list[int] | None, typer.Option(help="A seed per sample, as in --seeds 3 7 11: each as --seed S -n 1 draws it.")
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(help=f"A .png for what each evaluation aims at, a row each, in the first {SHOWN} samples."),
    ] = None,
    ray: common.OnRay = None,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Draw samples from a model.

    Ctrl-C writes the samples that are done.

    Without --solver, --steps, --timesteps and --nfe a model that has a plan of its own (an accelerated one) uses it,
    any other takes ten evaluations of a universal plan. Sample i depends on --seed and i alone, not on -n; with several
    prompts, each gets the samples that it would get alone.

    With --ray many processes draw, on this machine or a cluster: the same samples, bit for bit on equal hardware. What
    is done lies in shards beside --out until all is; after a crash, or Ctrl-C, the same command goes on from there.

    \b
    Example:
        fewstep sample digits -n 64 --label 3 --steps 8 --solver unipc --timesteps karras --out threes.png
        fewstep sample shapes -n 16 --prompt "a green triangle above a red square" --guidance 2 --out scenes.png
        fewstep sample shapes --prompt "a red circle" --guide cfg:scale=4,clamp -n 16 --out circles.png
        fewstep sample shapes --prompt "a circle" --negative red --nasa 0.3 -n 16 --out not-red.png
        fewstep sample shapes --steer fk:particles=16,strength=30 --reward "soft-caption=a large red circle" -n 4
        fewstep sample shapes --prompt "a red circle" --steps 20 --cache deepcache:interval=2,order=2 -n 16
        fewstep sample sd-folder --prompts lines.txt -n 2 --init photo.png --strength 0.6 --out pictures
        fewstep sample digits-1 --base digits --base-steps 1 -n 64 --out varied.png
        fewstep sample shapes-4 --prompt "a red circle" -n 8 --targets on-the-way.png
        fewstep sample digits -n 100000 --ray --out digits.npz
    """
    used = common.Used()
    count = n if n is not None else len(seeds) if seeds else 64
    common.check_positive("-n", count)
    if seeds and (count != len(seeds) or seed or brownian):
        raise ValueError(f"--seeds names {len(seeds)} samples and their noise: leave -n, --seed and --brownian out")
    pictures.check_out(out, force)
    if targets is not None:
        _check_targets(targets, out, force, ray, steer)
    said = [*(prompt or []), *(pictures.read_prompts(prompts) if prompts is not None else [])]
    total = count * max(1, len(said))
    asked: dict[str, Any] = {
        "model": model, "n": count, "batch": BATCH, "label": label, "prompts": said, "negative": negative,
        "guidance": guidance, "guide": guide, "nasa": nasa, "steer": steer, "reward": reward, "cache": cache,
        "base_model": base, "base_steps": base_steps, "solver": solver,
        "steps": steps, "timesteps": timesteps, "nfe": nfe, "plan": plan_file and str(plan_file),
        "init": init and str(init), "strength": strength, "mask": mask and str(mask), "brownian": brownian,
        "seed": seed, "seeds": seeds, "device": device, "dtype": dtype, "size": size, "download": download,
        "offload": offload, "tile": tile, "compiled": compiled, "variant": variant, "lora": lora,
        "long_prompts": long_prompts,
    }  # fmt: skip
    batches = -(-total // BATCH)
    begin = time.perf_counter()
    images: Tensor | Shards
    aims: Tensor | None = None
    if ray is not None:
        images, about, calls = _in_shards(asked, total, out, ray, device)
    else:
        images, about, calls, aims = _here(asked, batches, out, SHOWN if targets is not None else 0)
    seconds, done = time.perf_counter() - begin, images.shape[0]
    facts: dict[str, Any] = {
        "fewstep": _version(),
        "command": pictures.command_line(
            context, ("out", "force", "as_json", "prompts", "targets"), {"prompt": said} if said else {}
        ),
        "model": model,
        "solver": about["solver"],
        "timesteps": about["plan"].get("timesteps"),
        "steps": about["plan"].get("steps"),
        "end": about["plan"].get("end"),
        "nfe": about["nfe"],
        "n": count,
        "seed": None if seeds else seed,
        "noise_version": about["noise_version"],
        "label": label,
        "prompt": said[0] if len(said) == 1 else said or None,
        "guidance": guidance,
        "device": about["device"],
        "dtype": about["dtype"],
    }
    optional = {
        "negative": negative,
        "guide": guide,
        "nasa": nasa,
        "steer": steer,
        "reward": reward,
        "cache": cache,
        "base": base,
        "seeds": seeds,
        "size": size,
        "mask": mask and str(mask),
    }
    facts |= {key: value for key, value in optional.items() if value}
    facts |= {"init": str(init), "strength": about["strength"]} if init is not None else {}
    facts |= {"plan": _text(plan_file)} if plan_file is not None else {}
    facts |= {"interrupted": done} if done < total else {}
    own = [
        ({"seed": s, "number": i} if seeds or len(said) > 1 else {}) | ({"prompt": text} if text else {})
        for text in said or [""]
        for s, i in rows_of(count, seed, seeds)
    ]
    pictures.write(out, images, tuple(about["value_range"]), facts, own)
    if targets is not None and aims is not None:
        pictures.write_rows(targets, aims, tuple(about["value_range"]), facts | {"shows": "x0 of each evaluation"})
    if ray is not None:
        images.remove()  # type: ignore[union-attr]  # they are shards
    measured = {"planned_nfe": about["nfe"], "actual_nfe": calls / batches, "seconds": seconds, "out": str(out)}
    if as_json:
        common.print_json(facts | measured | used.facts())
    else:
        made = f"{number_of(about['nfe'], 'evaluation')} planned and {measured['actual_nfe']:g} made"
        typer.echo(f"{done} samples in {seconds:.2f} s, {made}: {out}")
        used.say()
    if done < total:
        common.say(f"interrupted: {done} of {total} samples were done, and are in {out}")
        raise typer.Exit(130)


def _check_targets(targets: Path, out: Path, force: bool, ray: str | None, steer: str | None) -> None:
    """`ValueError` unless they can be seen, and written."""
    if targets.suffix.lower() != ".png" or targets.resolve() == out.resolve():
        raise ValueError(f"--targets is a grid, a .png beside --out, got {str(targets)!r}")
    if ray is not None or steer is not None:
        raise ValueError("--targets are of runs in this process, one a sample: leave --ray and --steer out")
    common.check_new_file(targets, force)


def _here(
    asked: dict[str, Any], batches: int, out: Path, shown: int
) -> tuple[Tensor, dict[str, Any], int, Tensor | None]:
    """The samples drawn in this process, those that are done where it is interrupted; what drew them; its calls; what
    each evaluation aimed at in the first samples, so many of them."""
    made = drawing(**asked)
    if made.model.facts.autoencoder is None and made.model.shape is not None:
        pictures.check_shape(out, made.model.shape)

    from fewstep.report.targets import Seen
    from fewstep.sampling.sample import Interrupted

    if shown:
        pictures.check_shown(made.model)
    shown = min(shown, made.total)
    seen = made.callback = Seen(shown) if shown else None

    stages = common.Stages()
    with stages.stage(f"{made.total} samples, {made.plan.name}", batches * made.plan.nfe) as advance:
        with common.counted(made.model, advance) as calls:
            try:
                images = made(0, made.total)
            except Interrupted as stop:  # what is done is kept
                images = stop.samples
    aims = None
    if seen is not None:
        told = made.model.check_condition(made.conditions(0, shown), shown, made.model.device)
        aims = seen.decoded(made.model, **told)
    return images, made.about | {"device": str(made.model.device)}, calls(), aims


def _in_shards(
    asked: dict[str, Any], total: int, out: Path, address: str, device: str | None
) -> tuple[Shards, dict[str, Any], int]:
    """The samples drawn by Ray, in a hidden folder beside `out`, what drew them, and the calls of all workers."""
    from fewstep.scale.ray import Ray
    from fewstep.scale.sampling import draw_shards
    from fewstep.scale.shards import Work

    executor = Ray(address, device)
    folder = out.resolve().parent / f".{out.name}.shards"
    work = Work("fewstep.cli.drawing:drawer", asked)
    with common.Stages().advanced(f"{total} samples, in batches", -(-total // BATCH)) as advance:
        try:
            shards = draw_shards(work, asked, total, folder, executor, BATCH, advance=advance)
        except KeyboardInterrupt:
            common.say(f"interrupted: what is done lies in {folder}; the same command goes on from there")
            raise
    assert shards.about is not None
    return shards, shards.about, sum(int(entry["calls"]) for entry in shards.facts)


def _version() -> str:
    from fewstep import __version__

    return __version__


def _text(plan: Path) -> str:
    """A plan's own JSON."""
    from fewstep.core.plan import Plan

    return Plan.load(plan).to_json()

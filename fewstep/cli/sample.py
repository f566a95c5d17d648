"""`fewstep sample`: pictures, or arrays, with the parameters that made them inside."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common, guides, pictures
from fewstep.cli.cache import Cache, cached

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.denoiser import Denoiser

LISTS = ("--seeds",)  # options that take several values, as in `--seeds 3 7 11`
BATCH = 256
STRENGTH = 0.6  # of a start from a picture where none is given


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
    steer: guides.Steer = None,
    reward: guides.RewardName = None,
    cache: Cache = None,
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
        Path, typer.Option(help="A .png (one grid), an .npz (arrays), or a folder (one PNG per sample).")
    ] = Path("samples.png"),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    seed: common.Seed = 0,
    seeds: Annotated[
        list[int] | None, typer.Option(help="A seed per sample, as in --seeds 3 7 11: each as --seed S -n 1 draws it.")
    ] = None,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Draw samples from a model.

    Ctrl-C writes the samples that are done.

    Without --solver, --steps, --timesteps and --nfe a model that has a plan of its own (an accelerated one) uses it,
    any other takes ten evaluations of a universal plan. Sample i depends on --seed and i alone, not on -n; with several
    prompts, each gets the samples that it would get alone.

    \b
    Example:
        fewstep sample digits -n 64 --label 3 --steps 8 --solver unipc --timesteps karras --out threes.png
        fewstep sample shapes -n 16 --prompt "a green triangle above a red square" --guidance 2 --out scenes.png
        fewstep sample shapes --prompt "a red circle" --guide cfg:scale=4,clamp -n 16 --out circles.png
        fewstep sample shapes --steer fk:particles=16,strength=30 --reward "soft-caption=a large red circle" -n 4
        fewstep sample shapes --prompt "a red circle" --steps 20 --cache deepcache:interval=2,order=2 -n 16
        fewstep sample sd-folder --prompts lines.txt -n 2 --init photo.png --strength 0.6 --out pictures
    """
    used = common.Used()
    count = n if n is not None else len(seeds) if seeds else 64
    common.check_positive("-n", count)
    if seeds and (count != len(seeds) or seed or brownian):
        raise ValueError(f"--seeds names {len(seeds)} samples and their noise: leave -n, --seed and --brownian out")
    pictures.check_out(out, force)
    said = [*(prompt or []), *(pictures.read_prompts(prompts) if prompts is not None else [])]
    base: Denoiser = common.open_model(
        model, device, dtype=dtype, size=size, download=download, offload=offload, tile=tile, compiled=compiled,
        variant=variant, lora=lora, long_prompts=long_prompts,
    )  # fmt: skip
    total = count * max(1, len(said))
    condition = _condition(base, label, said, count) | _pictures(base, init, mask, strength)
    base.check_condition(condition, total, base.device)
    opened = cached(guides.guided(base, guidance, negative, guide), cache)
    start, share = None, 1.0
    if init is not None and "picture" not in base.conditions:
        opened, start, share = _start(base, opened, init, mask, strength)
    elif init is None and (mask is not None or strength is not None):
        raise ValueError("--mask and --strength go with a picture to start from: give --init")
    if steer is not None and solver is None and plan_file is None:
        solver = "auto-sde"  # particles need noise
    plan = guides.steered(common.chosen_plan(opened, solver, steps, timesteps, nfe, plan_file, share), steer, reward)

    from fewstep import __version__
    from fewstep.core.noise import VERSION
    from fewstep.sampling.sample import Interrupted
    from fewstep.sampling.sample import sample as draw

    batches = -(-total // BATCH)
    stages = common.Stages()
    begin, done = time.perf_counter(), total
    rows = [(s, 0) for s in seeds] if seeds else [(seed, i) for i in range(count)]
    noise: dict[str, Any] = {"seed": seed} if not seeds and len(said) < 2 else {"seeds": rows * max(1, len(said))}
    if start is not None:
        noise["init"] = start.expand(total, *start.shape)
    with stages.stage(f"{total} samples, {plan.name}", batches * plan.nfe) as advance:
        with common.counted(opened, advance) as calls:
            try:
                images = draw(opened, total, plan=plan, batch_size=BATCH, brownian=brownian, **noise, **condition)
            except Interrupted as stop:  # what is done is kept
                images, done = stop.samples, len(stop.samples)
    seconds = time.perf_counter() - begin
    facts: dict[str, Any] = {
        "fewstep": __version__,
        "command": pictures.command_line(
            context, ("out", "force", "as_json", "prompts"), {"prompt": said} if said else {}
        ),
        "model": model,
        "solver": plan.name,
        "timesteps": plan.about.get("timesteps"),
        "steps": plan.about.get("steps"),
        "end": plan.about.get("end"),
        "nfe": plan.nfe,
        "n": count,
        "seed": None if seeds else seed,
        "noise_version": VERSION,
        "label": label,
        "prompt": said[0] if len(said) == 1 else said or None,
        "guidance": guidance,
        "device": str(base.device),
        "dtype": str(base.dtype).removeprefix("torch."),
    }
    optional = {
        "negative": negative,
        "guide": guide,
        "steer": steer,
        "reward": reward,
        "cache": cache,
        "seeds": seeds,
        "size": size,
        "mask": mask and str(mask),
    }
    facts |= {key: value for key, value in optional.items() if value}
    facts |= {"init": str(init), "strength": share} if init is not None else {}
    facts |= {"plan": plan.to_json()} if plan_file is not None else {}
    facts |= {"interrupted": done} if done < total else {}
    own = [
        ({"seed": s, "number": i} if seeds or len(said) > 1 else {}) | ({"prompt": text} if text else {})
        for text in said or [""]
        for s, i in rows
    ]
    pictures.write(out, images, opened.value_range or (-1.0, 1.0), facts, own)
    measured = {"planned_nfe": plan.nfe, "actual_nfe": calls() / batches, "seconds": seconds, "out": str(out)}
    if as_json:
        common.print_json(facts | measured | used.facts())
    else:
        made = f"{plan.nfe} evaluations planned and {measured['actual_nfe']:g} made"
        typer.echo(f"{done} samples in {seconds:.2f} s, {made}: {out}")
        used.say()
    if done < total:
        common.say(f"interrupted: {done} of {total} samples were done, and are in {out}")
        raise typer.Exit(130)


def _condition(model: Denoiser, label: int | None, prompts: list[str], n: int) -> dict[str, Any]:
    """What was asked for, by the name of the condition."""
    from fewstep.conditions.label import Label

    kind = model.conditions.get("label")
    if label is not None and isinstance(kind, Label) and label >= kind.classes:  # that index stands for no label
        raise ValueError(f"label {label} is out of range: 0 to {kind.classes - 1}; leave --label out for none")
    guides.check_reads(model, prompts[0] if prompts else None)
    asked: dict[str, Any] = {"label": label} if label is not None else {}
    if prompts:
        asked["text"] = prompts[0] if len(prompts) == 1 else [text for text in prompts for _ in range(n)]
    return asked


def _pictures(base: Denoiser, init: Path | None, mask: Path | None, strength: float | None) -> dict[str, Any]:
    """The pictures that go into the network of a model that reads some."""
    if "picture" not in base.conditions:
        return {}
    if init is None or (mask is None) == ("mask" in base.conditions) or strength is not None:
        wanted = "--init and --mask" if "mask" in base.conditions else "--init, and no --mask"
        raise ValueError(f"this model's network reads the picture itself: give {wanted}, without --strength")
    found = {"picture": pictures.read_picture(init, base)}
    return found | ({"mask": pictures.read_picture(mask, base, grey=True)} if mask is not None else {})


def _start(
    base: Denoiser, opened: Denoiser, init: Path, mask: Path | None, strength: float | None
) -> tuple[Denoiser, Tensor | None, float]:
    """The model (which keeps what the mask keeps), the picture to start from or None, and the strength."""
    share = strength if strength is not None else STRENGTH if mask is None else 1.0
    if not 0 < share <= 1 or (mask is None and share == 1):
        raise ValueError(f"--strength must be above 0 and below 1 (1 only with --mask), got {share:g}")
    picture = pictures.read_picture(init, base)
    if mask is not None:
        from fewstep.guidance.guide import guide

        opened = guide(opened, "known", picture=picture, mask=1 - pictures.read_picture(mask, base, grey=True))
    return opened, picture if share < 1 else None, share

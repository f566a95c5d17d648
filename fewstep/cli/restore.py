"""`fewstep restore`: pictures and arrays from measurements of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common, pictures
from fewstep.cli.spec import read_spec

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.conditions.degraded import Degraded
    from fewstep.core.denoiser import Denoiser
    from fewstep.operators.operator import Operator
    from fewstep.restoration.restore import Restored

LISTS = ("--compare",)  # options that take several values, as in `--compare ddrm pigdm`
GREYS = 255  # of a picture's file: the noise is also said in these


def restore(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A model, as 'fewstep sample' takes it.")] = None,
    measurement: Annotated[
        Path | None, typer.Argument(help="What was measured: an .npz with the array y, or a picture.")
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:value,option=value", help="What was done to it; of several, the first acts first."),
    ] = None,
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise, in the data's own units.")] = 0.0,
    method: Annotated[
        str | None, typer.Option(help="How, with its options: dps:zeta=0.5 (--list names all) [default: calibrated].")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Samples of each measurement.")] = 1,
    nfe: Annotated[int, typer.Option(help="Evaluations of the model.")] = 20,
    solver: common.Solver = None,
    timesteps: common.Timesteps = None,
    particles: Annotated[
        int | None, typer.Option(help="So many runs of each measurement as a filter, from which the samples are drawn.")
    ] = None,
    weight: Annotated[float, typer.Option(help="How much of the measurement counts, 0 to 1.")] = 1.0,
    start: Annotated[
        str | None,
        typer.Option(help="Begin late: at a level sigma / alpha, or at 'measurement', where that tells most."),
    ] = None,
    final: Annotated[str | None, typer.Option(help="'project' brings the result to the measurement.")] = None,
    degrade: Annotated[
        bool, typer.Option("--degrade", help="What is given is clean: measure it first, and score the result.")
    ] = False,
    compare: Annotated[
        list[str] | None, typer.Option(metavar="METHOD ...", help="Several methods, a line each.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="The methods: what each takes, costs, and how near its samples are.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="A .png (a row for each measurement), an .npz, or a folder (one PNG a sample).")
    ] = Path("restored.png"),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    seed: common.Seed = 0,
    device: common.Device = None,
    tile: common.Tile = None,
    as_json: common.Json = False,
) -> None:
    """Restore what was measured: samples of p(x | y) for y = A(x) + noise.

    What is given is the measurement, and nothing is degraded, unless --degrade asks for it.

    \b
    Example:
        fewstep restore digits y.npz --operator blur:gaussian,width=1 --operator downsample:2 --noise 0.05 -n 8
        fewstep restore digits photo.png --operator inpaint:mask.png --method ddnm --out filled.png
        fewstep restore digits clean.png --operator blur:motion,length=5 --noise 0.05 --degrade --out trial
        fewstep restore digits y.npz --operator sensing:16 --noise 0.05 --compare ddrm pigdm calibrated --out trial
        fewstep restore --list
    """
    if listed:
        return _list(as_json)
    if model is None or measurement is None:
        raise ValueError(
            "restore takes a model and a measurement: fewstep restore digits y.npz --operator downsample:2"
        )
    used = common.Used()
    for option, value in (("-n", n), ("--nfe", nfe)):
        common.check_positive(option, value)
    if compare and method:
        raise ValueError("--compare names the methods: leave --method out")
    pictures.check_out(out, force)
    opened = common.open_model(model, device, tile=tile)
    low, high = opened.value_range or (-1.0, 1.0)
    a = _operator(operator, opened)
    own = _own(opened) if a is None else None
    from fewstep.core.pictures import data_shape

    seen = a if own is None else own.measure
    shape = data_shape(opened) if degrade or seen is None else seen.out
    clean = pictures.read_batch(measurement, opened, shape, ": with --degrade a clean picture is measured first")
    y = clean
    if degrade and (a is not None or own is not None):
        y = a.measure(clean, noise, seed) if a is not None else own.measured(clean, seed)  # type: ignore[union-attr]
    rows: list[dict[str, Any]] = []
    best: Restored | None = None
    for named in compare or [method or "calibrated"]:
        name, options = read_spec(named, "--method")
        made = _restored(
            opened, y, a, noise, name, options, n, nfe, solver, timesteps, particles, weight, _level(start), final, seed
        )
        rows.append(_told(made, a, clean if degrade else None, (low, high)))
        best = made if best is None else best
        facts = _facts(context, model, operator, noise, made, seed)
        _write(_place(out, name if compare else None), made, y, (low, high), facts)
    if as_json:
        common.print_json({"model": model, "operator": str(a), "noise": noise, "rows": rows} | used.facts())
        return
    share = noise / (high - low)
    typer.echo(f"{model}: {a if a is not None else _learnt(own)}")
    if a is not None:
        typer.echo(
            f"noise {noise:g} in units of {low:g} to {high:g}: {share:.2%} of the range, {share * GREYS:.1f} greys"
        )
    common.print_table(list(rows[0]), [list(row.values()) for row in rows])
    used.say()


def _own(model: Denoiser) -> Degraded | None:
    """What a trained restorer was given."""
    from fewstep.conditions.degraded import Degraded

    found = model.conditions.get("y")
    return found if isinstance(found, Degraded) else None


def _learnt(own: Degraded | None) -> str:
    """What a restorer was trained for, in words."""
    if own is None:
        return "conditioned on its measurement"
    words = own.operator if isinstance(own.operator, str) else " then ".join(own.operator)
    return f"trained for {words}, noise {own.noise if not isinstance(own.noise, tuple) else list(own.noise)}"


def _level(start: str | None) -> float | str | None:
    try:
        return None if start is None else float(start)
    except ValueError:
        return start


def _operator(words: list[str] | None, model: Denoiser) -> Operator | None:
    if not words:
        if "y" in model.conditions:
            return None
        raise ValueError("say what was measured, with --operator, such as downsample:2 or inpaint:mask.png")
    from fewstep.core.pictures import data_shape
    from fewstep.operators.spec import read_operator

    return read_operator(words, "--operator").fit(data_shape(model) or ())


def _restored(model: Denoiser, y: Tensor, a: Operator | None, noise: float, name: str, options: dict[str, Any],
              n: int, nfe: int, solver: Any, timesteps: Any, particles: int | None, weight: float,
              start: float | str | None, final: str | None, seed: int) -> Restored:  # fmt: skip
    from fewstep.restoration.restore import restore as run

    found: Restored = run(
        model, y, a, noise, method=None if a is None else name, options=options, n=n, nfe=nfe, solver=solver,
        timesteps=timesteps, particles=particles, weight=weight, start=start, final=final, seed=seed, report=True,
    )  # fmt: skip
    return found


def _told(made: Restored, a: Operator | None, clean: Tensor | None, span: tuple[float, float]) -> dict[str, Any]:
    """A line of the table."""
    row: dict[str, Any] = {"method": made.method, "evaluations": made.nfe, "passes": made.passes}
    row |= {"seconds": round(made.seconds, 2)}
    if made.residual is not None:
        row |= {"residual": round(float(made.residual.mean()), 4), "noise alone": made.noise}
    row |= {"spread": round(float(made.std.mean()), 4)}
    if clean is not None:
        from fewstep.metrics.energy_score import energy_score
        from fewstep.metrics.psnr import psnr

        row |= {"psnr of the mean": round(psnr(made.mean, clean, span).value, 2)}
        row |= {"energy score": round(energy_score(made.samples, clean).value, 4)}
    return row


def _facts(
    context: typer.Context, model: str, operator: list[str] | None, noise: float, made: Restored, seed: int
) -> dict[str, Any]:
    from fewstep import __version__

    return {
        "fewstep": __version__,
        "command": pictures.command_line(context, ("out", "force", "as_json"), {}),
        "model": model,
        "operator": operator,
        "noise": noise,
        "method": made.method,
        "nfe": made.nfe,
        "seed": seed,
    }


def _place(out: Path, name: str | None) -> Path:
    """Where a method's samples go: with several, its name is added."""
    if name is None:
        return out
    return out / name if pictures.kind_of(out) == "folder" else out.with_name(f"{out.stem}-{name}{out.suffix}")


def _write(out: Path, made: Restored, y: Tensor, span: tuple[float, float], facts: dict[str, Any]) -> None:
    kind = pictures.kind_of(out)
    if kind == ".png":
        pictures.write_rows(out, _beside(made, y), span, facts)
    else:
        pictures.write(out, made.samples.flatten(0, 1), span, facts)


def _beside(made: Restored, y: Tensor) -> Tensor:
    """Each measurement (where it is a picture of the same size), its samples, and with several their mean."""
    import torch

    parts = [made.samples]
    if y.shape[1:] == made.samples.shape[2:]:
        parts.insert(0, y[:, None].to(made.samples))
    if made.samples.shape[1] > 1:
        parts.append(made.mean[:, None])
    return torch.cat(parts, 1)


def _list(as_json: bool) -> None:
    from fewstep.restoration.listing import PROBLEM, UNIT, listing, read_evidence

    rows = listing(read_evidence())
    if as_json:
        common.print_json(rows)
        return
    known = any(row["distance"] is not None for row in rows)
    names = [name for name in rows[0] if name != "distance" or known]
    common.print_table(names, [[_cell(row[name]) for name in names] for row in rows])
    typer.echo("passes: of the network, an evaluation, with the method's own options; a vector product is two")
    if known:
        typer.echo(f"distance: {UNIT}; {PROBLEM}")


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float | int) else str(value)

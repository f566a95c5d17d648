"""`fewstep encode`: pictures in few bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import common, pictures
from fewstep.cli.spec import read_spec


def encode(
    model: Annotated[str, typer.Argument(help="A model, as 'fewstep sample' takes it.")],
    source: Annotated[Path, typer.Argument(metavar="PICTURES", help="An .npz of pictures, or a picture.")],
    method: Annotated[str, typer.Option(help="ddcm or relic, with its options: ddcm:entries=256,nfe=40.")] = "ddcm",
    operator: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:value,option=value", help="What is given was measured by it: decode restored ones."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file.")] = Path("encoded.fsc"),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Compress pictures with a model, which decompresses them again.

    \b
    Example:
        fewstep encode digits digits.npz --method ddcm:entries=256 --out digits.fsc
        fewstep encode digits photo.png --method relic:step=0.5 --out photo.fsc
        fewstep encode digits small.npz --operator downsample:2 --out restored.fsc
    """
    common.check_new_file(out, force)
    name, options = read_spec(method, "--method")
    opened = common.open_model(model, device)
    from fewstep.core.pictures import data_shape
    from fewstep.restoration.codec import encode as run

    a, shape = None, data_shape(opened) or ()
    if operator:
        from fewstep.operators.spec import read_operator

        a = read_operator(operator, "--operator").fit(shape)
    given = pictures.read_batch(source, opened, shape if a is None else a.out)
    made = run(opened, given, name, operator=a, options=options)
    out.parent.mkdir(parents=True, exist_ok=True)
    made.save(out)
    each = made.bits / made.pictures
    facts = {"model": model, "method": name, "pictures": made.pictures, "bits": made.bits, "bits a picture": each}
    facts |= {"bits a number": each / math.prod(shape), "bytes": out.stat().st_size, "out": str(out)}
    if as_json:
        common.print_json(facts)
        return
    typer.echo(
        f"{out}: {made.pictures} pictures by {name}, {each:.1f} bits each ({facts['bits a number']:.3g} a number)"
    )

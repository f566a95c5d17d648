"""`fewstep compress` and `fewstep decompress`: pictures in few bits, and pictures again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import common, pictures
from fewstep.cli.spec import read_spec


def compress(
    model: Annotated[str, typer.Argument(help="A model, as 'fewstep sample' takes it.")],
    source: Annotated[Path, typer.Argument(metavar="PICTURES", help="An .npz of pictures, or a picture.")],
    method: Annotated[str, typer.Option(help="ddcm or relic, with its options: ddcm:entries=256,nfe=40.")] = "ddcm",
    operator: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:value,option=value", help="What is given was measured by it: decode restored ones."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file.")] = Path("compressed.fsc"),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Compress pictures with a model, which decompresses them again.

    \b
    Example:
        fewstep compress digits digits.npz --method ddcm:entries=256 --out digits.fsc
        fewstep compress digits photo.png --method relic:step=0.5 --out photo.fsc
        fewstep compress digits small.npz --operator downsample:2 --out restored.fsc
    """
    common.check_new_file(out, force)
    name, options = read_spec(method, "--method")
    opened = common.open_model(model, device)
    from fewstep.restoration.codec import compress as run

    a = None
    if operator:
        from fewstep.operators.spec import read_operator

        a = read_operator(operator, "--operator").fit(opened.shape or ())
    given = pictures.read_batch(source, opened, opened.shape if a is None else a.out)
    made = run(opened, given, name, operator=a, options=options)
    out.parent.mkdir(parents=True, exist_ok=True)
    made.save(out)
    each = made.bits / made.pictures
    facts = {"model": model, "method": name, "pictures": made.pictures, "bits": made.bits, "bits a picture": each}
    facts |= {"bits a number": each / math.prod(opened.shape or (1,)), "bytes": out.stat().st_size, "out": str(out)}
    if as_json:
        common.print_json(facts)
        return
    typer.echo(
        f"{out}: {made.pictures} pictures by {name}, {each:.1f} bits each ({facts['bits a number']:.3g} a number)"
    )


def decompress(
    model: Annotated[str, typer.Argument(help="The model that the pictures were compressed with.")],
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What 'fewstep compress' wrote.")],
    out: Annotated[Path, typer.Option(help="A .png (all in a grid), an .npz, or a folder (one PNG a picture).")] = Path(
        "decompressed.png"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Make pictures again of what 'fewstep compress' wrote.

    \b
    Example:
        fewstep decompress digits digits.fsc --out digits.png
    """
    pictures.check_out(out, force)
    opened = common.open_model(model, device)
    from fewstep import __version__
    from fewstep.restoration.codec import Compressed
    from fewstep.restoration.codec import decompress as run

    held = Compressed.load(source)
    # By its name, so that messages say which file it is.
    x = run(opened, source)
    facts = {"fewstep": __version__, "model": model, "method": held.method, "pictures": len(x)}
    pictures.write(out, x, opened.value_range or (-1.0, 1.0), facts)
    if as_json:
        common.print_json(facts | {"out": str(out)})
        return
    typer.echo(f"{out}: {len(x)} pictures by {held.method}")

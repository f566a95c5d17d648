"""`fewstep decode`: pictures of what `fewstep encode` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import common, pictures


def decode(
    model: Annotated[str, typer.Argument(help="The model that the pictures were compressed with.")],
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What 'fewstep encode' wrote.")],
    out: Annotated[Path, typer.Option(help="A .png (all in a grid), an .npz, or a folder (one PNG a picture).")] = Path(
        "decoded.png"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Make pictures again of what 'fewstep encode' wrote.

    \b
    Example:
        fewstep decode digits digits.fsc --out digits.png
    """
    pictures.check_out(out, force)
    opened = common.open_model(model, device)
    from fewstep import __version__
    from fewstep.restoration.codec import Compressed
    from fewstep.restoration.codec import decode as run

    held = Compressed.load(source)
    x = run(opened, source)  # by its name, which messages then say
    facts = {"fewstep": __version__, "model": model, "method": held.method, "pictures": len(x)}
    pictures.write(out, x, opened.value_range or (-1.0, 1.0), facts)
    if as_json:
        common.print_json(facts | {"out": str(out)})
        return
    typer.echo(f"{out}: {len(x)} pictures by {held.method}")

"""`fewstep studio`: a model in the browser."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fewstep.cli import common
from fewstep.cli.serve import KEY, Host, MaxBatch, Port, made


def studio(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="A model as for 'fewstep sample'.")] = "digits",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    max_batch: MaxBatch = 64,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
    dtype: common.Dtype = None,
    download: common.Download = False,
    variant: common.Variant = None,
    lora: common.Lora = None,
    device: common.Device = None,
) -> None:
    """Draw, compare, inpaint and accelerate on a page in the browser.

    Pictures form step by step; two samplers are set beside each other from the same noises; a plan of few evaluations
    is looked for while you watch. Each picture is downloaded with the command that makes it again. The routes of
    'fewstep serve' are there as well.

    \b
    Example:
        fewstep studio
        fewstep studio shapes --open
    """
    from fewstep.serving.guards import read_keys
    from fewstep.serving.run import bound, needed, server
    from fewstep.serving.studio import create_studio
    from fewstep.serving.studio import needed as gradio

    gradio()
    needed()
    setup = made([model], max_batch, dtype=dtype, download=download, variant=variant, lora=lora, device=device)
    service, keys = setup.service(), read_keys(None, os.environ.get(KEY))
    listening = bound(host, port)
    app, hunts = create_studio(service)

    def started(address: str) -> None:
        common.say(f"the studio of {service.default} is at {address}; Ctrl-C ends it")
        if host not in ("127.0.0.1", "::1", "localhost"):
            common.say("anybody who reaches this address may use the page")
        if open_page:
            import webbrowser

            webbrowser.open(address)

    try:
        server(service, app, listening, keys, started=started).run(sockets=[listening])
    finally:
        hunts.close()

"""`fewstep serve`: models behind OpenAI's images API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import common

if TYPE_CHECKING:
    from fewstep.serving.setup import Setup

KEY = "FEWSTEP_API_KEY"  # the environment's

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes one that is free.")]
MaxBatch = Annotated[int, typer.Option(help="Samples that a network call may hold.")]
Exact = Annotated[
    bool, typer.Option("--exact", help="Small calls are filled up, so that no bit depends on who shares them.")
]


def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Models as for 'fewstep sample', or NAME=FOLDER.")
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_batch: MaxBatch = 64,
    max_samples: Annotated[int, typer.Option(help="Pictures that one request may ask for.")] = 64,
    max_steps: Annotated[int, typer.Option(help="Evaluations of the network that one picture may take.")] = 250,
    queue: Annotated[int, typer.Option(help="Pictures that may be asked for at a time; more are answered 429.")] = 1024,
    deadline: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds to finish what runs, after SIGTERM.")] = 30.0,
    memory: Annotated[
        float | None, typer.Option(help="GiB of weights; models used least lately make room [default: no bound].")
    ] = None,
    exact: Exact = False,
    api_key: Annotated[
        Path | None,
        typer.Option(help=f"A file with the keys that open the door, one per line [default: {KEY}, or none]."),
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="A folder of low-rank adapters (.safetensors) that requests may name.")
    ] = None,
    adapter_by: Annotated[
        int, typer.Option(help="Evaluations that a request makes at most before its adapter has been read.")
    ] = 2,
    route: Annotated[
        str | None,
        typer.Option(metavar="FOLDER[:cost=C]", help="Choose model and steps by 'fewstep route fit', at this cost."),
    ] = None,
    halves: Annotated[
        int, typer.Option(help="Processes or devices that share the rows of a call, as guidance's two halves.")
    ] = 1,
    ray: common.OnRay = None,
    replicas: Annotated[int, typer.Option(help="With --ray: servers behind the one address.")] = 2,
    dtype: common.Dtype = None,
    download: common.Download = False,
    variant: common.Variant = None,
    lora: common.Lora = None,
    device: common.Device = None,
) -> None:
    """Serve models over HTTP.

    OpenAI's images API at /v1, with fewstep's own fields beside; a page with all of them at /docs. Requests with
    different solvers, steps, guidance and starts share network calls; each picture is the one that 'fewstep sample'
    draws for the same seed.

    \b
    Example:
        fewstep serve digits shapes
        curl -s 127.0.0.1:8000/v1/images/generations -H 'content-type: application/json' \\
            -d '{"model": "digits", "label": 3, "seed": 7, "steps": 8}'
        fewstep serve digits --ray --replicas 2 --exact
    """
    from fewstep.serving.run import needed

    needed()
    setup = made(
        models, max_batch, max_samples, max_steps, queue, deadline, memory, exact, adapters, adapter_by, route, halves,
        dtype, download, variant, lora, device,
    )  # fmt: skip
    if grace < 0:
        raise ValueError(f"--grace must be at least 0, got {grace:g}")
    from fewstep.serving.app import create_app
    from fewstep.serving.guards import read_keys
    from fewstep.serving.run import bound, server

    keys = read_keys(api_key, os.environ.get(KEY))

    def started(address: str) -> None:
        common.say(f"{', '.join(setup.sources)} at {address}/v1 ({address}/docs shows how); Ctrl-C ends it")
        if host not in ("127.0.0.1", "::1", "localhost") and not keys:
            common.say("anybody who reaches this address may use it: give --api-key FILE to ask for a key")

    if ray is not None:
        from fewstep.serving.replicas import deploy

        return deploy(setup, host, port, address=ray, replicas=replicas, keys=keys, started=started)
    service = setup.service()
    listening = bound(host, port)
    with service.models.using(service.default):  # a model that is none is known before anybody asks
        pass

    server(service, create_app(service), listening, keys, grace, started=started).run(sockets=[listening])


def made(
    models: list[str],
    max_batch: int = 64,
    max_samples: int = 64,
    max_steps: int = 250,
    queue: int = 1024,
    deadline: float = 600.0,
    memory: float | None = None,
    exact: bool = False,
    adapters: Path | None = None,
    adapter_by: int = 2,
    route: str | None = None,
    halves: int = 1,
    dtype: str | None = None,
    download: bool = False,
    variant: str | None = None,
    lora: list[str] | None = None,
    device: str | None = None,
) -> Setup:
    """What the options describe."""
    from fewstep.serving.served import Limits
    from fewstep.serving.setup import Setup

    router, cost = read_route(route)
    return Setup(
        tuple(models),
        common.load_options(device, dtype=dtype, download=download, variant=variant, lora=lora),
        max_batch,
        Limits(max_samples, max_steps, queue, deadline),
        None if memory is None else int(memory * 2**30),
        exact,
        halves,
        adapters,
        adapter_by,
        router,
        cost,
    )


def read_route(text: str | None) -> tuple[Path | None, float | None]:
    """A router's folder and the cost, of "FOLDER:cost=0.1"."""
    from fewstep.cli.spec import read_spec

    if text is None:
        return None, None
    folder, options = read_spec(text, "--route")
    cost = options.pop("cost", 0.0)
    if options or isinstance(cost, bool) or not isinstance(cost, int | float) or cost < 0:
        raise ValueError(f"--route takes FOLDER:cost=C with C of at least 0, got {text!r}")
    return Path(folder), float(cost)

"""The routes of a server: OpenAI's images API, health, metrics. Needs fastapi, which `fewstep serve` asks for."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from fewstep import __version__
from fewstep.serving.counters import Collector
from fewstep.serving.engine import Closed, Full, Late
from fewstep.serving.guards import retry_after
from fewstep.serving.models import Unknown
from fewstep.serving.pictures import from_base64
from fewstep.serving.protocol import Edit, ErrorBody, Generation, error
from fewstep.serving.service import Drawing, Service

OWN = ("guidance", "plan")  # with which a request may ask for what is not finite
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (400, 401, 404, 408, 413, 429, 500, 503)
}
LOG = logging.getLogger("fewstep.serving")
BLOCKING = 32  # requests that may be read, or wait for a model to load, at a time


class Gone(Exception):
    """The client went away."""


def create_app(service: Service) -> FastAPI:
    """The application that serves what `service` offers."""
    pool = ThreadPoolExecutor(BLOCKING, thread_name_prefix="fewstep request")

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.models.close)
        pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="fewstep", version=__version__, lifespan=life, summary="Diffusion and flow models in few steps."
    )
    app.state.service = service
    _handlers(app)

    async def begin(asked: dict[str, Any], sent: dict[str, bytes], partial: Any = None) -> Drawing:
        asked = {name: value for name, value in asked.items() if value is not None}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, lambda: service.begin(asked, sent, partial))

    async def answer(request: Request, asked: dict[str, Any], sent: dict[str, bytes], kind: str) -> Response:
        if asked.get("stream"):
            return await _streamed(request, begin, asked, sent, kind)
        drawing = await begin(asked, sent)
        try:
            found = await _unless_gone(request, drawing, asked)
        finally:
            drawing.cancel()
        data = []
        for png, (seed, number) in zip(found, drawing.wanted.seeds, strict=True):
            if asked.get("response_format") == "url":
                where = {"url": str(request.url_for("file", name=service.kept.add(png)))}
            else:
                where = {"b64_json": base64.b64encode(png).decode()}
            data.append(where | {"seed": seed, "number": number})
        return JSONResponse({"created": int(time.time()), "data": data, **_about(drawing)})

    async def told(work: Awaitable[Response]) -> Response:
        try:
            return await work
        except Exception as failed:
            status, body, headers = _failure(failed)
            if status == 500:
                LOG.error("a request failed", exc_info=failed)
            return JSONResponse(body, status, headers)

    @app.post("/v1/images/generations", responses=ERRORS, summary="Draw pictures.")
    async def generations(request: Request, body: Generation) -> Response:
        asked = body.model_dump()
        pictures = {name: asked.pop(name) for name in ("init", "mask")}
        sent = {name: from_base64(text, name) for name, text in pictures.items() if text is not None}
        return await told(answer(request, asked, sent, "image_generation"))

    @app.post("/v1/images/edits", responses=ERRORS, summary="Draw a picture anew, or the part that a mask names.")
    async def edits(request: Request, form: Annotated[Edit, Form()]) -> Response:
        asked = form.model_dump(exclude={"image", "mask"}) | {"edits": True}
        sent = {"init": await form.image.read()}
        if form.mask is not None:
            sent["mask"] = await form.mask.read()
        return await told(answer(request, asked, sent, "image_edit"))

    @app.get("/v1/images/files/{name}.png", responses=ERRORS, summary="A picture that was asked for by its address.")
    async def file(name: str) -> Response:
        found = service.kept.get(name)
        if found is None:
            return JSONResponse(error("there is no such picture, or it was too long ago"), 404)
        return Response(found, media_type="image/png")

    @app.get("/v1/models", responses=ERRORS, summary="What is served.")
    async def models() -> Any:
        return {"object": "list", "data": [service.models.describe(name) for name in service.models.sources]}

    @app.get("/v1/models/{name}", responses=ERRORS, summary="One model.")
    async def model(name: str) -> Any:
        if name not in service.models.sources:
            return JSONResponse(error(f"there is no model {name[:100]!r}", code="model_not_found"), 404)
        return service.models.describe(name)

    @app.get("/healthz", summary="Whether the process answers.")
    async def healthz() -> Any:
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": ErrorBody}}, summary="Whether it takes work.")
    async def readyz() -> Any:
        if service.closing:
            return JSONResponse(error("the server is shutting down", "server_error"), 503)
        return {"status": "ready", "loaded": service.models.loaded}

    @app.get("/metrics", response_class=PlainTextResponse, summary="Counts, in Prometheus' text form.")
    async def metrics() -> Response:
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(Collector(lambda: service.models.counters, service.models.queues))
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _about(drawing: Drawing) -> dict[str, Any]:
    """What an answer says beside its pictures."""
    shape = drawing.running.served.shape or (0, 0, 0)
    return {
        "model": drawing.running.name,
        "size": f"{shape[2]}x{shape[1]}",
        "output_format": "png",
        "nfe": drawing.nfe,
        "solver": drawing.solver,
        "seconds": time.monotonic() - drawing.job.started,
    }


async def _unless_gone(request: Request, drawing: Drawing, asked: dict[str, Any]) -> list[bytes]:
    """The pictures, while the client waits for them."""
    result = asyncio.ensure_future(asyncio.wrap_future(drawing.job.result))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Gone
        return await _result(result, asked)
    finally:
        gone.cancel()
        result.cancel()


async def _result(result: Any, asked: dict[str, Any]) -> list[bytes]:
    try:
        found: list[bytes] = await result
    except ValueError as failed:
        if "not finite" in str(failed) and not any(asked.get(name) is not None for name in OWN):
            raise RuntimeError(str(failed)) from None
        raise
    return found


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(
    request: Request, begin: Callable[..., Any], asked: dict[str, Any], sent: dict[str, bytes], kind: str
) -> StreamingResponse:
    """Partial pictures, then whole ones, as server-sent events."""
    loop = asyncio.get_running_loop()
    # Estimates as they come, None when all is done, and `Gone` when nobody listens any more.
    queue: asyncio.Queue[tuple[int, int, bytes] | None | type[Gone]] = asyncio.Queue()

    def partial(index: int, number: int, png: bytes) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (index, number, png))

    drawing = await begin(asked, sent, partial)
    drawing.job.result.add_done_callback(lambda _: loop.call_soon_threadsafe(queue.put_nowait, None))

    async def events() -> AsyncIterator[bytes]:
        about = {"created_at": int(time.time()), "quality": "auto", "background": "opaque", **_about(drawing)}
        gone = asyncio.ensure_future(_disconnected(request))
        gone.add_done_callback(lambda _: queue.put_nowait(Gone))
        try:
            while (found := await queue.get()) is not None:
                if not isinstance(found, tuple):
                    return
                index, number, png = found
                own = {"b64_json": base64.b64encode(png).decode(), "partial_image_index": number, "index": index}
                yield _event(f"{kind}.partial_image", about | own)
            try:
                pngs = await _result(asyncio.wrap_future(drawing.job.result), asked)
            except Exception as failed:
                _, told, _ = _failure(failed)
                yield _event("error", told)
                return
            about["seconds"] = time.monotonic() - drawing.job.started
            for index, (png, (seed, number)) in enumerate(zip(pngs, drawing.wanted.seeds, strict=True)):
                own = {"b64_json": base64.b64encode(png).decode(), "seed": seed, "number": number, "index": index}
                yield _event(f"{kind}.completed", about | own)
            yield b"data: [DONE]\n\n"
        finally:
            gone.cancel()
            drawing.cancel()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()


def _failure(failed: BaseException) -> tuple[int, Any, dict[str, str]]:
    """The status, the body and the headers that a failure is answered with."""
    if isinstance(failed, Full):
        return 429, error(str(failed), "rate_limit_error", code="queue_full"), retry_after(failed.seconds)
    if isinstance(failed, Late):
        return 408, error(str(failed), code="deadline"), {}
    if isinstance(failed, Closed):
        return 503, error(str(failed), "server_error"), retry_after(30)
    if isinstance(failed, Unknown):
        return 404, error(_line(failed), code="model_not_found", param="model"), {}
    if isinstance(failed, Gone | asyncio.CancelledError):
        return 499, error("the client went away"), {}
    if isinstance(failed, ValueError):
        return 400, error(_line(failed)), {}
    # What went wrong inside is not the client's to read.
    return 500, error(f"the model failed ({type(failed).__name__})", "server_error"), {}


def _line(failed: BaseException) -> str:
    text = " ".join(str(failed).split())
    return text if len(text) <= 400 else f"{text[:397]}..."


def _handlers(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, failed: RequestValidationError) -> Response:
        first = failed.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        param = ".".join(where)[:100] or None
        what = {"extra_forbidden": "unknown field", "json_invalid": "the body is no JSON"}.get(first["type"])
        message = what or str(first["msg"]).removeprefix("Value error, ")
        return JSONResponse(error(f"{param}: {message}" if param and what != "the body is no JSON" else message,
                                  param=param, code=str(first["type"])), 400)  # fmt: skip

    @app.exception_handler(HTTPException)
    async def http(_: Request, failed: HTTPException) -> Response:
        return JSONResponse(error(str(failed.detail)), failed.status_code, failed.headers)

    @app.exception_handler(ValueError)
    async def ours(_: Request, failed: Exception) -> Response:
        status, told, headers = _failure(failed)
        return JSONResponse(told, status, headers)

    @app.exception_handler(Exception)
    async def unknown(_: Request, failed: Exception) -> Response:
        return JSONResponse(_failure(failed)[1], 500)

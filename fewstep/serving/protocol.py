"""What clients send: OpenAI's images API, with fewstep's own fields beside. Needs fastapi."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, StrictBool

MOST = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=MOST)]


class Common(BaseModel):
    """The fields of both routes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = Field(None, max_length=200, description="A model that is served; by default the first.")
    n: int | None = Field(None, ge=1, description="How many pictures [1, or one per seed].")
    size: str | None = Field(None, max_length=20, description="'auto', or the model's own WIDTHxHEIGHT.")
    response_format: Literal["b64_json", "url"] | None = None
    partial_images: int | None = Field(None, ge=0, le=50, description="With stream: earlier estimates of each picture.")
    negative: str | None = Field(None, description="A caption that guidance keeps away from.")
    guidance: float | None = Field(None, ge=0, le=1000, description="Scale of classifier-free guidance; 1 is none.")
    solver: str | None = Field(None, max_length=100)
    timesteps: str | None = Field(None, max_length=100, description="A timestep rule by name.")
    steps: int | None = Field(None, ge=1)
    nfe: int | None = Field(None, ge=1, description="Instead of steps: at most so many evaluations of the network.")
    seed: Seed | None = Field(None, description="Picture i is sample i of this seed [a random one].")
    strength: float | None = Field(None, ge=0, le=1, description="Noise on the picture to start from.")
    deadline: float | None = Field(None, gt=0, description="Seconds after which nobody wants the pictures any more.")
    adapter: str | None = Field(None, max_length=200, description="A low-rank adapter of the server's.")
    cost: float | None = Field(None, ge=0, description="With --route: what the dearest cost is worth, in quality.")
    # Fields of OpenAI's that make no difference here; only the values that a picture of ours meets are taken.
    user: str | None = Field(None, max_length=1000)
    safety_identifier: str | None = Field(None, max_length=1000)
    quality: Literal["auto", "standard"] | None = None
    style: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_format: Literal["png"] | None = None


class Generation(Common):
    """The body of `POST /v1/images/generations`."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        json_schema_extra={"examples": [{"prompt": "", "n": 1, "seed": 7, "steps": 4}]},
    )

    prompt: str = Field("", description="A caption, for models that read one.")
    stream: StrictBool | None = False
    label: int | list[int] | None = Field(None, description="A class, for models that take one; or one for each.")
    seeds: list[Seed] | None = Field(None, min_length=1, description="Instead of seed: one for each picture.")
    plan: dict[str, Any] | None = Field(None, description="A plan, as plan.json holds it.")
    init: str | None = Field(None, description="A picture to start from, in base64.")
    mask: str | None = Field(None, description="Of init, in base64: white or transparent is drawn anew.")


class Edit(Common):
    """The form of `POST /v1/images/edits`."""

    image: UploadFile
    mask: UploadFile | None = None
    prompt: str = ""
    stream: bool | None = False
    label: int | None = None


def error(message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None) -> Any:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ErrorBody(BaseModel):
    """What every answer of 400 and above holds."""

    error: dict[str, str | None]

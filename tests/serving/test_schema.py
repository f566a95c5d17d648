"""Whatever fits the server's own description of its interface, and much that does not, never ends in a 5xx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fewstep as fs

pytest.importorskip("schemathesis")


@pytest.mark.slow
def test_no_request_that_schemathesis_makes_up_ends_in_a_server_error(tmp_path):
    from serving.http import live

    from fewstep.serving.models import Models
    from fewstep.serving.served import Limits
    from fewstep.serving.service import Service

    models = Models({"digits": "digits", "shapes": "shapes"}, fs.load)
    with live(Service(models, Limits(samples=2, steps=8, deadline=20.0))) as running:
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json",
            "--checks", "not_a_server_error,content_type_conformance,response_schema_conformance",
            "--max-examples", "60", "--seed", "1", "--workers", "2", "--request-timeout", "60",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        assert running.client.get("/healthz").status_code == 200

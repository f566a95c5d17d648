"""Ray as the executor: real workers that are killed, a driver that is killed, and addresses where no Ray is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.scale import ray as module
from fewstep.scale.manifest import read_manifest
from fewstep.scale.ray import Ray, check_address, imported
from fewstep.scale.sampling import draw_shards, sample_shards
from fewstep.scale.shards import Work

ROOT = Path(module.__file__).parents[2]
N, LABEL, STEPS = 1300, 3, 8


def words(out, address="local"):
    """The command that draws N samples."""
    asked = ["digits", "-n", N, "--label", LABEL, "--steps", STEPS, "--out", out, "--ray", address]
    return [sys.executable, "-m", "fewstep", "sample", *map(str, asked)]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def wait_for_shards(folder, least, process=None):
    """The manifest as soon as it lists so many shards."""
    for _ in range(6000):
        with contextlib.suppress(ValueError):
            found = read_manifest(folder)
            if len(found["shards"]) >= least:
                return found
        assert process is None or process.poll() is None, process.communicate()
        threading.Event().wait(0.05)
    raise AssertionError(f"{folder} never had {least} shards")


def in_order(manifest, total):
    """Whether every sample is there once."""
    rows = [row for entry in manifest["shards"] for row in range(entry["begin"], entry["end"])]
    return rows == list(range(total))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs Ray: pip install 'fewstep\[ray\]'"):
        Ray()


@pytest.mark.parametrize("address", ["here", "10.0.0.1", "ray://head", ":6379", "head:", "head:six"])
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match=f"HOST:PORT or ray://HOST:PORT, got '{address}'"):
        check_address(address)


@pytest.fixture
def port():
    """A port on which something listens that never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_closed_port_is_said_at_once(port, scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    with pytest.raises(ValueError, match=f"no Ray at {scheme}127.0.0.1:{closed}: Connection refused"):
        check_address(f"{scheme}127.0.0.1:{closed}")


def test_what_does_not_answer_is_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(module, "ANSWER", 0.3)
    monkeypatch.setattr(module, "PROBE", "import time; time.sleep(60)")
    with pytest.raises(ValueError, match=f"what listens at 127.0.0.1:{port} does not answer as a Ray within 0.3 s"):
        check_address(f"127.0.0.1:{port}")
    monkeypatch.setattr(module, "PROBE", "raise SystemExit('versions differ')")
    with pytest.raises(ValueError, match=f"no Ray at 127.0.0.1:{port}: versions differ"):
        check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    "options, message",
    [({"workers": 0}, "workers must be"), ({"tries": 0}, "tries must be"), ({"device": "cuda:1"}, "GPU of its own")],
)
def test_bad_options(options, message):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=message):
        Ray("local", **options)


@pytest.mark.parametrize(
    "resources, device, workers, room, needs",
    [
        ({"CPU": 8.0}, None, None, 8, {"num_cpus": 1.0}),
        ({"CPU": 8.0}, None, 3, 3, {"num_cpus": 1.0}),
        ({"CPU": 8.0, "GPU": 2.0}, None, None, 2, {"num_gpus": 1.0, "num_cpus": 4.0}),
        ({"CPU": 8.0, "GPU": 2.0}, "cpu", None, 8, {"num_cpus": 1.0}),
        ({"CPU": 1.0, "GPU": 2.0}, "cuda", None, 2, {"num_gpus": 1.0, "num_cpus": 0.0}),
    ],
)
def test_room_for_workers(resources, device, workers, room, needs):
    pytest.importorskip("ray")
    assert Ray("local", device, workers)._room(resources) == (room, needs)


def test_no_room():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="no GPU"):
        Ray("local", "cuda")._room({"CPU": 2.0})
    with pytest.raises(ValueError, match="no CPU"):
        Ray("local")._room({})


class Fragile:
    """Rows of ones, by processes that die on sample 4: the first so many times, as files count."""

    def __init__(self, folder: str, deaths: int, error: bool = False) -> None:
        self.about, self.folder, self.deaths, self.error = {}, Path(folder), deaths, error

    def __call__(self, begin, end):
        if self.error:
            raise ValueError(f"no sample {begin} today")
        if begin <= 4 < end and len(died := list(self.folder.glob("died*"))) < self.deaths:
            (self.folder / f"died{len(died)}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones((end - begin, 1), np.float32), {"threads": torch.get_num_threads()}


@pytest.fixture(scope="module")
def two_cores():
    """A Ray of two cores in this process, which finds this file."""
    ray = imported()
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), path])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    os.environ["PYTHONPATH"] = path


@pytest.mark.slow
def test_a_shard_whose_worker_dies_is_drawn_again_and_not_for_ever(two_cores, tmp_path):
    def run(name, deaths, tries, error=False):
        work = Work("scale.test_ray:Fragile", {"folder": str(tmp_path), "deaths": deaths, "error": error})
        return draw_shards(work, {"name": name}, 12, tmp_path / name, Ray("local", tries=tries), 2)

    found = run("once", 2, 3)
    assert torch.equal(torch.cat(list(found)), torch.ones(12, 1)) and [entry["shard"] for entry in found.lost] == [2, 2]
    assert {entry["threads"] for entry in found.facts} == {1}
    assert len({entry["worker"] for entry in found.facts}) > 1
    with pytest.raises(RuntimeError, match="2 workers died on samples 4 to 5"):
        run("never", 99, 2)
    assert not any(entry["begin"] == 4 for entry in read_manifest(tmp_path / "never")["shards"])
    with pytest.raises(ValueError, match="^no sample .* today$"):
        run("error", 0, 2, error=True)


@pytest.mark.slow
def test_a_killed_worker_changes_no_bit(two_cores, tmp_path):
    """`kill -9` of a worker that is at work."""
    killed = []

    def kill():
        worker = wait_for_shards(tmp_path / "s", 2)["shards"][0]["worker"]
        killed.append(worker)
        os.kill(int(worker.split()[-1]), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    asked = {"batch_size": 64, "label": LABEL, "steps": STEPS, "seed": 5}
    shards = sample_shards("digits", N, tmp_path / "s", executor=Ray("local"), **asked)
    thread.join()
    assert [entry["worker"] for entry in shards.lost] == killed
    assert in_order(read_manifest(tmp_path / "s"), N)
    assert len({entry["worker"] for entry in shards.facts}) == 3  # two, and the one in the place of the dead
    torch.manual_seed(0)
    assert torch.equal(torch.cat(list(shards)), fs.sample(fs.load("digits"), N, **asked))


@pytest.mark.slow
def test_a_killed_driver_is_resumed_by_the_same_command(tmp_path):
    out, folder = tmp_path / "x.npz", tmp_path / ".x.npz.shards"
    first = subprocess.Popen(words(out), env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    before = wait_for_shards(folder, 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = read_manifest(folder)
    assert 2 <= len(before["shards"]) < 6 and not out.exists()
    times = {entry["file"]: (folder / entry["file"]).stat().st_mtime_ns for entry in before["shards"]}

    asked = [*words(out), "--seed", "9"]
    other = subprocess.run(asked, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 2 and "another job: seed is 0 there and 9 here" in other.stderr

    kept = {}
    done = subprocess.Popen(words(out), env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while done.poll() is None:  # until the samples are in the file, the shards that were there stay as they were
        for name in times:
            with contextlib.suppress(OSError):
                kept[name] = (folder / name).stat().st_mtime_ns
        threading.Event().wait(0.02)
    assert done.returncode == 0 and kept == times and not folder.exists()
    with np.load(out) as file:
        images = torch.from_numpy(file["images"]).movedim(-1, 1)
    wanted = fs.sample(fs.load("digits"), N, label=LABEL, steps=STEPS)
    assert torch.equal(images, wanted.clamp(-1, 1))


@pytest.mark.slow
def test_figures_of_workers_are_those_of_one_machine(tmp_path):
    """The command as it is, on a Ray of its own: metrics of both rounds."""
    asked = ["evaluate", "digits", "-n", "600", "--steps", "3", "--json", "--device", "cpu"]
    asked += ["--metrics", "frechet,precision-recall,accuracy", "--features", "digits"]
    found = []
    for more in ([], ["--ray", "local"]):
        command = [sys.executable, "-m", "fewstep", *asked, *more]
        done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["figures"])
    here, there = found
    assert there["frechet"]["value"] == pytest.approx(here["frechet"]["value"], rel=1e-9)
    for name in ("precision-recall", "accuracy", "validation_frechet"):
        assert there[name] == here[name]


@pytest.mark.slow
def test_two_nodes_by_their_address(tmp_path):
    """The command connects to a cluster of two small nodes, and one of their workers is killed."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        out = tmp_path / "pictures"
        run = subprocess.Popen(
            words(out, cluster.address), env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        workers = {e["worker"] for e in wait_for_shards(tmp_path / ".pictures.shards", 3, run)["shards"]}
        os.kill(int(sorted(workers)[0].split()[-1]), signal.SIGKILL)
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
        assert sorted(os.listdir(out)) == [f"{i:05d}.png" for i in range(N)]
        assert os.listdir(tmp_path) == ["pictures"]
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_an_open_port_without_a_ray(port):
    """As it is: Ray itself would wait for two minutes."""
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="does not answer as a Ray within 20 s"):
        check_address(f"127.0.0.1:{port}")

"""One process and two give the same gradient and the same weights, for every method."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench import names

JOB = Path(__file__).parent / "two_processes.py"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(out, rank, world, port):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    out.mkdir(exist_ok=True)
    with open(out / f"{rank}.log", "w") as log:
        return subprocess.Popen([sys.executable, str(JOB), str(out), *names()], env=env, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both jobs, all methods: processes are started once, because importing costs more than training."""
    folder = tmp_path_factory.mktemp("processes")
    port = free_port()
    jobs = [start(folder / "two", rank, 2, port) for rank in range(2)] + [start(folder / "one", 0, 1, port)]
    try:
        codes = [job.wait(timeout=600) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    logs = "\n".join(p.read_text()[-3000:] for p in sorted(folder.glob("*/*.log")))
    assert codes == [0, 0, 0], logs
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_one_process_equals_two(results, name):
    one, two = (torch.load(results / k / f"{name}.pt", weights_only=True) for k in ("one", "two"))
    assert one["gradient"].keys() == two["gradient"].keys() and one["gradient"]
    scale = max(float(g.norm()) for g in one["gradient"].values())
    assert scale > 0
    for key, gradient in one["gradient"].items():
        error = float((gradient - two["gradient"][key]).norm()) / max(float(gradient.norm()), 1e-6 * scale)
        assert error < 1e-10, f"gradient of {key} differs by {error:.1e}"
    for key, weight in one["weights"].items():
        # two processes count batches of a norm once each
        error = float((weight.double() - two["weights"][key].double()).abs().max()) if weight.numel() else 0.0
        assert error < 1e-8, f"{key} differs by {error:.1e} after 20 steps"

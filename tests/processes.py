"""Start a script on several gloo processes of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_processes(script: Path, arguments: Sequence[str], world: int, logs: Path, timeout: float = 600) -> None:
    """Run `script` in `world` processes; raises with the end of their logs when one fails."""
    port, jobs, files = free_port(), [], []
    for rank in range(world):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        files.append(logs / f"{script.stem}.{world}.{rank}.log")
        with open(files[-1], "w") as log:
            jobs.append(subprocess.Popen([sys.executable, str(script), *arguments], env=env, stdout=log, stderr=log))
    try:
        codes = [job.wait(timeout=timeout) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    if any(codes):
        raise AssertionError("\n".join(f"{f.name}:\n{f.read_text()[-3000:]}" for f in files))

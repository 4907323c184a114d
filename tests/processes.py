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


def torchrun(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    return place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def srun(rank: int, world: int, port: int) -> dict[str, str]:
    """What SLURM's srun tells a process; the port comes from the number of the job."""
    step = {"SLURM_STEP_NUM_TASKS": str(world), "SLURM_NTASKS": str(world), "SLURM_STEP_ID": "0"}
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": str(port)}
    return step | place | {"SLURM_STEP_NODELIST": "localhost", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}


def run_processes(
    script: Path, arguments: Sequence[str], world: int, logs: Path, timeout: float = 600, launcher=torchrun, status=0
) -> None:
    """Run `script` in `world` processes; raises with the end of their logs when one ends otherwise than with
    `status`."""
    port, jobs, files = free_port(), [], []
    for rank in range(world):
        env = {**os.environ, "OMP_NUM_THREADS": "1"} | launcher(rank, world, port)
        files.append(logs / f"{script.stem}.{world}.{rank}.log")
        with open(files[-1], "w") as log:
            jobs.append(subprocess.Popen([sys.executable, str(script), *arguments], env=env, stdout=log, stderr=log))
    try:
        codes = [job.wait(timeout=timeout) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    if any(code != status for code in codes):
        raise AssertionError("\n".join(f"{f.name}, {codes}:\n{f.read_text()[-3000:]}" for f in files))

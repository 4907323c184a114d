"""Which process of a run this is, as its launcher says: torchrun, SLURM's srun, or none. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

PORTS = 15_000, 15_000
"""First port and number of ports that jobs are spread over, below those that systems hand out by themselves."""


@dataclass(frozen=True)
class Place:
    """One process among `world`; `local` is its number on its machine, `meeting` where all of them meet."""

    rank: int = 0
    local: int = 0
    world: int = 1
    meeting: str = "env://"


def place(env: Mapping[str, str] | None = None) -> Place:
    """The place of this process.

    torchrun's variables count first (RANK, LOCAL_RANK, WORLD_SIZE). Otherwise those of SLURM, when srun started the
    process: a batch script itself has SLURM_NTASKS and SLURM_PROCID too, but only a step has SLURM_STEP_NUM_TASKS.

    Args:
        env: the variables; None: those of the process.
    """
    env = os.environ if env is None else env
    if "RANK" in env or "WORLD_SIZE" in env:
        rank, local, world = (int(env.get(k, d)) for k, d in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))
        return Place(rank, local, world)
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks == 1 or "SLURM_PROCID" not in env:
        return Place()
    meeting = f"tcp://{_address(env)}:{_port(env)}"
    return Place(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", "0")), tasks, meeting)


def _address(env: Mapping[str, str]) -> str:
    """Where the first task runs: on the first machine of the step. The machine that srun was called on comes last,
    since it may be one that only submits jobs."""
    if "MASTER_ADDR" in env:
        return env["MASTER_ADDR"]
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if env.get(name):
            return first_host(env[name])
    return env.get("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"


def _port(env: Mapping[str, str]) -> int:
    """From the numbers of job and step, so that two on one machine do not meet at the same."""
    if "MASTER_PORT" in env:
        return int(env["MASTER_PORT"])
    first, count = PORTS
    digits = [env.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    job, step = (int(d) if d.isdigit() else 0 for d in digits)
    return first + (job * 31 + step) % count


def first_host(hosts: str) -> str:
    """The first of a SLURM host list: "node[003-007,9],login1" -> "node003"."""
    first = re.split(r",(?![^\[]*\])", hosts.strip(), maxsplit=1)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)

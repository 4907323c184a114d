"""Which process this is: torchrun, SLURM's srun, or none."""

import subprocess
import sys
from pathlib import Path

import pytest

from eyespot.train.place import PORTS, Place, first_host, place

sys.path.insert(0, str(Path(__file__).parent.parent))
from processes import srun, torchrun

BATCH_SCRIPT = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = BATCH_SCRIPT | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "2"}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node[003-007,9],login1", "node003"),
        ("a1,a[2-3]", "a1"),
        ("n[1,3]-ib,m", "n1-ib"),
        ("rack[0-3]node[07,9]", "rack0node07"),
    ],
)
def test_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


def test_alone():
    assert place({}) == Place(0, 0, 1)
    assert place(BATCH_SCRIPT).world == 1, "a batch script waits for no others"
    assert place(STEP | {"SLURM_STEP_NUM_TASKS": "1"}).world == 1


def test_torchrun_counts_first():
    assert place(STEP | torchrun(5, 8, 29500)) == Place(5, 5, 8, "env://")


def test_a_step_of_srun():
    here = place(STEP | {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"})
    assert (here.rank, here.local, here.world) == (3, 1, 4)
    address, port = here.meeting.removeprefix("tcp://").split(":")
    assert address == "gpu07", "where the first task runs, not where srun was called"
    assert PORTS[0] <= int(port) < sum(PORTS)
    other = place(STEP | {"SLURM_JOB_ID": "78", "SLURM_STEP_NODELIST": "gpu[07-08]"})
    assert other.meeting != here.meeting, "two jobs on one machine do not meet"
    assert place(STEP | {"SLURM_JOB_NODELIST": "a[1-2]"}).meeting.startswith("tcp://a1:")
    assert place(STEP | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}).meeting.startswith("tcp://10.0.0.1:")


def test_what_is_said_outright_counts():
    given = STEP | {"MASTER_ADDR": "head", "MASTER_PORT": "1234", "SLURM_STEP_NODELIST": "gpu[07-08]"}
    assert place(given).meeting == "tcp://head:1234"


@pytest.mark.parametrize("launcher", [torchrun, srun])
def test_of_several_only_the_first_speaks(launcher, monkeypatch):
    from eyespot.cli import speaks

    for rank, speaking in ((0, True), (1, False)):
        for name, value in launcher(rank, 2, 29500).items():
            monkeypatch.setenv(name, value)
        assert speaks() == speaking


def test_torch_is_not_needed():
    code = "import sys; from eyespot.train.place import place; place(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

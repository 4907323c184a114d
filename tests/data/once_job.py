"""The job behind test_once.py: trains on a source and records which samples every step has read.

python once_job.py OUT DATA WORKERS STOP      (alone, or on several gloo processes; STOP interrupts before that step)
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
from toy import Toy

from eyespot.data import Data, open_source
from eyespot.process import rank, synchronise_batch_norm, world_size
from eyespot.runs import RunFolder
from eyespot.train.fit import fit
from eyespot.train.launch import processes
from eyespot.train.plan import Plan

BATCH, STEPS = 6, 12


class Recording(Toy):
    def __init__(self, stop: int):
        super().__init__()
        self.stop, self.read = stop, {}

    def views(self, batch, draws):
        if draws.step == self.stop:
            raise KeyboardInterrupt
        self.read[draws.step] = [batch["index"].tolist(), batch["image"][:, 0, 0, 0].tolist(), batch["key"].tolist()]
        return super().views(batch, draws)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, path, workers, stop = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with processes(torch.device("cpu")):
        data = Data(open_source(path), workers=workers, cache_bytes=0)
        method = Recording(stop)
        if world_size() > 1:
            synchronise_batch_norm(method)
        plan = Plan(Toy.recipe, 1e-3, BATCH, len(data) / BATCH, STEPS, None, log_every=1, checkpoint_seconds=0.0)
        try:
            fit(method, data, plan, RunFolder(out), resume=True)
        except KeyboardInterrupt:
            assert stop < STEPS
        (out / f"read.{stop}.{rank()}.json").write_text(json.dumps(method.read))

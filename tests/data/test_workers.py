"""Worker processes: what is meant for the run leaves them alone."""

import multiprocessing
import os
import signal

import torch

from eyespot.data import Data, open_source


def test_signals_to_the_whole_group_do_not_end_the_workers(tmp_path, pictures):
    pictures.write(tmp_path, {f"{k:02d}.png": pictures.picture(k) for k in range(24)})
    data = Data(open_source(tmp_path), cache_bytes=0, workers=2)
    batches = [[k, k + 1] for k in range(22)]
    before = {child.pid for child in multiprocessing.active_children()}
    stream = data.stream(batches)
    got = [next(stream)]
    workers = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
    got += list(stream)
    assert torch.equal(torch.stack([b["index"] for b in got]), torch.tensor(batches))

"""Worker processes: what is meant for the run leaves them alone."""

import multiprocessing
import os
import signal

import pytest
import torch

from eyespot.data import Data, open_source, workers


def test_signals_to_the_whole_group_do_not_end_the_workers(tmp_path, pictures):
    pictures.write(tmp_path, {f"{k:02d}.png": pictures.picture(k) for k in range(24)})
    data = Data(open_source(tmp_path), cache_bytes=0, workers=2)
    batches = [[k, k + 1] for k in range(22)]
    before = {child.pid for child in multiprocessing.active_children()}
    stream = data.stream(batches)
    got = [next(stream)]
    children = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(children) == 2
    for worker in children:
        assert worker.pid is not None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
    got += list(stream)
    assert torch.equal(torch.stack([b["index"] for b in got]), torch.tensor(batches))


@pytest.mark.skipif(not workers.HOLDS, reason="signals cannot be held on this system")
def test_a_signal_before_a_worker_is_ready_does_not_end_it(tmp_path, pictures, monkeypatch):
    """The worker gets its signals before it has run a line of its own."""
    real = workers._leave_signals

    def late(worker):
        for number in (signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), number)
        real(worker)

    monkeypatch.setattr(workers, "_leave_signals", late)
    pictures.write(tmp_path, {f"{k:02d}.png": pictures.picture(k) for k in range(8)})
    stream = Data(open_source(tmp_path), cache_bytes=0, workers=2).stream([[k, k + 1] for k in range(6)])
    assert [batch["index"].tolist() for batch in stream] == [[k, k + 1] for k in range(6)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), "the main process hears them again"

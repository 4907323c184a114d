"""The job behind the one = two test: trains every method named and saves the first gradient and the last weights.

python two_processes.py OUT METHOD...      (started once alone, and once on two gloo processes)
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench import make, plan_of, stripes

from eyespot.process import is_main, rank, synchronise_batch_norm, world_size
from eyespot.train.fit import build_engine, fetch
from eyespot.train.launch import processes
from eyespot.train.plan import schedule_batches
from eyespot.train.step import training_step


def train(name, data):
    method = make(name, data)
    if world_size() > 1:
        synchronise_batch_norm(method)
    plan = plan_of(method, data, precision="float64", steps=20)
    engine = build_engine(method, plan, world_size())
    first, update = {}, method.before_step

    def keep():
        if not first:
            first.update({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
        update()

    method.before_step = keep
    losses = []
    wheres = schedule_batches(method, len(data), plan, 0, plan.steps, rank(), world_size())
    for where, batch, _ in fetch(data, wheres, engine):
        losses.append(sum(training_step(engine, batch, where).terms.values()))
    return {"gradient": first, "weights": method.state_dict(), "losses": torch.stack(losses)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, methods = Path(sys.argv[1]), sys.argv[2:]
    with processes(torch.device("cpu")):
        pictures = stripes()
        for method_name in methods:
            result = train(method_name, pictures)
            if is_main():
                torch.save(result, out / f"{method_name}.pt")

"""The job behind one = two for methods of pictures with captions: python pair_processes.py OUT METHOD

Saves the first gradient and the weights after a few steps in OUT/METHOD-WORLD.pt.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from captioned import lines, make

from eyespot.process import is_main, rank, synchronise_batch_norm, world_size
from eyespot.train.fit import build_engine, fetch
from eyespot.train.launch import processes
from eyespot.train.plan import Plan, schedule_batches
from eyespot.train.step import training_step


def train(name, data):
    method = make(name, data)
    if world_size() > 1:
        synchronise_batch_norm(method)
    plan = Plan(method.recipe, 1e-3, 8, 6, 8, 8 / 6, precision="float64", parallel="ddp")
    engine = build_engine(method, plan, world_size())
    first, update = {}, engine.method.before_step

    def keep():
        if not first:
            first.update({n: p.grad.clone() for n, p in engine.method.named_parameters() if p.grad is not None})
        update()

    engine.method.before_step = keep
    for where, batch, _ in fetch(data, schedule_batches(method, len(data), plan, 0, 8, rank(), world_size()), engine):
        training_step(engine, batch, where)
    return {"gradient": first, "weights": engine.method.state_dict()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes(torch.device("cpu")):
        result = train(sys.argv[2], lines())
        if is_main():
            torch.save(result, Path(sys.argv[1]) / f"{sys.argv[2]}-{world_size()}.pt")

"""The job behind the one = two test: trains every method named and saves the first gradient and the last weights.

python two_processes.py OUT [--kinds=FOLDER] METHOD...      (started once alone, and once on two gloo processes)

With --kinds the methods learn from the made data of kinds.py in FOLDER, in float64 only.

OUT/<how>-<precision>/<method>.pt, where how is "one", "ddp" or "fsdp".
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench import make, plan_of, stripes
from kinds import kind_of, made

from eyespot.process import is_main, rank, synchronise_batch_norm, world_size
from eyespot.train.fit import build_engine, fetch
from eyespot.train.launch import processes
from eyespot.train.parallel import whole_tensor
from eyespot.train.plan import schedule_batches
from eyespot.train.step import training_step

ONE = [("one", "float64"), ("one", "float32")]
TWO = [("ddp", "float64"), ("ddp", "float32"), ("fsdp", "float64")]


def train(name, data, how, precision, kinds=None):
    if kinds is not None:
        data, method = made(name, kinds / kind_of(name), kinds / f"{how}-{world_size()}-{name}")
    else:  # in single precision an activation whose input is almost 0 may flip: with these weights none is that near
        method = make(name, data, seed=1 if precision == "float32" else 0)
    if world_size() > 1:
        synchronise_batch_norm(method)
    steps = 20 if kinds is None else 8
    plan = plan_of(method, data, precision=precision, steps=steps, parallel="fsdp" if how == "fsdp" else "ddp")
    if precision == "float32":  # and should one flip all the same, large steps would make much of it
        plan = replace(plan, lr=0.1 * plan.lr)
    engine = build_engine(method, plan, world_size())
    first, update = {}, engine.method.before_step

    def keep():
        if not first:
            named = [(n, p.grad) for n, p in engine.method.named_parameters() if p.grad is not None]
            first.update({n: whole_tensor(g).clone() for n, g in named})
        update()

    engine.method.before_step = keep
    losses = []
    wheres = schedule_batches(method, len(data), plan, 0, plan.steps, rank(), world_size())
    for where, batch, _ in fetch(data, wheres, engine):
        losses.append(sum(training_step(engine, batch, where).terms.values()))
    return {"gradient": first, "weights": engine.parallel.gather().state_dict(), "losses": torch.stack(losses)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, methods = Path(sys.argv[1]), [a for a in sys.argv[2:] if not a.startswith("--")]
    made_data = next((Path(a.partition("=")[2]) for a in sys.argv[2:] if a.startswith("--kinds=")), None)
    with processes(torch.device("cpu")):
        pictures = stripes() if made_data is None else None
        for kind, numbers in ONE if world_size() == 1 else TWO:
            if made_data is not None and numbers != "float64":
                continue
            folder = out / f"{kind}-{numbers}"
            folder.mkdir(exist_ok=True)
            for method_name in methods:
                result = train(method_name, pictures, kind, numbers, made_data)
                if is_main():
                    torch.save(result, folder / f"{method_name}.pt")

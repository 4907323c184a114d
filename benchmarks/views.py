"""Views a second on one core: eyespot's batched views beside torchvision v2's pipeline, one picture at a time.

    python benchmarks/views.py [--json FILE] [--repeats N]

The view is SimCLR's without blur: random resized crop (antialiased), mirror, colour jitter (0.4, 0.4, 0.4, 0.1) with
probability 0.8, grey with probability 0.2, uint8 in, float32 out. torchvision runs as a worker of a DataLoader runs it,
picture by picture, and is not charged for stacking its views into a batch, which eyespot's time includes. Both sides
run on one thread, alternately, in this process; a ratio is the median over the repeats of torchvision's time over ours
in the same repeat, in CPU seconds, so that another program on the machine costs both alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from eyespot.draws import Draws
from eyespot.views.image import ViewSpec, view

JITTER = (0.4, 0.4, 0.4, 0.1)
CASES = [((32, 32), 32, 256), ((96, 96), 96, 128), ((256, 256), 128, 64), ((300, 400), 128, 64), ((256, 256), 224, 32)]
CASES += [((300, 400), 224, 32)]
TARGETS = {32: 10.0, 128: 3.0, 224: 3.0}
"""Least ratio of the linear mode by side of the view."""


def torchvision_pipeline(size: int) -> Callable[[Tensor], Tensor]:
    pipeline: Callable[[Tensor], Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return pipeline


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(source: tuple[int, int], size: int, batch: int, repeats: int) -> dict[str, object]:
    """Microseconds a view and ratios of one case."""
    images = torch.randint(0, 256, (batch, 3, *source), dtype=torch.uint8)
    pipeline, specs = torchvision_pipeline(size), {m: ViewSpec(size, color=m) for m in ("linear", "exact")}
    step = iter(range(10**6))

    def batched(mode: str) -> Tensor:
        return view(images, Draws(epoch=next(step), index=np.arange(batch)), specs[mode]).pixels

    runs: dict[str, Callable[[], object]] = {
        "torchvision": lambda: [pipeline(image) for image in images],
        "linear": lambda: batched("linear"),
        "exact": lambda: batched("exact"),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):  # the first round warms up
        for name in sorted(runs, reverse=repeat % 2 == 0):
            spent = seconds(runs[name]) / batch
            if repeat >= 0:
                taken[name].append(spent)
    result: dict[str, object] = {"source": list(source), "view": size, "batch": batch}
    result["microseconds"] = {name: round(1e6 * statistics.median(t), 1) for name, t in taken.items()}
    for mode in specs:
        ratios = sorted(a / b for a, b in zip(taken["torchvision"], taken[mode], strict=True))
        result[mode] = {
            "ratio": round(statistics.median(ratios), 2),
            "quartiles": [round(float(q), 2) for q in np.quantile(ratios, [0.25, 0.75])],
        }
    return result


def line(case: dict[str, object]) -> str:
    height, width = case["source"]
    spent, target = case["microseconds"], TARGETS.get(case["view"])
    text = f"{height}x{width} -> {case['view']}".ljust(16)
    text += "".join(f"{spent[name]:>14.0f}" for name in ("torchvision", "linear", "exact"))
    text += f"{case['linear']['ratio']:>10.1f}x{case['exact']['ratio']:>9.1f}x"
    return text + (f"   target {target:.0f}x" if target else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there")
    parser.add_argument("--repeats", type=int, default=15, help="paired measurements of each case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("source -> view   torchvision        linear         exact    linear     exact   (us a view; ratios)")
    cases = []
    for source, size, batch in CASES:
        cases.append(measure(source, size, batch, options.repeats))
        print(line(cases[-1]), flush=True)
    if options.json is not None:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "threads": 1,
            "clock": "process CPU seconds",
            "repeats": options.repeats,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "cases": cases,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

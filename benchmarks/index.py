"""How long a start takes on many files, and how much memory: the first time, and once the listing is kept.

    python benchmarks/index.py --files 1000000 --json benchmarks/results/index.json

Files are made in a temporary folder (hard links to a few small pictures, or tars of them) and removed again. Each start
is a fresh process. `seconds` is from the path to data that can be read, without importing libraries; `memory_mb` is the
peak of the resident memory meanwhile above what the libraries take, `peak_mb` the peak with them (a build of PyTorch
for GPUs takes about 500 MB as soon as it is imported).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

LINKS = 50_000
"""Hard links to one file; file systems allow about 65,000."""
START = """
import json, sys, time
from pathlib import Path

import torch
from eyespot.data import Data, open_source
from eyespot.data import folder  # noqa: F401 - what an opened path imports late

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, started = memory("VmRSS"), time.perf_counter()
data = Data(open_source(sys.argv[1]), cache_bytes=0, workers=0)
seconds = time.perf_counter() - started
peak = memory("VmHWM")
data.batch([0, len(data) // 2, len(data) - 1])
print(json.dumps({"samples": len(data), "classes": len(data.class_names), "seconds": round(seconds, 3),
                  "memory_mb": round(peak - before, 1), "peak_mb": round(peak, 1)}))
"""


def picture(seed: int) -> bytes:
    """A small PNG."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(root: Path, files: int, folders: int) -> None:
    """Class folders of pictures that share their contents."""
    originals = root.parent / "originals"
    originals.mkdir()
    for k in range(files // LINKS + 1):
        (originals / f"{k}.png").write_bytes(picture(k))
    each = -(-files // folders)
    for k in range(folders):
        folder = root / f"class_{k:05d}"
        folder.mkdir(parents=True)
        for i in range(k * each, min(files, (k + 1) * each)):
            os.link(originals / f"{i // LINKS}.png", folder / f"picture_{i:08d}.png")


def make_tars(root: Path, files: int, folders: int) -> None:
    """Tars of as many samples, each a picture and its label."""
    root.mkdir()
    parts = np.array_split(np.arange(files), max(1, files // 10_000))
    for k, part in enumerate(parts):
        with tarfile.open(root / f"shard-{k:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            raw = picture(k)
            for i in part.tolist():
                for name, content in ((f"{i:08d}.png", raw), (f"{i:08d}.cls", b"%d" % (i % folders))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def start(root: Path, cache: Path) -> dict[str, float]:
    """One start in a fresh process."""
    env = {**os.environ, "EYESPOT_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", START, str(root)], env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(kind: str, files: int, folders: int) -> dict[str, dict[str, float]]:
    """The first and the second start."""
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name) / "data", Path(name) / "cache"
        (make_folder if kind == "folder" else make_tars)(root, files, folders)
        time.sleep(2.5)  # a folder that has just changed is not kept
        result = {which: start(root, cache) for which in ("first", "second")}
        result["cache_mb"] = round(sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 1e6, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--tar-files", type=int, default=100_000, help="samples in tars; 0 leaves them out")
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = {"folder": options.files} | ({"tars": options.tar_files} if options.tar_files else {})
    results = {}
    for kind, files in kinds.items():
        results[kind] = measure(kind, files, options.folders)
        print(kind, json.dumps(results[kind]), flush=True)
    record = {
        "what": "seconds and memory from a path to data that can be read, the first time and with a kept index",
        "files": kinds,
        "folders": options.folders,
        "results": results,
        "second_under_2_s_and_300_mb": all(
            r["second"]["seconds"] < 2 and r["second"]["memory_mb"] < 300 for r in results.values()
        ),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "command": f"python benchmarks/index.py --files {options.files} --tar-files {options.tar_files} "
        f"--folders {options.folders}",
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The documentation is true: the commands, files and Python of its pages are run, on small pictures."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eyespot.cli import main
from eyespot.errors import Stopped
from eyespot.reproduce import jobs
from eyespot.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from clips import write_folder
from page_reader import Reader, blocks, lines, shortened

DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = {"own-loop"}
"""Pages whose blocks have a test of their own below."""
PAGES = sorted(
    page.stem
    for page in DOCS.glob("*.md")
    if page.stem not in ELSEWHERE and {"sh", "python"} & {block.language for block in blocks(page)}
)
TASKS = {"start", "pretrain", "channels", "weights", "evaluation", "compare", "embed", "export", "adapt"}
TASKS |= {"many-machines", "reproductions", "writing-a-method", "which-method", "index", "video", "sound"}


def sounds(folder: Path, count: int) -> None:
    """Tones in two class folders."""
    import soundfile

    for i in range(count):
        into = folder / ("low" if i % 2 else "high")
        into.mkdir(parents=True, exist_ok=True)
        wave = 0.3 * np.sin(np.arange(8000) * (0.1 if i % 2 else 0.9) * (1 + 0.01 * i))
        soundfile.write(into / f"{i:02d}.wav", wave, 16000)


def pictures(folder: Path, count: int, seed: int) -> None:
    """Class folders `stripes` and `dots` of small pictures."""
    rng = np.random.default_rng(seed)
    for kind in ("stripes", "dots"):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            rows, columns = np.mgrid[:40, :36] // rng.integers(2, 5) % 2
            pattern = rows if kind == "stripes" else rows ^ columns
            colours = rng.integers(0, 256, (2, 3))
            Image.fromarray(colours[pattern].astype(np.uint8)).save(folder / kind / f"{i:02}.png")


def masked(folder: Path, count: int) -> None:
    """`image/` beside `mask/` in train and test: a bright and a dark part, and 255 between them."""
    rng = np.random.default_rng(7)
    for split, i in ((split, i) for split in ("train", "test") for i in range(count)):
        mask = np.full((40, 36), 11, np.uint8)
        edge = int(rng.integers(10, 30))
        mask[:, :edge], mask[:, edge], mask[:3] = 3, 255, 5
        noise = rng.normal(0, 9, (40, 36, 3)) + np.where(mask == 3, 190, 60)[:, :, None]
        for kind, array in (("image", noise.clip(0, 255).astype(np.uint8)), ("mask", mask)):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / split / kind / f"{i}.png")


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What pages speak of and a reader has: pictures, labels, a run, a checkpoint from elsewhere."""
    import torchvision

    folder = tmp_path_factory.mktemp("things")
    for name, count in {"photos": 12, "labeled": 12, "train": 12, "test": 5}.items():
        pictures(folder / name, count, seed=len(name))
    masked(folder / "street", 8)
    write_folder(folder / "clips", each=6)
    sounds(folder / "sounds", 12)
    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    state = {f"module.encoder_q.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state}, folder / "moco.pth.tar")
    # a network that all export formats know
    words = f"pretrain simclr --data {folder / 'photos'} --out {folder / 'runs' / 'a'} --backbone vit_micro"
    assert main(shortened(words.split())) == 0
    return folder


@pytest.fixture
def desk(things, tmp_path, monkeypatch):
    """A folder with all of it; without the run where a page makes it."""
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reader(root, desk, monkeypatch):
    monkeypatch.syspath_prepend(str(desk))
    yield Reader(root, monkeypatch.syspath_prepend)
    for name in [n for n in sys.modules if n.partition(".")[0] == "my_methods"]:
        del sys.modules[name]


def in_this_process(self, words):
    """`Bench.call` without the seconds that a process of its own takes to start."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(shortened(list(words))) == 0, words
    return jobs.Finished(out.getvalue(), 1.0, 100.0)


def test_every_task_has_a_page_that_is_run():
    assert set(PAGES) >= TASKS
    for page in TASKS:
        assert any(block.language == "sh" for block in blocks(DOCS / f"{page}.md")), page


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_page(page, reader, desk, monkeypatch):
    monkeypatch.setattr(jobs.Bench, "call", in_this_process)
    monkeypatch.setattr("eyespot.reproduce.runner.update_evidence", lambda folder: None)
    path = DOCS / f"{page}.md"
    if re.search(r"--out runs/a\s", path.read_text(encoding="utf-8")):
        shutil.rmtree(desk / "runs" / "a")
    torch.manual_seed(0)
    reader.read(path)
    for line in reader.commands:
        for out in re.findall(r"--out (runs/\S+)", line):
            assert (desk / out / "backbone.safetensors").exists(), line
            assert Run(desk / out).verdict["state"], line


@pytest.mark.parametrize(
    ("typed", "done"),
    [
        (
            "pretrain byol --data a --minutes 3 --out b --backbone resnet50 --set hidden=8 out=8 --seed 1",
            "pretrain byol --data a --out b --set hidden=8 out=8 --seed 1 SMALL --backbone resnet8 --image-size 32",
        ),
        ("pretrain mae --data a --out b", "pretrain mae --data a --out b SMALL --backbone vit_micro --image-size 32"),
        ("pretrain byol --data a --init c", "pretrain byol --data a --init c SMALL --image-size 32"),
        ("adapt core_tuning runs/a --data d --epochs 9", "adapt core_tuning runs/a --data d SMALL"),
        ("evaluate runs/a --data d", "evaluate runs/a --data d --workers 0"),
        ("methods simclr", "methods simclr"),
    ],
)
def test_commands_are_shortened_and_nothing_else(typed, done):
    assert shortened(typed.split()) == done.replace("SMALL", "--epochs 1 --batch-size 8 --workers 0").split()


def test_lines_of_a_block():
    assert list(lines("# no command\na \\\n  b\n\nc\n")) == ["a    b", "c"]


def test_what_cannot_be_run_is_an_error(reader):
    with pytest.raises(AssertionError, match="a test cannot run 'rm photos'"):
        reader.run("rm photos")
    with pytest.raises(AssertionError, match="eyespot methods simcrl"):
        reader.run("eyespot methods simcrl")


# --- a method in one's own loop --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def code(root):
    return [block.text for block in blocks(root / "docs" / "own-loop.md") if block.language == "python"]


def run(parts):
    """The blocks one after the other, as a reader would type them in; what they leave."""
    names = {"__name__": "own_loop"}
    for block in parts:
        exec(compile(block, "docs/own-loop.md", "exec"), names)
    return names


def test_bare_loop(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(code) == 2
    torch.manual_seed(0)
    left = run(code[:1])
    assert left["step"] == 7 and bool(left["loss"].isfinite())
    assert left["features"].shape == (64, 128)
    teacher, student = left["method"].teacher.module[0], left["method"].backbone
    assert not torch.equal(teacher.net.conv.weight, student.net.conv.weight), "the teacher follows, it is no copy"
    assert torch.equal(left["same"].net.conv.weight, student.net.conv.weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning(code, tmp_path, monkeypatch):
    pytest.importorskip("lightning", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    left = run(code)
    assert left["trainer"].global_step == 8
    assert float(left["trainer"].callback_metrics["nt_xent"]) > 0
    assert left["method"].progress == 7 / 8


def test_script_for_slurm(root):
    (script,) = [block.text for block in blocks(root / "docs" / "many-machines.md") if block.language == "bash"]
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert f'"$status" -eq {Stopped.STATUS}' in script

"""A package that adds a method from outside (tests/plugin_package), and packages that are broken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from processes import run_processes

from eyespot import cli, health
from eyespot.errors import UserError
from eyespot.methods import catalog, source
from eyespot.train import fit

PACKAGE = Path(__file__).resolve().parents[1] / "plugin_package"
NAME = "align_uniform"


def forget(*modules: str) -> None:
    """As if nothing of the packages had been looked at."""
    source.locate.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] in modules]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The sample package, installed into a folder of its own by pip, without network."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-cache-dir", "--no-index"]
    where = ["--no-build-isolation", "--no-deps", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run([*pip, *where], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    forget("sphere_methods")
    yield site
    forget("sphere_methods")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    g = torch.Generator().manual_seed(0)
    for i in range(24):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=g, dtype=torch.uint8)
        place = root / ("even" if i % 2 == 0 else "odd") / f"{i:02d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place)
    return root


def said(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    out, err = capsys.readouterr()
    return status, out, err


# --- what a package gets by being installed ----------------------------------------------------------------------
def test_it_is_listed_and_described_without_being_imported(installed, capsys):
    status, out, err = said(capsys, "methods")
    assert (status, err) == (0, "")
    assert any(line.startswith(f"{NAME} ") and "arXiv 2005.10242" in line for line in out.splitlines())
    status, out, _ = said(capsys, "methods", NAME, "--json")
    (record,) = json.loads(out)
    assert (record["kind"], record["modality"], record["arguments"]["weight"]["default"]) == ("method", "image", 0.5)
    status, out, _ = said(capsys, "pretrain", NAME, "--help")
    assert status == 0
    for part in (
        "--set weight=0.5",
        "Weight of uniformity",
        "from the package: sphere-methods 1.2",
        "recipe:",
        "--data",
    ):
        assert part in out
    assert not [n for n in sys.modules if n.startswith("sphere_methods")]


def test_the_whole_way_on_the_command_line(installed, pictures, tmp_path, capsys, monkeypatch):
    words = ["pretrain", "align-uniform", "--data", str(pictures), "--backbone", "resnet8", "--image-size", "16"]
    words += ["--epochs", "2", "--batch-size", "8", "--workers", "0", "--device", "cpu", "--set", "hidden=16", "out=8"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    done = subprocess.run(
        [sys.executable, "-m", "eyespot", *words, "--out", str(whole)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((whole / "config.json").read_text())["arguments"]["hidden"] == 16

    real, steps = fit.training_step, []

    def interrupted(*args):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fit, "training_step", interrupted)
    monkeypatch.setattr(fit, "side_work", lambda *a: True)
    status, _, err = said(capsys, *words, "--out", str(part))
    assert status == 130 and "--resume" in err
    status, _, err = said(capsys, *words, "--out", str(part), "--resume")
    assert (status, len(steps)) == (0, 4 + 3), err
    a, b = (torch.load(r / "checkpoint.pt", weights_only=True)["method"] for r in (whole, part))
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())

    status, out, err = said(capsys, "evaluate", str(part), "--data", str(pictures), "--protocol", "knn", "--json")
    assert status == 0 and json.loads(out)["n_train"] == 20, err
    status, _, err = said(capsys, "embed", str(part), "--data", str(pictures), "--out", str(tmp_path / "v.parquet"))
    assert status == 0 and pq.read_table(tmp_path / "v.parquet").num_rows == 24, err
    status, _, err = said(capsys, "export", str(part), "--format", "torchscript", "--out", str(tmp_path / "net.pt"))
    assert status == 0, err


def test_a_run_outlives_the_package(installed, pictures, tmp_path, capsys, monkeypatch):
    """Its backbone needs no package; to go on does, and says so."""
    words = ["pretrain", NAME, "--data", str(pictures), "--out", str(tmp_path / "run"), "--backbone", "resnet8"]
    words += ["--image-size", "16", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--set", "out=8"]
    assert said(capsys, *words)[0] == 0
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(installed)])
    forget("sphere_methods")
    status, _, err = said(capsys, *words, "--resume")
    assert status == 2 and err.startswith(f"eyespot: There is no method '{NAME}'")
    assert said(capsys, "evaluate", str(tmp_path / "run"), "--data", str(pictures))[0] == 0


@pytest.mark.slow
def test_the_tests_of_all_methods_run_on_it(installed, root):
    """They find it by themselves: nothing names it."""
    files = [
        str(root / "tests" / "suite" / "test_every_method.py"),
        str(root / "tests" / "methods" / "test_catalog.py"),
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-k", NAME, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(done.stdout.rpartition(" passed")[0].split()[-1])
    assert passed >= 9, done.stdout[-3000:]


@pytest.mark.slow
def test_one_process_equals_two(installed, root, tmp_path):
    job = root / "tests" / "suite" / "two_processes.py"
    for world in (1, 2):
        run_processes(job, [str(tmp_path), NAME], world, tmp_path)
    one, two = (torch.load(tmp_path / f"{how}-float64" / f"{NAME}.pt", weights_only=True) for how in ("one", "ddp"))
    for what, most in (("gradient", 1e-10), ("weights", 1e-8)):
        scale = max(float(v.double().norm()) for v in one[what].values())
        for key, value in one[what].items():
            assert float((value - two[what][key]).double().norm()) <= most * scale, (what, key)


def test_it_has_a_page_in_the_documentation(installed, root, monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(root / "docs"))
    spec = importlib.util.spec_from_file_location("docs_hooks", root / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    entries = list(catalog.entries().values())
    page = hooks.systems.system(catalog.find(NAME), entries)
    for part in ("# align_uniform", "2005.10242", "package sphere-methods 1.2", "| `weight` |", "## Recipe"):
        assert part in page, page
    assert f"[{NAME}]({NAME}.md)" in hooks.systems.overview(entries)
    nav = hooks.on_config({"nav": [{"Methods": "methods/index.md"}]})["nav"]
    assert {NAME: f"methods/{NAME}.md"} in next(group["image"] for group in nav[0]["Methods"] if "image" in group)


# --- packages that are broken ------------------------------------------------------------------------------------
GOOD = """
from eyespot.methods.image.simclr import SimCLR

class Fine(SimCLR):
    needs = 5  # no names of fields

function = print
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Makes a package with these files and entry points, as an installer leaves it."""

    def make(points: dict[str, str], files: dict[str, str | bytes] | None = None, name: str = "their-methods") -> None:
        for path, text in (files or {}).items():
            place = tmp_path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text if isinstance(text, bytes) else text.encode())
        info = tmp_path / f"{name.replace('-', '_')}-0.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
        lines = "".join(f"{key} = {value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[{catalog.GROUP}]\n{lines}")
        forget("theirs")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield make
    forget("theirs")


PACKAGE_FILES = {"theirs/__init__.py": "", "theirs/good.py": GOOD}
FROM = "of the package 'their-methods 0.3'"
UNIMPORTABLE = {
    "a module that raises": ("theirs.bad:Bad", {"theirs/bad.py": "raise RuntimeError('no licence\\nfound')"},
                             "cannot be imported (RuntimeError: no licence found); update or uninstall that package."),
    "a module that leaves": ("theirs.bad:Bad", {"theirs/bad.py": "import sys\nsys.exit(3)"}, "(SystemExit: 3)"),
    "a missing dependency": ("theirs.bad:Bad", {"theirs/bad.py": "import nobody_has_this"},
                             "(ModuleNotFoundError: No module named 'nobody_has_this')"),
    "a missing module": ("theirs.nowhere:Bad", {}, "No module named 'theirs.nowhere'"),
    "a missing class": ("theirs.good:Nothing", {}, "has no attribute 'Nothing'"),
    "a function": ("theirs.good:function", {}, "is no method: 'theirs.good:function' is a builtin_function_or_method"),
    "another class": ("theirs.other:Other", {"theirs/other.py": "class Other: pass"},
                      "is no method: 'theirs.other:Other' is a class that does not derive from"),
}  # fmt: skip


@pytest.mark.parametrize("fault", UNIMPORTABLE)
def test_what_cannot_be_imported_is_one_sentence_for_its_user_and_the_doctor(broken, capsys, tmp_path, fault):
    target, files, reason = UNIMPORTABLE[fault]
    broken({"theirs": target, "fine": "theirs.good:Fine"}, PACKAGE_FILES | files)
    status, _, err = said(capsys, "pretrain", "theirs", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert status == 2
    assert err.startswith(f"eyespot: The method 'theirs' {FROM} ") and reason in err and err.count("\n") == 1
    (told,) = catalog.problems(load_all=True)
    assert f"eyespot: {told}\n" == err
    assert told in health.doctor()["advice"]
    others_work(capsys)


UNREADABLE = {
    "not Python": ({"theirs": "theirs.bad:Bad"}, {"theirs/bad.py": "class Bad(:"}, "is not valid Python (line 1: "),
    "zero bytes": ({"theirs": "theirs.bad:Bad"}, {"theirs/bad.py": b"\0\0"}, "is not valid Python ("),
    "not text": ({"theirs": "theirs.bad:Bad"}, {"theirs/bad.py": b"\xff\xfe\xff"}, "is not valid Python ("),
    "no class named": ({"theirs": "theirs.good"}, {}, "'theirs.good' is not of the form package.module:Class"),
    "no place": ({"theirs": "what? ever"}, {}, "'what? ever' is not of the form package.module:Class"),
    "imports in a circle": (
        {"theirs": "theirs.a:Bad"},
        {"theirs/a.py": "from theirs.b import Up\nclass Bad(Up): pass", "theirs/b.py": "from theirs.b import Up"},
        "recursion",
    ),
    "a name that is none": ({"../theirs": "theirs.good:Fine"}, {}, "its name may only have letters, digits and _"),
    "one of ours": ({"simclr": "theirs.good:Fine"}, {}, "has the name of one of eyespot's own, which is used"),
    "one of ours, written otherwise": ({"MoCo-v2": "theirs.good:Fine"}, {}, "has the name of one of eyespot's own"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_what_cannot_be_read_is_told_by_the_list_and_is_in_nobodys_way(broken, capsys, fault):
    points, files, reason = UNREADABLE[fault]
    broken(points | {"fine": "theirs.good:Fine"}, PACKAGE_FILES | files)
    (name,) = points
    status, out, err = said(capsys, "methods")
    assert status == 0
    assert err.startswith(f"eyespot: The method '{name}' {FROM} ") and reason in err and err.count("\n") == 1
    names = {line.split()[0] for line in out.splitlines()}
    assert {"simclr", "fine"} <= names and "theirs" not in names
    status, out, _ = said(capsys, "methods", "--json")
    assert "simclr" in {record["name"] for record in json.loads(out)}
    assert err.removeprefix("eyespot: ").strip() in health.doctor()["advice"]
    if name == "theirs":
        with pytest.raises(UserError, match="update or uninstall that package"):
            catalog.find("theirs")
    others_work(capsys)


def others_work(capsys) -> None:
    """Neither eyespot's own methods nor the package's good one suffer."""
    assert catalog.find("simclr").target.startswith("eyespot.")
    assert catalog.find("moco_v2").target.startswith("eyespot.")
    assert catalog.load("simclr").__name__ == "SimCLR"
    assert catalog.load("fine").__name__ == "Fine"
    assert catalog.find("fine").needs == ()
    status, out, err = said(capsys, "pretrain", "simclr", "--help")
    assert status == 0 and err == "" and "--set temperature=" in out
    status, _, err = said(capsys, "pretrain", "simcrl", "--data", "x", "--out", "y")
    assert status == 2 and "did you mean 'simclr'" in err


def test_two_packages_with_one_name(broken, capsys):
    broken({"fine": "theirs.good:Fine"}, PACKAGE_FILES)
    broken({"fine": "theirs.more:Fine"}, {"theirs/more.py": GOOD}, name="more-methods")
    (told,) = catalog.problems()
    assert "their-methods 0.3" in told and "more-methods 0.3" in told and "uninstall one of them" in told
    used = catalog.find("fine")
    assert catalog.load("fine").__module__ == used.target.partition(":")[0]
    others_work(capsys)

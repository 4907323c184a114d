"""The command line as a user meets it: exit status, one sentence, near names, quick help."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from eyespot import cli
from eyespot.declare import option_fields
from eyespot.errors import NonFiniteLoss
from eyespot.options import PretrainOptions

TRAIN = ["pretrain", "simclr", "--data", "nowhere", "--out", "nowhere-out"]


def said(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["pretran"], ["'pretran'", "'pretrain'"]),
        (["pretrain", "simcl", "--data", "x", "--out", "y"], ["'simcl'", "'simclr'"]),
        (["pretrain", "simclr", "--dat", "x"], ["'--dat'", "'--data'"]),
        (["pretrain", "simclr", "--image-sizes=3"], ["'--image-sizes'", "'--image-size'"]),
        (["pretrain"], ["METHOD is missing"]),
        (["pretrain", "simclr", "--data", "x"], ["--out is missing"]),
        (["pretrain", "simclr", "--out", "x"], ["--data is missing"]),
        ([*TRAIN, "--epochs"], ["--epochs needs a value"]),
        ([*TRAIN, "--epochs", "many"], ["--epochs", "'many'", "a number"]),
        ([*TRAIN, "--epochs", "-1"], ["--epochs", "-1", "more than 0"]),
        ([*TRAIN, "--batch-size", "1.5"], ["--batch-size", "'1.5'", "whole number"]),
        ([*TRAIN, "--lr=nan"], ["--lr", "'nan'"]),
        ([*TRAIN, "--optimizer", "adamv"], ["'adamv'", "'adamw'"]),
        ([*TRAIN, "--epochs", "1", "--minutes", "1"], ["--epochs", "--minutes", "exclude"]),
        ([*TRAIN, "word"], ["'word'", "too many"]),
        ([*TRAIN, "--set", "temperatur=1"], ["'temperatur'", "'temperature'"]),
        ([*TRAIN, "--set", "temperature=hot"], ["--set temperature", "'hot'", "a number"]),
        ([*TRAIN, "--set", "temperature"], ["key=value", "'temperature'"]),
        ([*TRAIN, "--set", "epochs=3"], ["use --epochs"]),
        ([*TRAIN, "--with", "halucinator"], ["plug-in 'halucinator'", "'hallucinator'"]),
        ([*TRAIN, "--with", "mochi"], ["'mochi' adds negatives", "simclr accepts", "use it with moco_v2"]),
        ([*TRAIN, "--with", "hallucinator", "--with", "hallucinator"], ["named twice"]),
        ([*TRAIN, "--with", "simclr"], ["'simclr' is a method"]),
        ([*TRAIN, "--set", "hallucinator.ratio=0.2"], ["--with hallucinator"]),
        (
            [*TRAIN, "--with", "hallucinator", "--set", "mochi.pairs=2"],
            ["plug-in 'mochi'", "has hallucinator", "--with mochi"],
        ),
        ([*TRAIN, "--with", "hallucinator", "--set", "hallucinator.rato=1"], ["'rato'", "'ratio'"]),
        ([*TRAIN, "--with", "hallucinator", "--set", "hallucinator.ratio=a"], ["--set hallucinator.ratio", "a number"]),
        (["pretrain", "hallucinator", "--data", "x", "--out", "y"], ["pretrain METHOD --with hallucinator"]),
        (["adapt", "simclr", "runs/a", "--data", "x", "--out", "y"], ["'simclr'", "eyespot pretrain simclr"]),
        (["methods", "simcl"], ["'simcl'", "'simclr'"]),
        (["evaluate", "runs/a", "--data", "x", "--jsn"], ["'--jsn'", "'--json'"]),
        (["evaluate", "runs/a", "--data", "x", "--protocol", "knn,liner"], ["'liner'", "'linear'"]),
        (["evaluate", "runs/a", "--data", "x", "--epochs", "3"], ["--epochs", "finetune"]),
        (["compare"], ["RUNS is missing"]),
        (["compare", "nowhere"], ["'nowhere'"]),
        (["compare", "nowhere", "--test-data", "x"], ["--test-data needs --data"]),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(capsys, words, named):
    status, out, err = said(capsys, *words)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("eyespot: ")
    assert "Traceback" not in err
    for part in named:
        assert part in err


def test_debug_shows_the_traceback(capsys):
    status, _, err = said(capsys, *TRAIN, "--epochs", "-1", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert "UserError" in err


def captured(monkeypatch, verb: str) -> list[dict]:
    calls: list[dict] = []
    command = cli.COMMANDS[verb]
    replaced = cli.Command(command.options, calls.append, command.switches)
    monkeypatch.setitem(cli.COMMANDS, verb, replaced)
    return calls


def test_set_may_repeat_and_none_is_lost(monkeypatch):
    calls = captured(monkeypatch, "pretrain")
    words = [*TRAIN, "--set", "a=1", "b=2", "--seed", "3", "--set=c=x=y", "--set", "d=-4"]
    assert cli.main(words) == 0
    assert calls[0]["set_"] == ["a=1", "b=2", "c=x=y", "d=-4"]
    assert calls[0]["seed"] == 3


def test_positional_words_may_follow_set(monkeypatch):
    calls = captured(monkeypatch, "adapt")
    assert cli.main(["adapt", "--data=x", "--set", "a=1", "core_tuning", "runs/a", "--out=y"]) == 0
    assert (calls[0]["method"], calls[0]["run"], calls[0]["set_"]) == ("core_tuning", "runs/a", ["a=1"])


def test_only_given_options_are_passed_on(monkeypatch):
    calls = captured(monkeypatch, "pretrain")
    assert cli.main([*TRAIN, "--resume", "--with", "one", "two", "--lr", "1e-3"]) == 0
    assert calls[0] == {
        "method": "simclr",
        "data": "nowhere",
        "out": "nowhere-out",
        "resume": True,
        "with_": ["one", "two"],
        "lr": 1e-3,
    }


def test_protocol_may_repeat_and_takes_one_word_each(monkeypatch):
    calls = captured(monkeypatch, "evaluate")
    words = ["--protocol", "knn,linear", "runs/a", "--protocol=retrieval", "--data", "x"]
    assert cli.main(["evaluate", *words]) == 0
    assert calls[0] == {"model": "runs/a", "data": "x", "protocol": ["knn,linear", "retrieval"], "json": False}


def test_compare_takes_any_number_of_runs(monkeypatch):
    calls = captured(monkeypatch, "compare")
    assert cli.main(["compare", "runs/a", "runs/b", "--protocol", "knn", "--json"]) == 0
    assert cli.main(["compare", "--data", "x", "runs/a"]) == 0
    assert calls[0] == {"runs": ["runs/a", "runs/b"], "protocol": ["knn"], "json": True}
    assert calls[1] == {"runs": ["runs/a"], "data": "x", "json": False}


def test_interrupt_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def stop(given):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "pretrain", cli.Command(PretrainOptions, stop))
    words = ["pretrain", "simclr", "--data", "my photos", "--out", str(tmp_path)]
    status, _, err = said(capsys, *words)
    assert status == 130
    assert "before the run began" in err
    (tmp_path / "config.json").touch()
    status, _, err = said(capsys, *words)
    assert status == 130
    assert f"eyespot pretrain simclr --data 'my photos' --out {tmp_path} --resume" in err


def test_a_loss_that_is_not_finite_is_status_1_without_traceback(monkeypatch, capsys):
    def explode(given):
        raise NonFiniteLoss("The term 'nt_xent' became nan at step 7.")

    monkeypatch.setitem(cli.COMMANDS, "pretrain", cli.Command(PretrainOptions, explode))
    status, _, err = said(capsys, *TRAIN)
    assert (status, err) == (1, "eyespot: The term 'nt_xent' became nan at step 7.\n")


def test_under_torchrun_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert said(capsys, "pretran") == (2, "", "")


def test_main_page_names_every_command(capsys):
    status, out, _ = said(capsys, "--help")
    assert status == 0
    assert all(f"  {verb} " in out for verb in cli.COMMANDS)


@pytest.mark.parametrize("verb", sorted(cli.COMMANDS))
def test_help_names_every_option_with_its_sentence(capsys, verb):
    status, out, _ = said(capsys, verb, "--help")
    assert status == 0
    text = "".join(out.split())
    for about in option_fields(cli.COMMANDS[verb].options):
        if not about.python_only:
            assert about.sentence
            assert about.flag.lstrip("-") in out  # --no-floor where the default is yes
            assert about.sentence.split()[0] in text


def test_help_of_a_method_shows_paper_arguments_and_recipe(capsys):
    status, out, _ = said(capsys, "pretrain", "simclr", "--help")
    assert status == 0
    for part in ("arXiv 2002.05709", "--set temperature=", "recipe:", "optimizer", "--data"):
        assert part in out


@pytest.mark.parametrize("words", [["--with", "mochi", "hallucinator"], ["--with=mochi", "--with", "hallucinator"]])
def test_help_shows_the_plug_ins_named(capsys, words):
    status, out, _ = said(capsys, "pretrain", "moco_v2", *words, "--epochs", "3", "--help")
    assert status == 0
    for part in ("arXiv 2003.04297", "arXiv 2010.01028", "--set mochi.pairs=", "--set hallucinator.ratio=", "--data"):
        assert part in out


def test_the_page_of_a_plug_in_names_its_hosts(capsys):
    status, out, _ = said(capsys, "methods", "hallucinator")
    assert status == 0
    assert "use: eyespot pretrain METHOD --with hallucinator" in out and "recipe:" not in out
    hosts = next(line for line in out.splitlines() if line.startswith("with: "))
    assert {"simclr", "moco_v2", "simsiam"} <= set(hosts.removeprefix("with: ").split(", "))
    status, out, _ = said(capsys, "methods", "mochi", "--json")
    assert json.loads(out)[0]["hosts"] == ["moco_v2"] and json.loads(out)[0]["kind"] == "plugin"


def test_help_of_an_unknown_method_is_a_mistake(capsys):
    status, _, err = said(capsys, "pretrain", "simcrl", "--help")
    assert status == 2
    assert "'simclr'" in err


def test_methods_json_has_the_agreed_keys(capsys):
    status, out, _ = said(capsys, "methods", "--json")
    assert status == 0
    records = json.loads(out)
    assert {r["name"] for r in records} >= {"simclr"}
    for record in records:
        assert set(record) == {"name", "paper", "modality", "kind", "extras", "evidence"}
        assert set(record["evidence"]) >= {"golden", "floor_beaten", "claim"}
        assert record["kind"] in ("method", "adapt", "plugin")


def test_methods_in_a_pipe_has_one_line_a_method(capsys):
    status, out, _ = said(capsys, "methods")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("name")
    assert any(line.startswith("simclr ") and "arXiv 2002.05709" in line for line in lines)


QUICK = [
    "import eyespot; eyespot.__version__; dir(eyespot)",
    "import eyespot; eyespot.methods()",
    "from eyespot.cli import main; main(['--help'])",
    "from eyespot.cli import main; main(['methods'])",
    "from eyespot.cli import main; main(['export', 'runs/a', '--format', 'timmm', '--out', 'y'])",
    "from eyespot.cli import main; main(['pretrain', 'simclr', '--help'])",
    "from eyespot.cli import main; main(['pretrain', 'simclr', '--with', 'hallucinator', '--help'])",
    "from eyespot.cli import main; main(['pretrain', 'simclr', '--data', 'x', '--out', 'y', '--with', 'mochi'])",
    "from eyespot.cli import main; main(['compare', 'nowhere'])",
    "from eyespot.cli import main; main(['evaluate', 'runs/a', '--data', 'x', '--protocol', 'knm'])",
    "from eyespot.cli import main; main(['pretrain', 'simcrl', '--data', 'x', '--out', 'y'])",
]


@pytest.mark.parametrize("code", QUICK)
def test_nothing_that_must_be_quick_imports_torch(code):
    check = "; import sys; heavy = {'torch', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "eyespot", "metods"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "eyespot: There is no command 'metods'; did you mean 'methods'?\n"


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m eyespot methods --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""

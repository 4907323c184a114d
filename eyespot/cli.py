"""The command line: the public functions under the same names, with the same options and defaults. Parsing and
printing only. Exit status: 0; 2 for a mistake that the user can mend, in one sentence; 1 for a run that failed; 75 when
a scheduler's signal stopped it with a checkpoint, so that it can go on; 130 when it was interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot import options
from eyespot.declare import Switch, build, option_fields
from eyespot.errors import NonFiniteLoss, Stopped, UserError, unknown
from eyespot.settings import no_stray_settings, settings
from eyespot.terminal import pages
from eyespot.train.place import place

JSON = Switch("json", "Print JSON in place of a table.")


@dataclass(frozen=True)
class Command:
    """One verb."""

    options: type
    action: Callable[[dict[str, Any]], None]
    switches: tuple[Switch, ...] = ()

    @property
    def sentence(self) -> str:
        return (self.options.__doc__ or "").strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    # Threads of torch that wait by spinning cost a factor of seven where another program uses a core, and gain little
    # elsewhere. Read when torch is loaded, so set before; an environment that says otherwise is left alone.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        _run(words)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), 2, debug)
    except NonFiniteLoss as error:
        return _fail(str(error), 1, debug)
    except KeyboardInterrupt as stop:
        return _fail((str(stop) or "Interrupted") + _again(words), 130, debug)
    except Stopped as stop:
        return _fail(str(stop) + _again(words), stop.STATUS, debug)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # help was printed
        return int(stop.code or 0)
    return 0


def _fail(sentence: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    elif speaks() or status == 1:
        print("eyespot:", " ".join(sentence.split()), file=sys.stderr)
    return status


def speaks() -> bool:
    """Whether this process prints: of several only the first does."""
    return place().rank == 0


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(pages.main_page({verb: c.sentence for verb, c in COMMANDS.items()}))
        return
    if words[0] == "--version":
        from eyespot import __version__

        print(__version__)
        return
    verb, *rest = words
    if verb not in COMMANDS:
        raise unknown("command", verb, COMMANDS)
    command = COMMANDS[verb]
    if {"-h", "--help"} & set(rest):
        _method_help(verb, rest)
    from eyespot.terminal import arguments  # tyro is not needed above

    command.action(arguments.read(verb, command.options, command.switches, rest, command.sentence))


def _method_help(verb: str, words: Sequence[str]) -> None:
    """`eyespot pretrain simclr --help` shows the method above the options."""
    if verb in ("pretrain", "adapt", "estimate") and words and not words[0].startswith("-"):
        from eyespot.methods import catalog

        kind = "adapt" if verb == "adapt" else "method"
        entry = catalog.find(words[0], kind)
        for shown in (entry, *catalog.plugins(_after(words, "--with"), entry)):
            print(pages.method_page(shown), end="\n\n")


def _after(words: Sequence[str], flag: str) -> list[str]:
    """The values that a flag is given, which may repeat."""
    found: list[str] = []
    taking = False
    for word in words:
        taking = word == flag or (taking and not word.startswith("-"))
        found += [word] if taking and word != flag else []
        found += [word.partition("=")[2]] if word.startswith(f"{flag}=") else []
    return found


def _again(words: Sequence[str]) -> str:
    """The rest of the sentence on a run that was stopped: how to go on."""
    if not words or words[0] not in ("pretrain", "adapt"):
        return "."
    from eyespot.terminal import arguments

    given = arguments.read(words[0], COMMANDS[words[0]].options, (), words[1:], "")
    if not (Path(given.get("out", "")) / "config.json").exists():
        return " before the run began; start the same command again."
    again = [*words, *([] if "--resume" in words else ["--resume"])]
    several = "" if place().world == 1 else ", on as many processes or others,"
    return f"; go on{several} with: eyespot {shlex.join(again)}"


# --- the commands ----------------------------------------------------------------------------------------------------
def _pretrain(given: dict[str, Any]) -> None:
    _train("method", options.PretrainOptions, given)


def _adapt(given: dict[str, Any]) -> None:
    _train("adapt", options.AdaptOptions, given)


def _train(kind: str, cls: type, given: dict[str, Any]) -> None:
    from eyespot.methods import catalog

    build(cls, **given)  # before torch is imported: a mistake is told at once
    entry = catalog.find(given["method"], kind)
    _check_settings(entry, given.get("set_", ()), given.get("with_", ()))
    from eyespot.terminal.progress import Progress
    from eyespot.train import pretrain as train

    function = train.adapt if kind == "adapt" else train.pretrain
    if not speaks():
        _call(function, cls, given)
        return
    with Progress() as progress:
        run = _call(function, cls, given | {"listener": progress})
    _summary(run, given["data"])


def _check_settings(entry: Any, given: Any, plugins: Sequence[str]) -> None:
    from eyespot.methods import catalog

    found = catalog.plugins(plugins, entry)
    no_stray_settings(given, [p.name for p in found])
    for owner in (entry, *found):
        settings(given, owner.fields, owner.name, owner.prefix)


def _call(function: Callable[..., Any], cls: type, given: Mapping[str, Any]) -> Any:
    """The public function with its positional arguments in their places."""
    places = [f.name for f in option_fields(cls) if f.positional and f.name in given]
    return function(*(given[n] for n in places), **{k: v for k, v in given.items() if k not in places})


def _summary(run: Any, data: Any) -> None:
    bad = run.path / "bad_files.txt"
    count = len(bad.read_text(encoding="utf-8").splitlines()) if bad.exists() else 0
    out = pages.console()
    out.print(pages.verdict(run.verdict))
    if (run.path / "evaluation.json").exists():
        result = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
        out.print(f"accuracy {result['top1']:.2f} % on {result['n_test']} held-out pictures", markup=False)
    out.print(pages.next_commands(run.path, data, count), soft_wrap=True, markup=False)


def _evaluate(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    if str(given.get("model", "")).endswith(".parquet"):
        given.setdefault("data", given["model"])  # saved embeddings hold their labels
    build(options.EvaluateOptions, **given)
    from eyespot.evaluate.evaluate import evaluate
    from eyespot.terminal.progress import Progress

    with Progress() as progress:  # a fine-tuning takes its time
        result = _call(evaluate, options.EvaluateOptions, given | ({"listener": progress} if speaks() else {}))
    if speaks():
        _show_evaluation(result, as_json)


def _show_evaluation(result: Any, as_json: bool) -> None:
    """One object for one protocol, a list for several."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    results = result if isinstance(result, list) else [result]
    out = pages.console()
    out.print(pages.evaluation(results))
    for note in dict.fromkeys(r["config"]["not_kept"] for r in results if "not_kept" in r["config"]):
        out.print(f"not kept: {note}", soft_wrap=True, markup=False)


def _compare(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    build(options.CompareOptions, **given)
    from eyespot.evaluate.compare import compare
    from eyespot.terminal import comparison

    rows = _call(compare, options.CompareOptions, given)
    if not speaks():
        return
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    out = pages.console()
    out.print(comparison.table(rows))
    out.print(comparison.notes(rows), soft_wrap=True, markup=False)


def _embed(given: dict[str, Any]) -> None:
    build(options.EmbedOptions, **given)
    from eyespot.evaluate.embed import embed

    done = _call(embed, options.EmbedOptions, given)
    if speaks():
        skipped = f", {done['bad_files']} unreadable pictures skipped" if done["bad_files"] else ""
        print(f"{done['rows']} vectors of {done['embed_dim']} numbers in {done['out']}{skipped}")


def _export(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    build(options.ExportOptions, **given)
    from eyespot.export.export import export

    done = _call(export, options.ExportOptions, given)
    if speaks():
        print(json.dumps(done, ensure_ascii=False) if as_json else pages.exported(done))


def _methods(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    name = build(options.MethodsOptions, **given).name
    from eyespot.methods import catalog

    if name is None:
        found = list(catalog.entries().values())
        if as_json:
            print(json.dumps([e.json() for e in found], ensure_ascii=False, indent=1))
        else:
            pages.console().print(pages.method_list(found))
        for sentence in catalog.problems():
            print("eyespot:", sentence, file=sys.stderr)
        return
    entry = catalog.find(name)
    text = json.dumps([catalog.in_full(entry)], ensure_ascii=False, indent=1) if as_json else pages.method_page(entry)
    print(text)


def _demo(given: dict[str, Any]) -> None:
    chosen = build(options.DemoOptions, **given)
    from eyespot.demo import demo
    from eyespot.terminal.progress import Progress

    with Progress() as progress:
        result = demo(chosen, listener=progress)
    out = pages.console()
    if result.evaluations:
        out.print(pages.evaluation(result.evaluations))
    out.print(pages.verdict(result.run.verdict))
    out.print(f"run      {result.run.path}\npicture  {result.picture}", soft_wrap=True, markup=False)


def _estimate(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    build(options.EstimateOptions, **given)
    from eyespot.train.estimate import estimate

    found = _call(estimate, options.EstimateOptions, given)
    if as_json:
        print(json.dumps(found))
    else:
        pages.console().print(pages.estimate(found))


def _tracks(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    build(options.TracksOptions, **given)
    from eyespot.data.tracks import tracks

    found = _call(tracks, options.TracksOptions, given)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for path, reason in found["bad"].items():
        print(f"not read: {path}: {reason}")
    print(f"{found['tracks']} tracks from {found['clips']} clips in {found['out']}")
    data = shlex.quote(found["out"])
    print(f"next     eyespot pretrain transitive_invariance --set tracks=folders --data {data} --out DIR")


def _doctor(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    chosen = build(options.DoctorOptions, **given)
    from eyespot.health import doctor

    found = doctor(chosen.out)
    if as_json:
        print(json.dumps(found))
    else:
        pages.console().print(pages.doctor(found), soft_wrap=True)


def _reproduce(given: dict[str, Any]) -> None:
    as_json = given.pop("json")
    chosen = build(options.ReproduceOptions, **given)
    from eyespot.reproduce.runner import claims_folder, recorded, reproduce

    if chosen.name is None:
        found = recorded(claims_folder(chosen.claims))
        if as_json:
            print(json.dumps([{"name": f["claim"].name, "record": f["record"]} for f in found], ensure_ascii=False))
        else:
            pages.console().print(pages.claim_list(found))
        return
    record = reproduce(chosen.name, **{k: v for k, v in given.items() if k != "name"}, listener=_note)
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        pages.console().print(pages.claim(record))


def _note(record: Mapping[str, Any]) -> None:
    """What a long command does now, on standard error."""
    print(record["text"], file=sys.stderr)


COMMANDS = {
    "pretrain": Command(options.PretrainOptions, _pretrain),
    "adapt": Command(options.AdaptOptions, _adapt),
    "evaluate": Command(options.EvaluateOptions, _evaluate, (JSON,)),
    "compare": Command(options.CompareOptions, _compare, (JSON,)),
    "embed": Command(options.EmbedOptions, _embed),
    "export": Command(options.ExportOptions, _export, (JSON,)),
    "methods": Command(options.MethodsOptions, _methods, (JSON,)),
    "estimate": Command(options.EstimateOptions, _estimate, (JSON,)),
    "tracks": Command(options.TracksOptions, _tracks, (JSON,)),
    "doctor": Command(options.DoctorOptions, _doctor, (JSON,)),
    "reproduce": Command(options.ReproduceOptions, _reproduce, (JSON,)),
    "demo": Command(options.DemoOptions, _demo),
}

if __name__ == "__main__":
    sys.exit(main())

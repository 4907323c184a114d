"""`eyespot.pretrain` and `eyespot.adapt`: from a path to a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from safetensors.torch import save_file

from eyespot import modality
from eyespot.data.batches import BatchData
from eyespot.data.loader import Data
from eyespot.declare import build
from eyespot.errors import NonFiniteLoss, UserError
from eyespot.methods import catalog
from eyespot.methods.method import Info, Method
from eyespot.nets.backbones import Backbone, backbone, modality_of_name, save_backbone
from eyespot.nets.files import disk_errors
from eyespot.nets.start import Target, is_backbone_name, starting_backbone
from eyespot.options import AdaptOptions, PretrainOptions
from eyespot.process import alone, barrier, is_main, synchronise_batch_norm, world_size
from eyespot.runs import Run, RunFolder, read_json, replacing, write_json
from eyespot.train.build import arguments, build_method, read_prepared, rebuild_backbone
from eyespot.train.fit import fit, silent
from eyespot.train.launch import processes, resolve_device
from eyespot.train.pictures import draw_pictures
from eyespot.train.plan import Plan
from eyespot.train.resolve import Choices, choose, make_plan
from eyespot.train.stored import as_stored, plain_options
from eyespot.train.tools import RunTools
from eyespot.train.watch import RunProbe

LARGEST_ZOOM = 3.6
"""Views of 0.08 of a picture, the smallest that papers crop, enlarge it by 1 / sqrt(0.08)."""


def pretrain(method: str, /, **options: Any) -> Run:
    """Learn a representation from pictures without labels.

    Args:
        method: name of a method, see `eyespot methods`.
        options: the options of `eyespot pretrain`, with their defaults, in `eyespot.options.PretrainOptions`.

    Returns:
        The run: `.verdict`, `.backbone`, `.metrics`, `.config`, `.path`.

    Raises:
        UserError: one sentence that names the value and the remedy.
        Stopped: SIGTERM or SIGUSR1 came; the checkpoint is written. It ends a script with status 75.
    """
    return _run(build(PretrainOptions, method, **options), "method", "eyespot pretrain")


def adapt(method: str, run: Any, /, **options: Any) -> Run:
    """Adapt a trained representation with labels.

    Args:
        method: name of an adapter, see `eyespot methods`.
        run: a run (or its folder), or the name of a backbone.
        options: the options of `eyespot adapt`, in `eyespot.options.AdaptOptions`.
    """
    return _run(build(AdaptOptions, method, run, **options), "adapt", "eyespot adapt")


def _run(options: PretrainOptions, kind: str, command: str) -> Run:
    cls = catalog.load(str(options.method), kind)
    device = resolve_device(options.device)
    folder = RunFolder(options.out)
    with processes(device), contextlib.ExitStack() as stack:
        stored: dict[str, Any] | None = None
        if is_main():
            known = folder.start(options.resume)
            if known:
                folder.claim(stack, options.resume)
            stored = read_json(folder / "config.json") if known and (folder / "config.json").exists() else None
        barrier()
        if not is_main() and options.resume and (folder / "config.json").exists():
            stored = read_json(folder / "config.json")
        if stored is not None:
            options = as_stored(options, stored, command)
        return Training(cls, options, kind, command, folder, device, stored).run()


class Training:
    """One run from options to the files it leaves."""

    def __init__(
        self,
        cls: type[Method],
        options: PretrainOptions,
        kind: str,
        command: str,
        folder: RunFolder,
        device: torch.device,
        stored: dict[str, Any] | None,
    ):
        self.cls, self.options, self.kind, self.command = cls, options, kind, command
        self.folder, self.device, self.stored = folder, device, stored
        self.listener = (options.listener or silent) if is_main() else silent
        self.name = catalog.find(str(options.method)).name
        self.modality = modality.of_needs(cls.needs, self.name)
        self.plugins = [p.name for p in catalog.plugins(options.with_, catalog.find(self.name))]
        self.init: dict[str, Any] | None = None
        """What the backbone was started from and how much of it matched."""

    def assemble(self) -> tuple[BatchData, Choices, Method]:
        """The data, what was chosen for the user, and the method with fresh weights."""
        data = self.open_data()
        choices = choose(self.cls, self.options, data, world_size(), self.modality)
        side = math.ceil(LARGEST_ZOOM * choices.image_size)
        if isinstance(data, Data) and data.shrink_to(side):
            choices.auto["short_side"] = f"{side} px: larger pictures are decoded smaller; no crop needs more"
        return data, choices, self.build(data, choices)

    def run(self) -> Run:
        data, choices, method = self.assemble()
        with contextlib.ExitStack() as stack:
            if is_main():
                self.folder.claim(stack, self.options.resume)
            return self.train(data, choices, method)

    def train(self, data: BatchData, choices: Choices, method: Method) -> Run:
        self.write_config(method, data, choices, None)
        probe = self.probe(method, data, choices) if is_main() else None
        self.prepare(method, data, choices)
        plan = make_plan(method, choices, self.options, data, self.device)
        if self.stored is not None:
            plan = self.stored_plan(plan, data)
        if world_size() > 1:
            synchronise_batch_norm(method)
        self.announce(choices, plan, data)
        try:
            fit(
                method,
                data,
                plan,
                self.folder,
                resume=self.options.resume,
                listener=self.listener,
                probe=probe,
                on_plan=lambda fixed: self.write_config(method, data, choices, fixed),
            )
        except NonFiniteLoss as error:
            if probe is not None:
                probe.failed(str(error).split(";")[0])
            raise
        if is_main():
            self.finish(method, data, probe)
        barrier()
        return Run(self.folder.path)

    def open_data(self) -> BatchData:
        o = self.options
        cache = None if o.cache is None else int(o.cache * 1e9) // world_size()
        data = self.modality.open_data(o.data, modality.Reading.of(o, cache_bytes=cache))
        if "label" in _needed(self.cls) and data.labels is None:
            raise UserError(
                f"{self.name} learns from labels but '{data.source.name}' has none; use class folders, a list with "
                "labels or a label column."
            )
        return data

    def build(self, data: BatchData, choices: Choices) -> Method:
        """Backbone and method, from the run's seed whatever was drawn before."""
        classes = len(data.class_names) if data.labels is not None else 0
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            net = self.backbone(data, choices)
            info = Info(
                samples=len(data),
                channels=data.channels,
                classes=classes,
                class_names=tuple(data.class_names),
                batch_size=choices.batch_size,
                epochs=self.options.epochs or float(choices.recipe.epochs),
                mean=tuple(net.mean.flatten().tolist()),
                std=tuple(net.std.flatten().tolist()),
            )
            o = self.options
            return build_method(self.name, self.kind, net, o.set_, info, choices.image_size, o.with_)

    def backbone(self, data: BatchData, choices: Choices) -> Backbone:
        stored = self._stored_backbone()
        if stored is not None:
            return stored
        start = self._start()
        if start is not None:
            return self._started(start, data, choices)
        mean = std = None
        if isinstance(data, Data) and data.channels != 3:
            mean, std = (tuple(float(v) for v in value) for value in data.statistics())
            choices.auto["mean"] = "measured on the data"
        name = choices.backbone
        if isinstance(self.options, AdaptOptions):
            name = self.options.run
            choices.auto["backbone"] = f"{name}: named in place of a run, with random weights"
        if isinstance(name, str):
            self._check_tower(name, modality_of_name(name), choices)
        return backbone(name, channels=data.channels, image_size=choices.image_size, mean=mean, std=std)

    def _check_tower(self, name: str, takes: str, choices: Choices) -> None:
        """A network must take what the method's main tower is given."""
        if takes != self.modality.TOWER:
            raise UserError(
                f"The backbone {name} takes {modality.get(takes).UNIT}, but {self.name} learns from "
                f"{self.modality.UNIT}; use another, such as {choices.recipe.backbone}."
            )

    def _stored_backbone(self) -> Backbone | None:
        """On resume only the shape is needed: the checkpoint holds the weights, and --init is not opened again."""
        if self.stored is None or not (self.folder / "checkpoint.pt").exists():
            return None
        self.init = self.stored.get("init")
        described = self.stored["backbone"]
        return None if described["name"].startswith("module:") else rebuild_backbone(described)

    def _started(self, start: Any, data: BatchData, choices: Choices) -> Backbone:
        """The backbone from --init or RUN, and what of it matched."""
        named, fallback = self.options.backbone, choices.backbone
        statistics = data.statistics if isinstance(data, Data) else None
        target = Target(data.channels, choices.image_size, named, fallback, statistics)
        net, report = starting_backbone(start, target)
        self._check_tower(net.name, net.modality, choices)
        self.init = report.json()
        choices.auto["backbone"] = f"{net.name}: from {report.source}"
        self.listener({"kind": "note", "text": "\n".join(report.lines()), "init": self.init})
        return net.train()

    def probe(self, method: Method, data: BatchData, choices: Choices) -> RunProbe:
        """The floor of its numbers is the net with random weights, also when the run starts from trained ones."""
        host = getattr(method, "host", method)
        twin = None
        if self._start() is not None and not host.backbone.name.startswith("module:"):
            with torch.random.fork_rng():
                torch.manual_seed(self.options.seed)
                twin = rebuild_backbone(host.backbone.describe())
        return RunProbe(method, data, choices.image_size, self.device, self.folder, twin)

    def _start(self) -> Any:
        """What the weights come from; None where they are random: no --init, or an adapter on a net by name."""
        o = self.options
        if not isinstance(o, AdaptOptions):
            return o.init
        named = is_backbone_name(o.run)
        if o.pretrained and not named:
            raise UserError(f"--pretrained is for the name of a backbone, which '{o.run}' is not; leave it out.")
        if named and o.backbone is not None and not o.pretrained:
            raise UserError(f"'{o.run}' and --backbone '{o.backbone}' both name the net; leave --backbone out.")
        return None if named and not o.pretrained else o.run

    def prepare(self, method: Method, data: BatchData, choices: Choices) -> None:
        """The method's work before training, on the main process; read back when it is there already."""
        if type(getattr(method, "host", method)).prepare is Method.prepare:
            return
        path = self.folder / "prepared.safetensors"
        if is_main() and not path.exists():
            draft = Plan(choices.recipe, 0.0, choices.batch_size, 1, 1, 1.0)
            draft = dataclasses.replace(draft, seed=self.options.seed, device=str(self.device))
            clean = modality.of_backbone(getattr(method, "host", method).backbone).clean
            tools = RunTools(data, draft, choices.image_size, self.folder, self.listener, clean)
            with alone(), torch.random.fork_rng():
                torch.manual_seed(self.options.seed)
                prepared = method.prepare(data, tools)
            with replacing(path) as part, disk_errors(part):
                save_file({k: v.contiguous() for k, v in prepared.items()}, part)
        barrier()
        method.prepared = read_prepared(self.folder.path)

    def stored_plan(self, plan: Plan, data: BatchData) -> Plan:
        assert self.stored is not None
        if self.stored["info"]["samples"] != len(data):
            raise UserError(
                f"'{data.source.name}' has {len(data)} {self.modality.UNIT} now but had "
                f"{self.stored['info']['samples']} when the run was started; resume with the same data, or start a new "
                "run in another --out."
            )
        if self.stored["plan"] is None:
            return plan
        before = Plan.from_json(self.stored["plan"])
        return dataclasses.replace(plan, steps=before.steps, epochs=before.epochs, precision=before.precision)

    def announce(self, choices: Choices, plan: Plan, data: BatchData) -> None:
        budget = f"{plan.minutes:g} minutes" if plan.steps is None else f"{plan.steps} steps"
        name = " with ".join([self.name, *self.plugins])
        text = (
            f"{name} on {len(data)} {self.modality.UNIT} of '{data.source.name}', size {choices.image_size}, "
            f"batch {plan.batch_size}, {budget}, {self.device}"
        )
        self.listener({"kind": "note", "text": text, "auto": dict(choices.auto)})

    def write_config(self, method: Method, data: BatchData, choices: Choices, plan: Plan | None) -> None:
        """At the start without a plan, so that an interrupted preparation is resumed, then with it."""
        if plan is not None and plan.minutes is not None:
            choices.auto["steps"] = f"{plan.steps}: what {plan.minutes:g} minutes allow, by the first steps"
        if not is_main() or (self.stored is not None and self.stored["plan"] is not None):
            return
        host = getattr(method, "host", method)
        plugin_arguments = {
            f"{name}.{key}": value
            for name, plugin in zip(self.plugins, getattr(method, "plugins", ()), strict=True)
            for key, value in dataclasses.asdict(plugin.config).items()
            if key != "image_size"  # the run's
        }
        config = {
            "version": 1,
            "eyespot": _version("eyespot"),
            "command": self.command,
            "method": self.name,
            "kind": self.kind,
            "plugins": self.plugins,
            "data": data.source.name,
            "image_size": choices.image_size,
            "arguments": arguments(host) | plugin_arguments,
            "backbone": host.backbone.describe(),
            "init": self.init,
            "info": dataclasses.asdict(host.info),
            "plan": None if plan is None else plan.to_json(),
            "auto": choices.auto,
            "options": plain_options(self.options),
            "environment": _environment(self.device),
        }
        write_json(self.folder / "config.json", config)

    def finish(self, method: Method, data: BatchData, probe: RunProbe | None) -> None:
        save_backbone(method.backbone.float(), self.folder.path)
        self.folder.write_bad_files(data.bad)
        record: dict[str, Any] = {"kind": "done", "run": str(self.folder.path), "bad_files": len(data.bad)}
        if probe is not None:
            record["verdict"] = probe.finish(method)
        if self.options.pictures:
            size = getattr(method, "host", method).config.image_size
            draw_pictures(method, data, self.folder.path, size, self.options.seed)
        test = getattr(self.options, "test_data", None)
        if test is not None:
            record |= self.test(method, test, data)
        self.listener(record)

    def test(self, method: Method, test: Any, data: BatchData) -> dict[str, Any]:
        """Accuracy of an adapter on held-out pictures, kept in evaluation.json."""
        from eyespot.evaluate.classify import accuracy

        reading = modality.Reading(channels=data.channels, workers=self.options.workers)
        held_out = self.modality.open_data(test, reading)
        result = accuracy(method, held_out, data.class_names, self.device)
        write_json(self.folder / "evaluation.json", result)
        return {"test_top1": result["top1"]}


def _needed(cls: type[Method]) -> tuple[str, ...]:
    return (cls.needs,) if isinstance(cls.needs, str) else tuple(cls.needs)


def _version(package: str) -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return "unknown"


def _environment(device: torch.device) -> dict[str, Any]:
    packages = {p: _version(p) for p in ("torch", "torchvision", "timm", "numpy", "pillow")}
    return {
        "python": platform.python_version(),
        **packages,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "command": " ".join(sys.argv[1:]),
    }

"""The options of every command and of the Python function of the same name: the one place of their defaults.

`eyespot pretrain simclr --data photos/ --epochs 10` and `eyespot.pretrain("simclr", data="photos/", epochs=10)` both
end in a `PretrainOptions`. This file imports no torch, so that help is quick. `set_` and `with_` are `--set` and
`--with` on the command line, where the underscore is not needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eyespot.declare import Options, option
from eyespot.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """How the data is read."""

    last: ClassVar[bool] = True

    image_column: str | None = option(None, none="found")
    """Column of a Parquet file that holds the pictures, or ending of these members of a tar."""
    text_column: str | None = option(None, none="found")
    """Column of a table that holds the captions, for methods that learn from pictures with captions."""
    label_column: str | None = option(None, none="found")
    """Column of a Parquet file that holds the labels, or ending of these members of a tar, or key in its .json."""
    split: str | None = option(None, none="the training part where parts are marked, else all")
    """Part of the data to read (train, test, ...) where parts are marked."""
    channels: int | None = option(None, low=1, none="as the data")
    """Number of channels that pictures are brought to (1 grey, 3 RGB, N as they are)."""
    workers: int | None = option(None, low=0, none="from the cores")
    """Processes that decode pictures; 0 decodes in the main process."""
    max_bad: float = option(0.05, low=0.0, high=1.0)
    """Largest share of unreadable files; above it the command stops."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(DataOptions):
    """Learn a representation from a folder of pictures without labels."""

    method: Any = dataclasses.field(kw_only=False)
    """Name of the method; `eyespot methods` lists them."""
    data: Any
    """Folder, text list, Parquet files or tars of pictures (in Python also a dataset)."""
    out: Any
    """Folder of the run; made when missing."""
    backbone: Any = option(None, none="from the recipe", word="NAME")
    """Name of the network: ours, timm's, or torchvision/NAME (in Python also a module)."""
    image_size: int | None = option(None, low=8, none="from the recipe")
    """Side of the view in pixels."""
    epochs: float | None = option(None, above=0, none="from the recipe")
    """Passes over the data; a fraction is allowed."""
    minutes: float | None = option(None, above=0, none="by epochs")
    """Time to train instead of epochs; the first steps are measured and fix the number of steps."""
    batch_size: int | None = option(None, low=2, none="from the recipe")
    """Samples in a step over all processes."""
    lr: float | None = option(None, above=0, none="from the recipe")
    """Peak learning rate, used as it is (the recipe's own rate follows the batch)."""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] | None = option(None, none="from the recipe")
    """Optimizer."""
    weight_decay: float | None = option(None, low=0, none="from the recipe")
    """Weight decay."""
    clip: float | None = option(None, above=0, none="from the recipe")
    """Largest norm of the gradient."""
    cache: float | None = option(None, low=0, none="a quarter of what is free, at most 2", word="GB")
    """Gigabytes of memory for decoded pictures; used when all of them fit."""
    accumulate: int = option(1, low=1)
    """Parts into which a batch is cut, one after the other, to save memory."""
    seed: int = option(0, low=0)
    """Seed of weights, order and views."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, exactly."""
    init: Any = option(None, none="random weights", word="SOURCE")
    """Weights to start from: a run, a file, a Hugging Face folder, or a timm or torchvision/ name (published ones)."""
    device: str = option("auto", word="NAME")
    """cpu, cuda, cuda:1 or mps; auto is cuda where there is one, else cpu."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Number format of the forward pass; auto is bfloat16 where the device has it, else float32."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the work: ddp keeps the whole net on each, fsdp a part; auto is ddp."""
    log_every: int = option(10, low=1)
    """Most steps between two records in metrics.jsonl; short runs are logged more often."""
    pictures: bool = True
    """Draw views, neighbours and groups of a few pictures into the run's pictures/ at the end."""
    set_: Mapping[str, Any] | Sequence[str] = option((), many=True, word="KEY=VALUE")
    """Arguments of the method as key=value; may repeat (in Python also a dictionary)."""
    with_: Sequence[str] = option((), many=True, word="NAME")
    """Plug-ins that stand between the method's encoder and its loss."""
    listener: Callable[..., Any] | None = option(None, python_only=True)
    """Called with each progress record."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.minutes is not None:
            raise UserError("--epochs and --minutes exclude each other; give one of them.")
        if isinstance(self.with_, str):
            object.__setattr__(self, "with_", (self.with_,))
        if isinstance(self.set_, str):
            object.__setattr__(self, "set_", (self.set_,))


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(PretrainOptions):
    """Adapt a trained representation with labels."""

    run: Any = dataclasses.field(kw_only=False)
    """What to start from: a run, a file or Hugging Face folder of weights, or the name of a backbone."""
    pretrained: bool = False
    """Take the published weights of a named backbone instead of random ones."""
    test_data: Any = option(None, none="not measured")
    """Labelled pictures on which accuracy is measured at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is not None:
            raise UserError("RUN says already what an adapter starts from; leave --init out.")


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(PretrainOptions):
    """Measure a few steps, and say what time, memory and disk the run will take."""

    out: Any = option(None, none="here", word="PATH")
    """Folder the run would have; only its free disk space is looked at."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Show versions, devices, threads, free memory and disk, missing extras, and what helps."""

    out: str = option(".", word="PATH")
    """Folder of runs, whose free disk space is looked at."""


@dataclass(frozen=True, kw_only=True)
class TracksOptions(Options):
    """Mine tracks of moving objects from video: a folder with two pictures of each object."""

    videos: Any = dataclasses.field(kw_only=False)
    """Folder of video files, searched in depth, or one file."""
    out: Any
    """New folder of the tracks."""
    span: int = option(30, low=4)
    """Frames from the first picture of an object to the second; shorter clips take what there is."""
    per_clip: int = option(1, low=1)
    """Most tracks a clip; they begin at evenly spaced frames."""
    same: Literal["file", "folder"] = "file"
    """What counts as one video, whose tracks are never linked with each other: a file, or all clips of a folder."""
    size: float = option(0.5, above=0, high=1.0)
    """Side of an object's box as a share of the shorter side."""
    least_match: float = option(0.5, low=-1.0, high=1.0)
    """Least correlation of a box from one frame to the next; below it a track is dropped."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(DataOptions):
    """What is measured, and against which masks."""

    mask_column: str | None = option(None, none="found")
    """Column of a Parquet file that holds masks of class numbers."""
    ignore: Sequence[str] = option("255", repeat=True, word="VALUE")
    """Values of masks that are not counted, several with commas; none counts all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.ignored

    @property
    def ignored(self) -> tuple[int, ...]:
        """The values of masks that are not counted, in ascending order."""
        given: Any = self.ignore
        words = [given] if isinstance(given, str | int) else list(given)
        values = [v.strip() for word in words for v in str(word).split(",") if v.strip().lower() not in ("", "none")]
        wrong = next((v for v in values if not v.isdecimal()), None)
        if wrong is not None:
            raise UserError(f"--ignore cannot be '{wrong}': it takes whole numbers with commas between them, or none.")
        return tuple(sorted({int(v) for v in values}))


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """Measure a representation against a random one under fixed protocols."""

    model: Any = dataclasses.field(kw_only=False)
    """Run folder, name of a backbone, or Parquet file of embeddings."""
    data: Any
    """Labelled pictures to learn from."""
    test_data: Any = option(None, none="a fifth of --data")
    """Labelled pictures to measure on."""
    protocol: Sequence[str] = option("knn", repeat=True, word="NAME")
    """Protocols, several with commas or the option repeated: knn, linear, low_shot, few_shot, svm, retrieval,
    purity, recalls, finetune and zero_shot look at labels, pixel_linear, patch_knn, segmentation, slots and scenes at
    masks, image_text at captions, sts at sentences, pose at poses, representation at none."""
    image_size: int | None = option(None, low=8, none="as trained")
    """Side of the picture in pixels."""
    pretrained: bool = False
    """Take the published weights of a named backbone instead of random ones."""
    batch_size: int = option(256, low=1)
    """Pictures embedded at a time."""
    seed: int = option(0, low=0)
    """Seed of the random floor, of the split, of draws and of fine-tuning."""
    floor: bool = True
    """Measure random features of the same network too."""
    epochs: float | None = option(None, above=0, none="the protocol's")
    """Passes over the training pictures in finetune."""
    prompts: str | None = option(None, none="templates", word="FILE")
    """Descriptions of the classes for zero_shot: templates with {} a line, or a JSON of lists."""
    name: str | None = option(None, none="its path")
    """What the data is called in the results that the run keeps."""
    device: str = option("auto", word="NAME")
    """cpu, cuda, cuda:1 or mps; auto is cuda where there is one, else cpu."""
    listener: Callable[..., Any] | None = option(None, python_only=True)
    """Called with each progress record of a fine-tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.protocols
        if not names:
            raise UserError(f"--protocol names none; valid: {', '.join(PROTOCOLS)}.")
        if self.epochs is not None and "finetune" not in names:
            raise UserError("--epochs is for --protocol finetune; leave it out, or ask for finetune too.")

    @property
    def protocols(self) -> tuple[str, ...]:
        """The names asked for, each once, in their order."""
        return protocol_names(self.protocol)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(MeasureOptions):
    """Put runs beside each other: what they are, and every result kept in them beside its floor."""

    runs: Any = dataclasses.field(kw_only=False, metadata={"many": True})
    """Run folders, one or more."""
    data: Any = option(None, none="only what is kept")
    """Labelled pictures; what a run lacks on them is measured first."""
    test_data: Any = option(None, none="a fifth of --data")
    """Labelled pictures to measure on."""
    protocol: Sequence[str] = option((), repeat=True, word="NAME")
    """Protocols to show, all without; with --data those to measure (default: knn and linear)."""
    seed: int = option(0, low=0)
    """Seed of what is measured."""
    device: str = option("auto", word="NAME")
    """cpu, cuda, cuda:1 or mps; auto is cuda where there is one, else cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folders:
            raise UserError("RUNS is missing: run folders, one or more.")
        if self.data is None and self.test_data is not None:
            raise UserError("--test-data needs --data, the labelled pictures to learn from; give both.")
        _ = self.protocols

    @property
    def folders(self) -> list[Any]:
        """The runs, also where one alone was given."""
        return list(self.runs) if isinstance(self.runs, list | tuple) else [self.runs]

    @property
    def protocols(self) -> tuple[str, ...]:
        """The names asked for, each once, in their order."""
        return protocol_names(self.protocol)


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(DataOptions):
    """Write the features of pictures to a Parquet file: id, path, vector and the label where known."""

    model: Any = dataclasses.field(kw_only=False)
    """Run folder or name of a backbone."""
    data: Any
    """Folder, text list, Parquet files or tars of pictures."""
    out: Any
    """Parquet file that is written."""
    image_size: int | None = option(None, low=8, none="as trained")
    """Side of the picture in pixels."""
    pretrained: bool = False
    """Take the published weights of a named backbone instead of random ones."""
    batch_size: int = option(256, low=1)
    """Pictures embedded at a time."""
    device: str = option("auto", word="NAME")
    """cpu, cuda, cuda:1 or mps; auto is cuda where there is one, else cpu."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Write a trained backbone in another library's format, load it there and compare."""

    run: Any = dataclasses.field(kw_only=False)
    """Run folder, or name of a backbone with --pretrained."""
    format: Literal["timm", "torchvision", "huggingface", "onnx", "torchscript", "torch_export"] = option()
    """What is written: safetensors in timm's or torchvision's names, a Hugging Face folder, or a program."""
    out: Any
    """File that is written (.safetensors, .onnx, .pt, .pt2), or folder for huggingface."""
    pretrained: bool = False
    """Export the published weights of a named backbone."""
    image_size: int | None = option(None, low=8, none="as trained, or as published")
    """Side of the picture in pixels, for a named backbone."""
    tolerance: float = option(1e-4, above=0)
    """Largest difference of a feature, as a share of the largest feature; beyond it nothing is written."""


@dataclass(frozen=True, kw_only=True)
class MethodsOptions(Options):
    """List the methods, or describe one."""

    name: str | None = dataclasses.field(default=None, kw_only=False)
    """Method to describe."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Run the main job end to end: pictures, pre-training, evaluation, neighbours."""

    data: Any = option(None, none="rendered scenes")
    """Own folder of pictures to use in place of the rendered scenes."""
    test_data: Any = option(None, none="a fifth of --data")
    """Labelled pictures to measure on, with --data."""
    out: str = option("demo", word="PATH")
    """Folder of data and run."""
    method: str = option("simclr", word="NAME")
    """Method to pre-train with."""
    backbone: str = option("resnet8", word="NAME")
    """Network."""
    image_size: int = option(32, low=8)
    """Side of the view in pixels."""
    minutes: float = option(3.0, above=0)
    """Time to train."""
    seed: int = option(0, low=0)
    """Seed of data, weights and views."""


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(Options):
    """Run a paper's claim against its control and record it, or list the claims."""

    name: str | None = dataclasses.field(default=None, kw_only=False)
    """Claim to run; none lists them with what was recorded."""
    data_folder: str | None = option(None, none="EYESPOT_DATA", word="PATH")
    """Folder that holds the data sets that claims name."""
    out: str = option("runs/reproduce", word="PATH")
    """Folder of the runs; what is done there is not done again."""
    seeds: int | None = option(None, low=1, none="all of the claim")
    """Number of seeds; with fewer than the claim has, the record goes to --out."""
    claims: str | None = option(None, none="reproductions", word="PATH")
    """Folder of the claims, where records go too."""
    listener: Callable[..., Any] | None = option(None, python_only=True)
    """Called with each progress record."""


PROTOCOLS = ("knn", "linear", "low_shot", "retrieval", "purity", "recalls", "svm", "few_shot", "finetune")
PROTOCOLS += ("pixel_linear", "patch_knn", "segmentation", "slots", "scenes", "representation")
PROTOCOLS += ("image_text", "zero_shot", "sts", "pose")


def protocol_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """The protocols of "knn,linear", of a list of names, or of both, each once.

    Raises:
        UserError: for a name that does not exist, with the nearest.
    """
    words = [given] if isinstance(given, str) else list(given)
    names = [name.strip().replace("-", "_") for word in words for name in str(word).split(",") if name.strip()]
    for name in names:
        if name not in PROTOCOLS:
            raise unknown("protocol", name, PROTOCOLS)
    return tuple(dict.fromkeys(names))

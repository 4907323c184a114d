"""Fine-tuning: rates by layer, frozen recipe, what it learns, what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

import eyespot
from eyespot.data.loader import Data
from eyespot.data.part import Part
from eyespot.data.sources import open_source
from eyespot.declare import build
from eyespot.errors import UserError
from eyespot.evaluate import finetune
from eyespot.evaluate.samples import read_samples
from eyespot.nets.backbones import backbone
from eyespot.options import EvaluateOptions
from eyespot.train.optimizers import build_optimizer

QUICK = {"workers": 0}


def net(name="resnet8", **options):
    torch.manual_seed(0)
    return backbone(name, image_size=16, **options)


def pictures(folder, rows=None):
    source = open_source(folder)
    rows = np.arange(len(source)) if rows is None else rows
    data = Data(Part(source, rows, source.labels[rows], ("0", "1", "2")), workers=0)
    return data, torch.from_numpy(data.labels)


def run(folders, net, **given):
    train, labels = pictures(folders[0])
    test, test_labels = pictures(folders[1])
    return finetune.run(train, labels, test, test_labels, 3, net=net, image_size=16, **given)


def test_learns_the_patterns_and_leaves_the_given_network_alone(folders):
    start = net()
    before = {k: v.clone() for k, v in start.state_dict().items()}
    metrics, config = run(folders, start, epochs=30)
    assert metrics["top1"] > 55 and metrics["top5"] == 100.0
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    assert start.training
    assert config["epochs"] == 30 and config["batch_size"] == 16 and config["steps"] == 90
    assert (config["layer_decay"], config["drop_path"]) == (0.75, 0.0)
    assert config["features"] == "all weights trained with labels"


def test_repeats_to_the_bit_and_follows_the_seed(folders):
    first, second, other = (run(folders, net(), epochs=1, seed=s)[0] for s in (0, 0, 1))
    assert first == second
    weights = [finetune.build(net(), 3, 60, 16, s).classifier.weight for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert other.keys() == first.keys()


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_rates_fall_from_the_classifier_to_the_pixels(name):
    method = finetune.build(net(name), 3, 60, 16, 0)
    groups = build_optimizer(method, finetune.RECIPE, 1.0).param_groups
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    names = {n: scale[id(p)] for n, p in method.named_parameters() if p.requires_grad}
    assert names["classifier.weight"] == 1.0
    last = "backbone.net.blocks.2." + ("conv1.weight" if name == "resnet8" else "attn.qkv.weight")
    first = "backbone.net." + ("conv.weight" if name == "resnet8" else "patch_embed.proj.weight")
    assert names[last] == pytest.approx(0.75) and names[first] == pytest.approx(0.75**4)
    assert len(scale) == sum(p.requires_grad for p in method.parameters())
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decays[id(method.classifier.weight)] == 0.05 and decays[id(method.classifier.bias)] == 0


def test_drop_path_rises_over_the_blocks():
    start = net("vit_nano")
    method = finetune.build(start, 3, 60, 16, 0)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in method.backbone.net.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1])
    assert all(not hasattr(b.drop_path1, "drop_prob") for b in start.net.blocks)


def test_a_frozen_network_is_trained_whole():
    method = finetune.build(net().requires_grad_(False), 3, 60, 16, 0)
    assert all(p.requires_grad for p in method.parameters())


def test_constants_are_frozen():
    r = finetune.RECIPE
    assert (finetune.NAME, finetune.VERSION, finetune.SETTINGS) == ("finetune", 1, ("epochs",))
    assert (r.optimizer, r.lr, r.lr_rule, r.lr_batch, r.weight_decay) == ("adamw", 2e-3, "sqrt", 256, 0.05)
    assert (r.batch_size, r.epochs, r.warmup_epochs, r.schedule, r.betas) == (128, 10, 1.0, "cosine", (0.9, 0.999))
    assert (finetune.DECAY, finetune.DROP_PATH, finetune.SMOOTHING) == (0.75, 0.1, 0.1)
    config = finetune.build(net(), 3, 60, 16, 0).config
    assert (config.smoothing, config.crop_min, config.jitter, config.flip) == (0.1, 0.4, 0.0, 0.5)


@pytest.mark.parametrize(("samples", "batch"), [(2, 2), (10, 10), (60, 16), (400, 40), (5000, 128)])
def test_batch_of_small_sets(samples, batch):
    method = finetune.build(net(), 3, samples, 16, 0)
    plan = finetune.make_plan(method, samples, None, 0, torch.device("cpu"))
    assert plan.batch_size == batch and plan.steps == 10 * (samples // batch)
    assert plan.lr == pytest.approx(2e-3 * (batch / 256) ** 0.5)


def test_double_precision_stays_double(folders):
    _, config = run(folders, net().double(), epochs=0.4)
    assert config["precision"] == "float64"


def test_weights_that_are_not_finite_are_told(folders):
    start = net()
    with torch.no_grad():
        next(start.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="Fine-tuning resnet8 diverged"):
        run(folders, start, epochs=1)


# --- through evaluate -----------------------------------------------------------------------------------------
def test_floor_is_the_same_training_from_random_weights(folders):
    start, heard = net(), []
    result = eyespot.evaluate(start, *folders, "finetune", epochs=1, listener=heard.append, **QUICK)
    assert result["protocol"] == "finetune" and set(result["floor"]) == {"top1", "top5"}
    notes = [r["text"] for r in heard if r["kind"] == "note"]
    assert len(notes) == 2 and "random weights" in notes[1]
    assert result["config"]["floor"] == {"weights": "random, as initialised", "seeds": [0]}
    from eyespot.evaluate.models import random_twin

    assert result["floor"] == run(folders, random_twin(start, 0), epochs=1)[0]
    assert {k: result[k] for k in ("top1", "top5")} == run(folders, start, epochs=1)[0]
    assert [result[k] for k in ("n_train", "n_test", "classes")] == [60, 24, 3]


@pytest.mark.parametrize("features", [True, False])
def test_pictures_carry_the_classes_of_the_training_side(folders, write, tmp_path, features):
    """The test folder lacks a class, so that it numbers the others differently."""
    test = write(tmp_path / "test", 3, classes=("checks", "down"))
    for test_data in (test, None):
        options = build(EvaluateOptions, net(), data=folders[0], test_data=test_data, **QUICK)
        samples = read_samples(options, 1, torch.device("cpu"), features=features, pictures=True)
        sides = zip(samples.pictures(), (samples.labels, samples.test_labels), strict=True)
        for data, labels in sides:
            names = [Path(data.source.path(i)).parent.name for i in range(len(data))]
            assert [("across", "checks", "down")[k] for k in data.labels.tolist()] == names
            assert data.labels.tolist() == labels.tolist()
            assert data.batch(np.array([1]))["label"].item() == labels[1]


def test_a_part_is_held_out(folders):
    result = eyespot.evaluate(net(), folders[0], protocol="finetune", epochs=0.4, floor=False, **QUICK)
    assert (result["n_train"], result["n_test"], result["floor"]) == (48, 12, None)


def test_a_random_backbone_is_its_own_floor(folders):
    result = eyespot.evaluate("resnet8", *folders, "finetune", epochs=0.4, image_size=16, **QUICK)
    assert result["floor"] == {k: result[k] for k in ("top1", "top5")}


def test_few_pictures_and_bad_files(tmp_path, write):
    train, test = write(tmp_path / "train", 1), write(tmp_path / "test", 2, seed=1)
    (test / "down" / "000.png").write_bytes(b"\x89PNG nothing")
    result = eyespot.evaluate(net(), train, test, "finetune", epochs=1, floor=False, max_bad=0.5, **QUICK)
    assert (result["n_train"], result["config"]["batch_size"]) == (3, 3)
    assert result["config"]["bad_files"] == 1 and result["n_test"] == 5


def test_epochs_belong_to_finetune(folders):
    with pytest.raises(UserError, match="--epochs is for --protocol finetune"):
        eyespot.evaluate(net(), *folders, "knn", epochs=3, **QUICK)


def test_saved_embeddings_cannot_be_trained(folders, tmp_path):
    eyespot.embed(net(), folders[0], tmp_path / "e.parquet", **QUICK)
    with pytest.raises(UserError, match="no network to train"):
        eyespot.evaluate(tmp_path / "e.parquet", protocol="knn,finetune")

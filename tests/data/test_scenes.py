"""The rendered demo data: a pure function of seed and number, shape the only thing that tells classes apart."""

import numpy as np
import pytest
import torch
from PIL import Image

from eyespot.data import Data, open_source
from eyespot.data.scenes import CLASSES, SceneDataset, render_scenes, scene_factors, write_scenes
from eyespot.data.shapes import SOLIDS, march, normals
from eyespot.errors import UserError


def test_pure_function_of_seed_and_number():
    images, factors = render_scenes(30)
    assert images.dtype == torch.uint8 and images.shape == (30, 3, 32, 32)
    assert factors["shape"].tolist() == [i % 10 for i in range(30)]
    part, part_factors = render_scenes(6, start=17)
    assert all(torch.equal(factors[k][17:23], part_factors[k]) for k in factors)
    assert (images[17:23].int() - part.int()).abs().max() <= 1  # another grouping may round differently
    assert torch.equal(render_scenes(30)[0], images)
    for other in (render_scenes(6, seed=1), render_scenes(6, split="test")):
        assert not torch.equal(other[0], images[:6])
    assert len(torch.unique(images.flatten(1), dim=0)) == 30


def test_sizes_and_none():
    assert render_scenes(3, size=48)[0].shape == (3, 3, 48, 48)
    empty, factors = render_scenes(0)
    assert empty.shape == (0, 3, 32, 32) and len(factors["shape"]) == 0


@pytest.mark.parametrize("name", CLASSES)
def test_solids_are_safe_to_march(name):
    """No distance is larger than the true one, so it changes by at most 1 a unit; all fit into the unit sphere."""
    solid = SOLIDS[name]
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 20000, generator=generator) * 3 - 1.5
    change = (solid(*a) - solid(*b)).abs() / (a - b).norm(dim=0)
    assert change.max() <= 1 + 1e-4
    inside = a[:, solid(*a) < 0]
    assert inside.shape[1] > 100 and inside.norm(dim=0).max() <= 1
    assert solid(*torch.tensor([[0.0], [0.0], [0.0]])) < 0 or name == "torus"


def test_march_and_normals_on_a_sphere():
    origin = torch.tensor([[0.0, 0, -3], [0.5, 0, -3], [1.5, 0, -3]]).T.contiguous()
    direction = torch.tensor([[0.0, 0, 1]] * 3).T.contiguous()
    hit, t = march(SOLIDS["sphere"], origin, direction, torch.full((3,), 2.0), torch.full((3,), 4.0))
    assert hit.tolist() == [True, True, False]
    torch.testing.assert_close(t[:2], torch.tensor([3 - 0.76, 3 - (0.76**2 - 0.25) ** 0.5]), atol=0.02, rtol=0)
    point = origin[:, :2] + direction[:, :2] * t[:2]
    torch.testing.assert_close(normals(SOLIDS["sphere"], point), point / point.norm(dim=0), atol=1e-2, rtol=0)


def test_factors_do_not_tell_the_class():
    """Means of every factor by class differ by no more than chance; colours and light say nothing about shape."""
    factors = scene_factors(np.arange(4000))
    shape = factors["shape"]
    for name, values in factors.items():
        if name == "shape":
            continue
        flat = values.double().view(4000, -1)
        spread = flat.std(0).clamp_min(1e-9)
        means = torch.stack([flat[shape == k].mean(0) for k in range(10)])
        z = ((means - flat.mean(0)) / spread * 20).abs()  # 400 samples a class: standard error 1/20
        assert z.max() < 5, name
    assert torch.allclose(factors["rotation"] @ factors["rotation"].transpose(1, 2), torch.eye(3), atol=1e-5)


def test_dataset():
    data = SceneDataset(260, seed=3)
    images, _ = render_scenes(260, seed=3)
    assert len(data) == 260 and data.classes == list(CLASSES)
    for i in (0, 130, 259):
        image, label = data[i]
        assert torch.equal(image, images[i]) and label == i % 10
    with pytest.raises(IndexError):
        data[260]


def test_written_folder_is_read_as_classes(tmp_path):
    root = write_scenes(tmp_path, 25, split="test")
    assert root == tmp_path / "test"
    source = open_source(root)
    assert source.class_names == CLASSES and len(source) == 25
    images, factors = render_scenes(25, split="test")
    numbers = [int(source.path(i)[-10:-4]) for i in range(25)]
    for i in (0, 7, 24):
        assert torch.equal(source.load(i), images[numbers[i]])
    assert source.labels is not None and source.labels.tolist() == factors["shape"][numbers].tolist()
    write_scenes(tmp_path, 20)
    assert open_source(tmp_path).name.endswith(":train") and len(open_source(tmp_path, split="test")) == 25
    assert Image.open(source.path(0)).size == (32, 32)


def test_source_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eyespot.data.loader.PROBES", 2)
    for name, split, count in [("scenes:test", None, 2000), ("scenes", None, 8000), ("scenes", "test", 2000)]:
        source = open_source(name, split=split)
        assert len(source) == count and source.class_names == CLASSES and source.labels is not None
    assert Data(open_source("scenes:test"), cache_bytes=0, workers=0).batch([3])["label"].item() == 3
    with pytest.raises(UserError, match=r"no split 'tset'; did you mean 'test'"):
        open_source("scenes:tset")
    (tmp_path / "scenes").mkdir()
    with pytest.raises(UserError, match="is empty"):
        open_source("scenes")  # a path of that name comes first

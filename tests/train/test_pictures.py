"""The pictures that a run leaves: written, of the right pixels, and not when they are not wanted."""

import numpy as np
import pytest
import torch
from PIL import Image

import eyespot
from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.draws import Draws
from eyespot.methods.image.simclr import SimCLR, SimCLRConfig
from eyespot.nets.backbones import backbone
from eyespot.train.pictures import GAP, HEAD, SIDE, draw_pictures, grid, segments_picture, views_of

COMMON = {"backbone": "resnet8", "image_size": 16, "epochs": 1, "batch_size": 8, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / f"{i}.png")
    return root


def names(run):
    return sorted(file.name for file in (run.path / "pictures").iterdir())


def test_a_run_leaves_pictures(folder, tmp_path):
    run = eyespot.pretrain("slotcon", data=folder, out=tmp_path / "a", set={"prototypes": 5, "hidden": 8}, **COMMON)
    assert names(run) == ["neighbours.png", "segments.png", "views.png"]
    for name in names(run):
        with Image.open(run.path / "pictures" / name) as image:
            assert image.mode == "RGB" and min(image.size) > 100
            assert len(np.unique(np.asarray(image))) > 20


def test_methods_without_groups_draw_none_and_pictures_may_be_left_out(folder, tmp_path):
    run = eyespot.pretrain("simclr", data=folder, out=tmp_path / "a", **COMMON)
    assert names(run) == ["neighbours.png", "views.png"]
    run = eyespot.pretrain("simclr", data=folder, out=tmp_path / "b", pictures=False, **COMMON)
    assert not (run.path / "pictures").exists()


def test_the_weights_do_not_depend_on_the_pictures(folder, tmp_path):
    both = [
        eyespot.pretrain("simclr", data=folder, out=tmp_path / str(k), pictures=k, **COMMON).backbone.state_dict()
        for k in (True, False)
    ]
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])


def test_views_are_those_of_the_first_epoch(folder):
    data = Data(open_source(folder), workers=0)
    method = SimCLR(backbone("resnet8", image_size=16), SimCLRConfig(image_size=16))
    batch = data.batch([3, 7])
    seen = dict(views_of(method, batch, 5, torch.device("cpu")))
    expected = method.views(batch, Draws(5, 0, 9, [3, 7]))  # whatever the step
    assert list(seen) == ["view1", "view2"]
    assert all(torch.equal(seen[name], expected[name]) for name in seen)


def test_tiles_stand_where_they_belong():
    first, second = torch.rand(3, 3, 8, 8), torch.zeros(3, 1, 4, 4)
    second[2] = 1
    image = np.asarray(grid(["a", "b"], [first, second]))
    wide = image.shape[1] // 2
    corner = (first[1, :, 0, 0] * 255).round().numpy()
    assert (image[HEAD + SIDE + GAP, GAP] == corner).all()  # second row, first column
    assert (image[HEAD + 5, wide + GAP + SIDE + GAP + 5] == 255).all()  # third picture: first row of the right half
    assert (image[HEAD + 5, GAP + SIDE + GAP + 5] == 0).all()


def test_groups_have_colours_of_their_own():
    class Halves(torch.nn.Module):
        groups = 3

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def segments(self, pixels):
            return torch.tensor([[0, 2]]).expand(len(pixels), 1, 2)

    image = np.asarray(segments_picture(Halves(), torch.rand(1, 3, 8, 8)))
    painted = image[HEAD : HEAD + SIDE, 2 * GAP + SIDE : 2 * GAP + 2 * SIDE]
    left, right = np.unique(painted[:, :40].reshape(-1, 3), axis=0), np.unique(painted[:, -40:].reshape(-1, 3), axis=0)
    assert len(left) == len(right) == 1 and (left != right).any()


def test_a_method_shows_what_it_wants_to(tmp_path):
    class Shows(SimCLR):
        def pictures(self, batch, draws):
            pixels = batch["image"].float() / 255
            return {"twins": {"picture": pixels, "dark": pixels / 2}}

    method = Shows(backbone("resnet8", image_size=16), SimCLRConfig(image_size=16))
    data = Data(open_source([torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8) for _ in range(4)]), workers=0)
    files = [path.name for path in draw_pictures(method, data, tmp_path, 16, seed=0)]
    assert files[0] == "twins.png" and "views.png" in files
    shown = np.asarray(Image.open(tmp_path / "pictures" / "twins.png")).astype(int)
    assert shown.shape[1] > shown.shape[0]
    bright, dark = shown[20:116, 4:100], shown[20:116, 104:200]
    assert np.abs(bright / 2 - dark).max() <= 1

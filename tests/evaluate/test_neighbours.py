"""The picture of nearest neighbours."""

import numpy as np
import torch
from PIL import Image

from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.evaluate import neighbours as module
from eyespot.evaluate.neighbours import choose_queries, draw_neighbours, neighbours_picture, others
from eyespot.nets.backbones import backbone, save_backbone


def test_others_are_the_nearest_but_the_sample_itself():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    x[7] = x[3]  # equal pictures
    unit = torch.nn.functional.normalize(x, dim=1)
    similar = (unit @ unit.T).fill_diagonal_(-2)
    found = others(x, 4)
    assert found.shape == (40, 4)
    for i in range(40):
        assert i not in found[i]
        assert torch.allclose(similar[i, found[i]], similar[i].topk(4).values, atol=1e-6)
    assert not any(i in row for i, row in enumerate(others(torch.ones(30, 3), 4)))


def test_queries_are_of_different_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 3 + [-1] * 20)
    asked = choose_queries(labels, len(labels), 6, 0)
    assert sorted(labels[asked].tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(set(choose_queries(None, 10, 6, 0).tolist())) == 6


def colours(path):
    """Those with at least as many pixels as one frame has."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(c) for c, n in zip(found.tolist(), counts, strict=True) if n >= module.TILE**2 - module.SIDE**2}


def test_picture_has_frames_where_there_are_labels(tmp_path, folders):
    net = backbone("resnet8", image_size=16)
    data = Data(open_source(folders[1]), workers=0)
    result = neighbours_picture(None, net, data, tmp_path / "a.png", queries=3, neighbours=4)
    assert result["searched"] == 24 and all(0 <= s <= 100 for s in result["same_class"])
    image = Image.open(tmp_path / "a.png")
    cell = module.TILE + module.GAP
    assert image.size[0] > 9 * cell and image.size[1] > 3 * cell
    seen = colours(tmp_path / "a.png")
    assert {module.SAME, module.OTHER} <= seen and module.UNKNOWN not in seen
    source = open_source(folders[1])
    source.labels = None
    bare = neighbours_picture(None, net, Data(source, workers=0), tmp_path / "b.png", queries=2)
    assert bare["same_class"] is None
    assert module.UNKNOWN in colours(tmp_path / "b.png") and module.SAME not in colours(tmp_path / "b.png")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.png", "b.png"]


def test_grey_and_many_channels(tmp_path):
    class Bands(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return torch.randint(0, 256, (5, 16, 16), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)

    data = Data(open_source(Bands()), workers=0)
    net = backbone("resnet8", image_size=16, channels=data.channels)
    assert neighbours_picture(None, net, data, tmp_path / "a.png", neighbours=9)["searched"] == 6


def test_share_of_the_class_is_that_of_the_neighbours(tmp_path, folders):
    class Corner(torch.nn.Module):
        """Features that tell the classes apart: variation along rows and along columns."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            rows, columns = (
                (x[:, :, 2:] - x[:, :, :-2]).abs().mean((2, 3)),
                (x[..., 2:] - x[..., :-2]).abs().mean((2, 3)),
            )
            return self.scale * torch.stack([rows.mean(1), columns.mean(1)], 1)

    data = Data(open_source(folders[1]), workers=0)
    net = backbone("resnet8", image_size=16)
    own = backbone(Corner(), image_size=16)
    before, after = neighbours_picture(net, own, data, tmp_path / "a.png")["same_class"]
    assert after > 90 and before < after


def test_for_a_run(tmp_path, folders):
    save_backbone(backbone("resnet8", image_size=16), tmp_path)
    assert draw_neighbours(tmp_path, folders[1]) == tmp_path / "pictures" / "neighbours.png"
    assert (tmp_path / "pictures" / "neighbours.png").is_file()

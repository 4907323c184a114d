"""Features from pictures and from files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.errors import UserError
from eyespot.evaluate.features import extract, extract_many, is_embeddings, read_embeddings
from eyespot.evaluate.models import random_twin
from eyespot.nets.backbones import backbone
from eyespot.views.image import clean


def open_data(folder, **given):
    return Data(open_source(folder), workers=0, cache_bytes=0, **given)


def test_features_are_those_of_the_clean_view_in_evaluation_mode(folders):
    data = open_data(folders[1])
    net = backbone("resnet8", image_size=16).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    vectors, labels = extract(net, data, batch_size=7)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert vectors.shape == (24, net.embed_dim) and vectors.dtype == torch.float32
    assert labels.tolist() == data.labels.tolist()
    net.eval()
    with torch.no_grad():
        expected = net(clean(data.batch(np.arange(24))["image"], 16))
    assert torch.allclose(vectors, expected, atol=1e-5)


def test_several_networks_and_some_rows(folders):
    data = open_data(folders[1])
    nets = [backbone("resnet8", image_size=16), backbone("resnet8", image_size=16)]
    rows = np.array([5, 3, 20])
    features = extract_many(nets, data, rows, image_size=16)
    for net, vectors in zip(nets, features.vectors, strict=True):
        assert torch.allclose(vectors, extract(net, data, 16)[0][rows], atol=1e-5)
    assert features.index.tolist() == [5, 3, 20]
    assert features.paths == [data.source.path(i) for i in rows]
    taken = features.take(np.array([2, 0]))
    assert taken.index.tolist() == [20, 5] and torch.equal(taken.vectors[1], features.vectors[1][[2, 0]])


def test_bad_pictures_are_left_out(tmp_path, write):
    folder = write(tmp_path / "some", 4)
    (folder / "checks" / "001.png").write_bytes(b"no picture")
    data = open_data(folder, max_bad=0.2)
    features = extract_many([backbone("resnet8", image_size=16)], data)
    assert len(features) == 11 and features.bad == 1 and list(data.bad) == [str(folder / "checks" / "001.png")]
    assert features.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4


def test_double_precision_networks(folders):
    vectors, _ = extract(backbone("resnet8", image_size=16).double(), open_data(folders[1]))
    assert vectors.dtype == torch.float32


def test_a_plain_module_needs_a_size(folders):
    with pytest.raises(UserError, match="image_size"):
        extract(torch.nn.Flatten(), open_data(folders[1]))
    vectors, _ = extract(torch.nn.Flatten(), open_data(folders[1]), 16)
    assert vectors.shape == (24, 3 * 16 * 16)


def write_vectors(path, vectors, **columns):
    table = pa.table({"vector": vectors, **columns})
    pq.write_table(table, path)
    return path


def test_saved_embeddings_with_lists_of_any_kind(tmp_path):
    numbers = np.arange(6, dtype=np.float64).reshape(3, 2)
    plain = write_vectors(tmp_path / "a.parquet", pa.array(numbers.tolist()), label=["x", "y", "x"])
    assert is_embeddings(plain) and is_embeddings(str(plain))
    features = read_embeddings(plain)
    assert torch.equal(features.vectors[0], torch.from_numpy(numbers).float())
    assert features.labels.tolist() == [0, 1, 0] and features.class_names == ("x", "y")
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(numbers.astype(np.float32).ravel()), 2)
    features = read_embeddings(write_vectors(tmp_path / "b.parquet", fixed))
    assert features.labels is None and torch.equal(features.vectors[0], torch.from_numpy(numbers).float())


def test_what_is_no_file_of_embeddings(tmp_path, folders):
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    for value in (folders[0], tmp_path / "absent.parquet", tmp_path / "broken.parquet", torch.nn.Flatten(), 3):
        assert not is_embeddings(value)
    with pytest.raises(UserError, match="not a readable Parquet"):
        read_embeddings(tmp_path / "broken.parquet")
    ragged = write_vectors(tmp_path / "ragged.parquet", pa.array([[1.0, 2.0], [3.0]]))
    with pytest.raises(UserError, match="not all of one length"):
        read_embeddings(ragged)
    empty = write_vectors(tmp_path / "empty.parquet", pa.array([], pa.list_(pa.float32())))
    with pytest.raises(UserError, match="no rows"):
        read_embeddings(empty)


def test_random_twin_is_the_same_architecture_drawn_by_a_seed():
    net = backbone("resnet8", image_size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    state = torch.get_rng_state()
    first, second, other = (random_twin(net, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert json.dumps(first.describe()) == json.dumps(net.describe())
    weights = [dict(n.named_parameters()) for n in (net, first, second, other)]
    name = next(k for k, v in weights[0].items() if v.dim() == 4)
    assert torch.equal(weights[1][name], weights[2][name])
    assert not torch.equal(weights[1][name], weights[3][name]) and not torch.equal(weights[0][name], weights[1][name])


class OwnNet(torch.nn.Module):
    def __init__(self, extra=False):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 3)
        if extra:
            self.token = torch.nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.layer(x).mean((2, 3))


def test_twin_of_an_own_module():
    net = backbone(OwnNet(), image_size=16)
    twin = random_twin(net)
    assert twin is not None and not torch.equal(twin.net.layer.weight, net.net.layer.weight)
    assert random_twin(backbone(OwnNet(extra=True), image_size=16)) is None

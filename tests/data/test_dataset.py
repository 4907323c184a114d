"""Map-style data sets of every shape of sample."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

from eyespot.data import BadFile, Data, open_source
from eyespot.errors import UserError


class Made:
    """A data set of given samples."""

    def __init__(self, samples, **attributes):
        self.samples = samples
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        sample = self.samples[i]
        if isinstance(sample, Exception):
            raise sample
        return sample


def test_kinds_of_samples(pictures):
    array = pictures.picture()
    tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    unit, deep = tensor.float() / 255, (array.astype(np.uint16) * 257)
    grey = Image.fromarray(array).convert("L")
    exact = [
        Image.fromarray(array),
        tensor,
        array,
        (Image.fromarray(array), 3),
        (tensor, torch.tensor(3)),
        [array, "cat"],
        {"image": array, "label": 3},
        {"img": Image.fromarray(array), "fine_label": 2, "id": "x"},
    ]
    for sample in exact:
        assert torch.equal(open_source(Made([sample])).load(0), tensor), type(sample)
    for sample in (unit, array / 255, deep, {"pixel_values": unit}):
        image = open_source(Made([sample])).load(0)
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, unit, atol=1e-6, rtol=0)
    for sample in (np.asarray(grey), torch.from_numpy(np.array(grey)), grey):
        assert torch.equal(open_source(Made([sample])).load(0)[0], torch.from_numpy(np.array(grey)))
    assert open_source(Made([np.zeros((5, 6, 9), np.uint8)])).shape(0) == (9, 5, 6, False)


def test_pillow_images_follow_the_same_rules():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (open_source(Made([clear])).load(0) == 255).all()
    assert open_source(Made([clear])).load(0, channels=4)[:, 0, 0].tolist() == [10, 20, 30, 0]
    deep = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    assert (open_source(Made([deep])).load(0) == 1).all()
    cmyk = Image.new("RGB", (4, 4), (200, 30, 60)).convert("CMYK")
    assert open_source(Made([cmyk])).load(0)[:, 0, 0].tolist() == [200, 30, 60]


def test_labels_beside_the_pictures(pictures):
    samples = [(pictures.picture(k), 0) for k in range(4)]
    source = open_source(Made(samples, targets=[2, 0, 1, 2], classes=["a", "b", "c"]))
    assert source.class_names == ("a", "b", "c") and source.labels.tolist() == [2, 0, 1, 2]
    source = open_source(Subset(Made(samples, targets=torch.tensor([2, 0, 1, 2]), classes=["a", "b", "c"]), [3, 1]))
    assert source.class_names == ("a", "b", "c") and source.labels.tolist() == [2, 0]


def test_labels_in_the_samples(pictures):
    p = pictures.picture()
    assert open_source(Made([(p, 1), (p, 0), OSError("gone")])).labels.tolist() == [1, 0, -1]
    words = open_source(Made([{"image": p, "label": w} for w in ("cat", "ant")]))
    assert words.class_names == ("ant", "cat") and words.labels.tolist() == [1, 0]
    named = open_source(Made([{"image": p, "label": 0, "kind": k} for k in (1, 0)]), label_column="kind")
    assert named.labels.tolist() == [1, 0]
    for none in (p, (p,), (p, None), (p, {"boxes": []}), (p, 0.5), {"image": p, "caption": "x"}):
        assert open_source(Made([none])).labels is None
    tensors = TensorDataset(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([2, 1, 2]))
    assert open_source(tensors).labels.tolist() == [2, 1, 2]


def test_table_with_columns(pictures):
    class Feature:
        names = ("cat", "dog")

    class Table(Made):
        column_names, features = ("image", "label"), {"label": Feature}

        def __getitem__(self, i):
            return [s[i] for s in self.samples] if isinstance(i, str) else super().__getitem__(i)

    Table.column_names = ["image", "label"]
    table = Table([{"image": pictures.picture(), "label": k} for k in (1, 0)])
    assert open_source(table).class_names == ("cat", "dog") and open_source(table).labels.tolist() == [1, 0]


def test_arrays_and_lists():
    block = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    assert torch.equal(open_source(block).load(1), block[1])
    assert torch.equal(open_source(block.permute(0, 2, 3, 1).numpy()).load(1), block[1])
    assert torch.equal(open_source([block[0], block[1]]).load(1), block[1])


def test_bad_samples(pictures):
    p = pictures.picture()
    samples = [p, OSError("truncated"), p.astype(np.float32), np.zeros((3, 3, 3), np.int64), np.zeros(3, np.uint8), p]
    source = open_source(Made(samples))
    for i in (1, 2, 3, 4):
        with pytest.raises(BadFile) as caught:
            source.load(i)
        assert caught.value.path == f"Made#{i}"
    data = Data(source, max_bad=0.7)
    assert data.batch([1, 5])["index"].tolist() == [5, 5] and len(data.bad) == 4
    with pytest.raises(BadFile, match="has 3 channels where 6"):
        source.load(0, channels=6)


def test_mistakes_in_the_data_set_itself_are_not_hidden(pictures):
    with pytest.raises(ZeroDivisionError):
        open_source(Made([pictures.picture(), ZeroDivisionError()])).load(1)


def test_objects_that_are_no_data_set(pictures):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    for wrong, message in [
        (Stream(), "cannot be read by sample number"),
        (7, "cannot be read by sample number"),
        (Made([]), "is empty"),
        ({"train": Made([pictures.picture()])}, "give one of its parts: train"),
        (Made([{"text": "x"}]), "has no key 'image'"),
        (Made(["x.png"]), "holds a str where a picture is needed"),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(wrong)
    with pytest.raises(UserError, match="a data set object has no splits"):
        open_source(Made([pictures.picture()]), split="test")
    with pytest.raises(UserError, match="no key 'labl'"):
        open_source(Made([{"image": pictures.picture(), "label": 1}]), label_column="labl")

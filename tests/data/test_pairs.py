"""Pictures with captions: every form they come in, what is bad, what is drawn."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eyespot.data.decode import BadFile
from eyespot.data.pairs import Captions, PairSource, open_pairs, read_captions
from eyespot.data.records import RecordData
from eyespot.errors import UserError

WORDS = [["a red square", "red"], ["ein grünes Quadrat"], ["hình vuông xanh", "蓝色", "azul"]]


def picture(k, side=12):
    array = np.zeros((side, side, 3), np.uint8)
    array[..., k % 3] = 200
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path, captions=WORDS, **columns):
    n = len(captions)
    table = {"image": [picture(k) for k in range(n)], "captions": captions} | columns
    pq.write_table(pa.table(table), path)
    return path


def folder(root, names=("a.png", "b.png", "c.png")):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(k))
    return root


def all_of(source):
    return [list(source.captions(i)) for i in range(len(source))]


def test_parquet_with_lists_of_captions(tmp_path):
    source = open_pairs(parquet(tmp_path / "p.parquet"))
    assert all_of(source) == WORDS and source.labels is None
    record = source.record(2)
    assert record["image"].shape == (3, 12, 12) and int(record["image"][2, 0, 0]) == 200
    assert (record["text"], record["captions"]) == ("hình vuông xanh", tuple(WORDS[2]))
    assert [source.record(2, {"caption": k})["text"] for k in range(4)] == [*WORDS[2], WORDS[2][0]]
    assert source.record(0, {"caption": 1, "short_side": 6})["image"].shape == (3, 6, 6)
    assert "".join(source.texts.all()) == "".join(c for texts in WORDS for c in texts)


def test_parquet_with_one_string_a_row_another_name_and_splits(tmp_path):
    flat = ["one", "two", "three"]
    path = parquet(tmp_path / "p.parquet", flat, split=["train", "test", "train"], told=["x", "y", "z"])
    assert all_of(open_pairs(f"{path}:train")) == [["one"], ["three"]]
    assert all_of(open_pairs(path, split="test", text_column="told")) == [["y"]]
    with pytest.raises(UserError, match="no column 'tolt'; did you mean 'told'"):
        open_pairs(path, text_column="tolt")
    with pytest.raises(UserError, match="holds no text"):
        open_pairs(path, text_column="image")
    pq.write_table(pa.table({"image": [picture(0)], "words": ["w"]}), tmp_path / "q.parquet")
    with pytest.raises(UserError, match="name it with --text-column, one of: words"):
        open_pairs(tmp_path / "q.parquet")


def test_numbered_classes_take_the_names_beside_them(tmp_path):
    path = parquet(tmp_path / "p.parquet", label=[1, 0, 1], name=["barn", "apple", "barn"])
    source = open_pairs(path)
    assert source.class_names == ("apple", "barn") and source.labels.tolist() == [1, 0, 1]
    path = parquet(tmp_path / "q.parquet", label=[1, 0, 1], name=["a", "b", "c"])  # names of pictures
    assert open_pairs(path).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.tsv", "file\tcaption\na.png\ta red square\nb.png\tein grünes Quadrat\na.png\tred\nc.png\thình\n"),
        ("captions.tsv", "a.png\ta red square\na.png\tred\nb.png\tein grünes Quadrat\nc.png\thình\n"),
        ("captions.csv", 'Caption,File\n"a red square",a.png\nred,a.png\nein grünes Quadrat,b.png\nhình,c.png\n'),
        (
            "captions.jsonl",
            '{"file": "a.png", "captions": ["a red square", "red"]}\n\n'
            '{"image": "b.png", "caption": "ein grünes Quadrat"}\n'
            '{"file_name": "c.png", "text": "hình"}\n',
        ),
        ("metadata.csv", "file_name,text\na.png,a red square\na.png,red\nb.png,ein grünes Quadrat\nc.png,hình\n"),
    ],
)
def test_a_folder_with_a_list(tmp_path, name, text):
    folder(tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert all_of(open_pairs(tmp_path)) == [WORDS[0], WORDS[1], ["hình"]]


def test_a_folder_with_a_text_beside_each_picture(tmp_path):
    folder(tmp_path, ("train/x/a.png", "train/x/b.png", "test/x/c.png"))
    for name, text in (("train/x/a.txt", "a red square\n\nred \n"), ("train/x/b.txt", "\n"), ("test/x/c.txt", "蓝色")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    train = open_pairs(tmp_path)
    assert len(train) == 2 and train.captions(0) == ("a red square", "red")
    with pytest.raises(BadFile, match="has no caption"):
        train.record(1)
    assert all_of(open_pairs(f"{tmp_path}:test")) == [["蓝色"]]


def test_lists_below_splits_and_by_the_name_alone(tmp_path):
    folder(tmp_path, ("train/a.png", "test/b.png"))
    (tmp_path / "train" / "captions.tsv").write_text("a.png\tfirst\n")
    (tmp_path / "captions.tsv").write_text("b.png\tsecond\n")
    assert all_of(open_pairs(tmp_path, split="all")) == [["second"], ["first"]]
    assert all_of(open_pairs(tmp_path)) == [["first"]]


def test_captions_without_a_picture_are_listed(tmp_path):
    folder(tmp_path)
    (tmp_path / "captions.tsv").write_text("a.png\tx\ngone.png\ty\n")
    source = open_pairs(tmp_path)
    assert [p.rpartition("/")[2] for p in source.refused] == ["gone.png"]
    data = RecordData(source, workers=0, max_bad=0.9)
    batch = data.batch([0, 1, 2])
    assert batch["text"] == ["x", "x", "x"] and batch["index"].tolist() == [0, 0, 0]
    assert len(data.bad) == 3


def test_bad_pictures_and_missing_captions_are_bad_files(tmp_path):
    folder(tmp_path)
    (tmp_path / "captions.tsv").write_text("a.png\tx\nb.png\t \nc.png\tz\n")
    (tmp_path / "c.png").write_bytes(b"no picture")
    data = RecordData(open_pairs(tmp_path), workers=0, max_bad=0.9)
    kept = data.batch([0, 1, 2], replace=False)
    assert kept["text"] == ["x"] and kept["image"].shape == (1, 3, 12, 12)
    assert {v for v in data.bad.values()} == {"has no caption", "not a picture in a known format"}


def test_tars(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for k, texts in enumerate(WORDS):
            for name, content in ((f"{k}.png", picture(k)), (f"{k}.txt", texts[0].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert all_of(open_pairs(tmp_path / "s.tar")) == [[texts[0]] for texts in WORDS]


def test_mistakes(tmp_path):
    folder(tmp_path)
    with pytest.raises(UserError, match=r"No picture of .* has a caption"):
        open_pairs(tmp_path)
    for name, text, said in (
        ("captions.jsonl", "{not json", "Line 1 of .* is not JSON"),
        ("captions.jsonl", "[1]", "must be like"),
        ("captions.jsonl", '{"caption": "x"}', "Line 1 of .* names no picture"),
        ("captions.csv", "a,b,c\n1,2,3\n", "must begin with a line that names its columns"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=said):
            list(read_captions(tmp_path / name))
    (tmp_path / "captions.tsv").write_bytes(b"a.png\t\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        list(read_captions(tmp_path / "captions.tsv"))
    with pytest.raises(UserError, match="captions for 1 of 3"):
        PairSource(open_pairs(parquet(tmp_path / "p.parquet")).pictures, [["x"]])


def test_captions_in_one_block():
    kept = Captions([["a  b", "", None, "ü"], [], [" "]])
    assert [kept[i] for i in range(3)] == [("a b", "ü"), (), ()] and list(kept.all()) == ["a b", "ü"]


def test_real_captions(shared_data):
    source = open_pairs(shared_data("ucm_captions") / "ucm_captions.parquet", split="test")
    assert len(source) == 210 and all(len(source.captions(i)) == 5 for i in range(210))
    assert "agricultural" in source.class_names and source.record(0)["image"].dtype == torch.uint8
    vietnamese = open_pairs(shared_data("captions_vi") / "captions_vi.parquet", split="test")
    assert "ộ" in "".join(vietnamese.captions(0) + vietnamese.captions(1))


def test_a_packed_list_of_prompts_is_no_caption_file(tmp_path):
    """Only the names at the head of the module are looked for."""
    folder(tmp_path)
    (tmp_path / "other.jsonl.gz").write_bytes(gzip.compress(json.dumps({"file": "a.png", "caption": "x"}).encode()))
    with pytest.raises(UserError, match="has a caption"):
        open_pairs(tmp_path)


def test_a_caption_with_a_comma_and_no_quotes_is_told_and_not_cut(tmp_path):
    (tmp_path / "captions.csv").write_text('file,caption\na.png,"a dog, running"\n')
    assert next(iter(read_captions(tmp_path / "captions.csv")))[1] == ["a dog, running"]
    (tmp_path / "captions.csv").write_text("file,caption\na.png,a dog, running\n")
    with pytest.raises(UserError, match=r"Line 2 of .* has 3 cells for 2 columns; put captions .* in quotes"):
        list(read_captions(tmp_path / "captions.csv"))

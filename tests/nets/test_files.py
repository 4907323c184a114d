"""Files that others wrote: read without running anything in them, refused with one sentence."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eyespot.errors import UserError
from eyespot.nets.files import LARGEST_HEADER, read_described, read_tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
    pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:FutureWarning"),
]


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def refused(path, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_a_pickle_payload_is_not_executed(tmp_path, zipped, suffix):
    path, mark = tmp_path / f"evil{suffix}", tmp_path / "executed"
    torch.save({"w": torch.ones(2), "more": Payload(mark)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, "it asks for posix.mkdir")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the payload must be one that works"


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_bare_pickle_is_not_executed(tmp_path, suffix):
    path, mark = tmp_path / f"evil{suffix}", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(mark)))
    refused(path, "evil")
    assert not mark.exists()


def test_objects_beside_the_tensors_are_named(tmp_path):
    torch.save({"w": torch.ones(2), "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"argparse.Namespace\).*safetensors")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    refused(tmp_path / "whole.pth", "torch.nn.modules.linear.Linear")


def safetensors_bytes(header, data=b"\0" * 16):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, end, start=0):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has no header"),
        (b"1234567", "has no header"),
        (struct.pack("<Q", 2**63) + b"{}", r"9,223,372,036,854,775,808 bytes"),
        (struct.pack("<Q", 100) + b"{}", "header would be 100 bytes"),
        (struct.pack("<Q", LARGEST_HEADER + 1) + b" " * (LARGEST_HEADER + 1), "more than the 10,000,000"),
        (safetensors_bytes({"w": entry([4], 160)}), "not a readable safetensors file"),
        (safetensors_bytes({"w": entry([40], 16)}), "not a readable safetensors file"),
        (safetensors_bytes({"w": entry([4], 16), "v": entry([4], 16)}), "not a readable safetensors file"),
        (safetensors_bytes({"w": entry([2**40, 2**40], 16)}), "not a readable safetensors file"),
        (safetensors_bytes({"w": entry([4], 16)}, b"\0" * 9), "not a readable safetensors file"),
        (safetensors_bytes([1, 2]), "not a readable safetensors file"),
        (safetensors_bytes({}, b""), "holds no tensors"),
    ],
)
def test_lying_safetensors(tmp_path, content, sentence):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    refused(path, sentence)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"w": torch.zeros(1000)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(packed, "compressed archive")


def test_programs_are_told_from_weights(tmp_path):
    net = nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(net, torch.ones(1, 2)), tmp_path / "program.pt")
    refused(tmp_path / "program.pt", "TorchScript program.*--format timm")
    torch.export.save(torch.export.export(net, (torch.ones(1, 2),)), tmp_path / "program2.pt2")
    (tmp_path / "program2.pt2").rename(tmp_path / "program2.pt")
    refused(tmp_path / "program2.pt", "torch.export program")


def test_only_plain_tensors_count(tmp_path):
    odd = {
        "blown_up": torch.ones(1).expand(10**6, 10**6),
        "sparse": torch.eye(2).to_sparse(),
        "nowhere": torch.ones(2, device="meta"),
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    torch.save(odd, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", "holds no tensors of numbers")
    torch.save(odd | {"w": torch.ones(2).half()}, tmp_path / "odd.pth")
    assert list(read_tensors(tmp_path / "odd.pth")[0]) == ["w"]
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds no tensors")


def test_nested_dictionaries_are_joined(tmp_path):
    saved = {
        "epoch": 3,
        "state_dict": {"module.a": nn.Parameter(torch.ones(2))},
        "optimizer": {0: {"m": torch.ones(1)}},
    }
    torch.save(saved, tmp_path / "c.pth.tar")
    tensors, text = read_tensors(tmp_path / "c.pth.tar")
    assert list(tensors) == ["state_dict.module.a"] and text == {}
    assert not tensors["state_dict.module.a"].requires_grad


def test_other_files(tmp_path):
    refused(tmp_path / "nothing.pth", "does not exist")
    (tmp_path / "w.onnx").write_bytes(b"x")
    refused(tmp_path / "w.onnx", "does not end in .safetensors, .pth")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(UserError, match="does not hold a JSON object"):
        read_described(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read_described(tmp_path / "c.json")


def test_damage_anywhere_is_one_sentence(tmp_path):
    save_file({"a.b": torch.randn(5, 3), "c": torch.randn(4)}, tmp_path / "f.safetensors")
    torch.save({"model": {"a.b": torch.randn(5, 3)}, "epoch": 3}, tmp_path / "f.pth")
    torch.save({"model": {"a.b": torch.randn(5, 3)}}, tmp_path / "f.bin", _use_new_zipfile_serialization=False)
    draw = random.Random(0)
    outcomes = set()
    for name in ("f.safetensors", "f.pth", "f.bin"):
        whole = (tmp_path / name).read_bytes()
        hurt = tmp_path / f"hurt.{name.rpartition('.')[2]}"
        for _ in range(300):
            content = bytearray(whole[: draw.randrange(1, len(whole))] if draw.random() < 0.3 else whole)
            for _ in range(draw.randrange(1, 6)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            hurt.write_bytes(content)
            try:
                read_tensors(hurt)
                outcomes.add("read")
            except UserError as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}

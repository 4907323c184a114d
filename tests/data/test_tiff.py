"""TIFF files of many bands, in every layout that is promised."""

import struct
import zlib

import numpy as np
import pytest
import torch

from eyespot.data.decode import BadFile, decode, shape_of


def tiff(
    array: np.ndarray,
    *,
    order: str = "<",
    planar: bool = False,
    deflate: bool = False,
    predictor: int = 1,
    tile: int = 0,
    rows: int = 0,
    big: bool = False,
    extra: tuple[int, ...] = (),
    scheme: int | None = None,
    meaning: int = 1,
) -> bytes:
    """The bytes of one page, [H, W, C], written by the TIFF 6.0 specification."""
    height, width, channels = array.shape
    stored = array.astype(array.dtype.newbyteorder(order))
    planes = [array[:, :, k : k + 1] for k in range(channels)] if planar else [array]
    step = (tile, tile) if tile else (rows or height, width)
    parts = []
    for plane in planes:
        for top in range(0, height, step[0]):
            for left in range(0, width, step[1]):
                part = plane[top : top + step[0], left : left + step[1]]
                if tile:
                    part = np.pad(part, [(0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)])
                if predictor == 2:
                    part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
                data = part.astype(stored.dtype).tobytes()
                parts.append(zlib.compress(data) if deflate else data)
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    long = 16 if big else 4
    tags = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [array.dtype.itemsize * 8] * channels),
        259: (3, [scheme or (8 if deflate else 1)]),
        262: (3, [meaning]),
        277: (3, [channels]),
        284: (3, [2 if planar else 1]),
        317: (3, [predictor]),
        339: (3, [kind] * channels),
    }
    if extra:
        tags[338] = (3, list(extra))
    if tile:
        tags |= {
            322: (3, [tile]),
            323: (3, [tile]),
            324: (long, [0] * len(parts)),
            325: (long, [len(p) for p in parts]),
        }
    else:
        tags |= {278: (3, [step[0]]), 273: (long, [0] * len(parts)), 279: (long, [len(p) for p in parts])}
    return _file(tags, parts, order, big, 324 if tile else 273)


def _file(tags: dict, parts: list[bytes], order: str, big: bool, offsets: int) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    entry, room, count = (20, 8, "Q") if big else (12, 4, "H")
    start = 2 + len(head)
    after = start + struct.calcsize(order + count) + entry * len(tags) + room
    letters = {3: "H", 4: "I", 16: "Q"}
    sizes = {t: struct.calcsize(order + f"{len(v)}{letters[k]}") for t, (k, v) in tags.items()}
    data_at = after + sum(s for s in sizes.values() if s > room)
    tags[offsets] = (tags[offsets][0], [data_at + sum(map(len, parts[:k])) for k in range(len(parts))])
    directory, outside = struct.pack(order + count, len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(order + f"{len(values)}{letters[kind]}", *values)
        if len(packed) > room:
            place, outside = struct.pack(order + ("Q" if big else "I"), after + len(outside)), outside + packed
        else:
            place = packed.ljust(room, b"\0")
        directory += struct.pack(order + "HH" + ("Q" if big else "I"), tag, kind, len(values)) + place
    return mark + head + directory + b"\0" * room + outside + b"".join(parts)


def bands(channels: int, dtype: type, pictures) -> np.ndarray:
    top = 1.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    return pictures.smooth(37, 45, channels, top).astype(dtype)


LAYOUTS = [
    {},
    {"order": ">"},
    {"planar": True},
    {"rows": 8},
    {"rows": 8, "deflate": True, "predictor": 2},
    {"tile": 16},
    {"tile": 16, "planar": True, "deflate": True},
    {"tile": 16, "deflate": True, "predictor": 2, "order": ">"},
    {"big": True},
    {"big": True, "tile": 16, "deflate": True},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint16), (6, np.uint8), (13, np.uint16), (2, np.uint8)])
def test_layouts(pictures, layout, channels, dtype):
    array = bands(channels, dtype, pictures)
    image = decode(tiff(array, **layout))
    expected = array if dtype is np.uint8 else (array / 65535).astype(np.float32)
    assert image.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert shape_of(tiff(array, **layout)) == (channels, 37, 45, dtype is np.uint16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats(pictures, dtype):
    array = bands(5, dtype, pictures)
    np.testing.assert_allclose(decode(tiff(array, tile=16)).permute(1, 2, 0).numpy(), array, atol=1e-6)
    with pytest.raises(BadFile, match="floats must be in"):
        decode(tiff(array * 9))


def test_opacity_of_sixteen_bits(pictures):
    array = bands(4, np.uint16, pictures)
    raw = tiff(array, extra=(2,), meaning=2)
    unit = array / 65535
    np.testing.assert_allclose(decode(raw, channels=4).permute(1, 2, 0).numpy(), unit, atol=1e-6)
    over = unit[..., :3] * unit[..., 3:] + 1 - unit[..., 3:]
    np.testing.assert_allclose(decode(raw).permute(1, 2, 0).numpy(), over, atol=1e-5)
    four = decode(tiff(array, extra=(0,), meaning=2))  # a fourth band without a meaning is data
    np.testing.assert_allclose(four.permute(1, 2, 0).numpy(), unit, atol=1e-6)


def test_four_bands_of_eight_bits_are_kept(pictures):
    array = bands(4, np.uint8, pictures)
    for options in ({"extra": (0,), "meaning": 2}, {"extra": (0, 0, 0)}, {}, {"planar": True}):
        image = decode(tiff(array, **options))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), array)


def test_number_of_channels_must_match(pictures):
    raw = tiff(bands(6, np.uint8, pictures))
    assert decode(raw, channels=6).shape == (6, 37, 45)
    with pytest.raises(BadFile, match="has 6 channels where 3 are asked for"):
        decode(raw, channels=3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scheme": 5}, "LZW compression is not read; save it with deflate"),
        ({"predictor": 3}, "predictor 3"),
        ({"meaning": 5}, "kind 5"),
    ],
)
def test_what_is_not_read_says_so(pictures, options, reason):
    with pytest.raises(BadFile, match=reason):
        decode(tiff(bands(6, np.uint8, pictures), **options))
    with pytest.raises(BadFile, match="int16 have no known range"):
        decode(tiff(bands(6, np.int16, pictures)))


def test_damage(pictures):
    for layout in LAYOUTS:
        raw = tiff(bands(6, np.uint16, pictures), **layout)
        for share in (0.95, 0.5, 0.05):
            with pytest.raises(BadFile):
                decode(raw[: int(len(raw) * share)])
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(raw)
        for place in rng.integers(4, 400, 2):
            damaged[place] = rng.integers(256)
        try:
            assert decode(bytes(damaged)).dim() == 3
        except BadFile as error:
            assert error.reason


def test_bombs(pictures):
    raw = tiff(bands(6, np.uint8, pictures), deflate=True)
    with pytest.raises(BadFile, match="more than the 1000"):
        decode(raw, max_pixels=1000)
    wide = raw.replace(struct.pack("<HHII", 256, 3, 1, 45), struct.pack("<HHII", 256, 4, 1, 1 << 28))
    assert wide != raw
    with pytest.raises(BadFile, match="more than"):
        decode(wide)

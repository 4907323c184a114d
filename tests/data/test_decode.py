"""Decoding: every odd kind of picture gives what the head of decode.py promises, or a BadFile that says why."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from eyespot.data.decode import BadFile, apply_plan, decode, shape_of
from eyespot.data.picture import SUFFIXES


def close(a: torch.Tensor, b: np.ndarray, atol: float = 0) -> None:
    """Tensor [C, H, W] against array [H, W, C]."""
    np.testing.assert_allclose(a.permute(1, 2, 0).numpy().astype(float), b.astype(float), atol=atol)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "PCX", "SGI", "WEBP", "JPEG2000", "JPEG", "AVIF"])
def test_formats(pictures, kind):
    colour = pictures.picture()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 97} if kind in ("JPEG", "AVIF") else {}
    raw = pictures.encode(colour, kind, **options)
    image = decode(raw)
    assert image.dtype == torch.uint8 and image.is_contiguous()
    close(image, colour, atol=12 if kind in ("JPEG", "AVIF") else 0)
    assert shape_of(raw) == (3, 20, 24, False)


def test_jpeg_has_the_values_of_pillow(pictures):
    for channels, progressive in [(3, False), (1, False), (3, True)]:
        array = (pictures.smooth(33, 41, channels) + np.random.default_rng(0).normal(0, 20, (33, 41, channels))).clip(
            0, 255
        )
        raw = pictures.encode(array.astype(np.uint8), "JPEG", quality=80, progressive=progressive)
        expected = np.asarray(Image.open(io.BytesIO(raw)))
        close(decode(raw), expected if channels == 3 else expected[..., None], atol=1)


def test_jpeg_without_torchvision_decoders(pictures, monkeypatch):
    monkeypatch.setattr("eyespot.data.native._decoder", lambda: None)
    colour = pictures.picture()
    close(decode(pictures.encode(colour, "JPEG", quality=97)), colour, atol=12)


def test_grey_and_one_bit(pictures):
    grey = pictures.smooth(20, 24, 1).astype(np.uint8)
    close(decode(pictures.encode(grey, "PNG")), grey)
    bits = Image.fromarray(grey[..., 0]).convert("1")
    buffer = io.BytesIO()
    bits.save(buffer, "PNG")
    close(decode(buffer.getvalue()), np.asarray(bits)[..., None] * 255)


def test_channels_convert(pictures):
    colour, grey = pictures.picture(), pictures.smooth(20, 24, 1).astype(np.uint8)
    assert torch.equal(
        decode(pictures.encode(grey, "PNG"), channels=3), decode(pictures.encode(grey, "PNG")).repeat(3, 1, 1)
    )
    luma = np.asarray(Image.fromarray(colour).convert("L"))[..., None]
    close(decode(pictures.encode(colour, "PNG"), channels=1), luma, atol=1)
    opaque = decode(pictures.encode(colour, "PNG"), channels=4)
    assert opaque.shape == (4, 20, 24) and (opaque[3] == 255).all()
    with pytest.raises(BadFile, match="has 3 channels where 5 are asked for"):
        decode(pictures.encode(colour, "PNG"), channels=5)


def test_opacity_is_composited_over_white_or_kept(pictures):
    array = np.concatenate([pictures.picture(), np.zeros((20, 24, 1), np.uint8)], 2)
    array[:10, :, 3], array[10:15, :, 3] = 255, 128
    raw = pictures.encode(array, "PNG")
    white = Image.new("RGBA", (24, 20), "white")
    white.alpha_composite(Image.fromarray(array))
    close(decode(raw), np.asarray(white)[..., :3], atol=1)
    assert (decode(raw)[:, 15:] == 255).all()  # what is under full transparency does not show
    close(decode(raw, channels=4), array)
    assert decode(raw, channels=1).shape == (1, 20, 24)
    assert shape_of(raw)[0] == 3


def test_grey_with_opacity(pictures):
    array = np.dstack([np.full((4, 5), 100, np.uint8), np.full((4, 5), 128, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(array, "LA").save(buffer, "PNG")
    raw = buffer.getvalue()
    assert decode(raw).shape == (1, 4, 5) and abs(int(decode(raw)[0, 0, 0]) - 177) <= 1
    close(decode(raw, channels=2), array)
    assert decode(raw, channels=4)[:, 0, 0].tolist() == [100, 100, 100, 128]


def test_palette_with_and_without_transparency(pictures):
    image = Image.new("P", (6, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 30)
    image.paste(1, (3, 0, 6, 4))
    plain, clear = io.BytesIO(), io.BytesIO()
    image.save(plain, "PNG")
    image.save(clear, "PNG", transparency=1)
    red, blue = decode(plain.getvalue())[:, 0, 0].tolist(), decode(plain.getvalue())[:, 0, 5].tolist()
    assert red == [255, 0, 0] and blue == [0, 0, 255]
    assert decode(clear.getvalue())[:, 0, 5].tolist() == [255, 255, 255]
    assert decode(clear.getvalue(), channels=4)[:, 0, 5].tolist() == [0, 0, 255, 0]
    gif = io.BytesIO()
    image.save(gif, "GIF", transparency=1)
    assert decode(gif.getvalue())[:, 0, 5].tolist() == [255, 255, 255]


def test_named_transparent_colour(pictures):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), (10, 20, 30)).save(buffer, "PNG", transparency=(10, 20, 30))
    assert (decode(buffer.getvalue()) == 255).all()
    buffer = io.BytesIO()
    Image.new("L", (3, 3), 40).save(buffer, "PNG", transparency=40)
    assert (decode(buffer.getvalue()) == 255).all()


def test_cmyk():
    for kind in ("JPEG", "TIFF"):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK").save(buffer, kind)
        assert (decode(buffer.getvalue()).float().mean((1, 2)) - torch.tensor([200.0, 30, 60])).abs().max() < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(pictures, kind, turn):
    exif = Image.Exif()
    exif[274] = turn
    buffer = io.BytesIO()
    options = {"quality": 97} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pictures.picture()).save(buffer, kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
    image = decode(buffer.getvalue())
    close(image, expected)
    assert shape_of(buffer.getvalue())[1:3] == tuple(image.shape[1:])
    plain = Image.fromarray(pictures.picture())
    if turn != 1 and kind != "JPEG":
        assert not np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(plain))


def test_damaged_exif_is_no_reason(pictures):
    colour = pictures.picture()
    raw = pictures.encode(colour, "JPEG", quality=97, exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    close(decode(raw), colour, atol=12)


def test_animated_gives_the_first_picture():
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
        assert decode(buffer.getvalue())[:, 3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_png(pictures, channels):
    deep = pictures.smooth(9, 11, channels, 65535).astype(np.uint16)
    raw = pictures.png16(deep)
    image = decode(raw, channels=4 if channels == 4 else None)
    assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    close(image, deep / 65535, atol=1e-6)
    assert shape_of(raw) == (min(channels, 3), 9, 11, True)
    if channels == 4:
        opacity = deep[..., 3:] / 65535
        close(decode(raw), deep[..., :3] / 65535 * opacity + 1 - opacity, atol=1e-5)


def test_sixteen_bit_grey_tiff_and_pgm(pictures):
    deep = pictures.smooth(9, 11, 1, 65535).astype(np.uint16)
    for kind in ("TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(deep[..., 0]).save(buffer, kind)
        close(decode(buffer.getvalue()), deep / 65535, atol=1e-6)
    assert decode(buffer.getvalue(), channels=3).shape == (3, 9, 11)


def test_float_tiff_must_be_in_range(pictures):
    for top, good in [(1.0, True), (300.0, False), (np.nan, False)]:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), top, np.float32)).save(buffer, "TIFF")
        if good:
            assert (decode(buffer.getvalue()) == 1).all()
        else:
            with pytest.raises(BadFile, match=r"floats must be in|not finite"):
                decode(buffer.getvalue())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16, ">u2", bool])
def test_numpy_files(tmp_path, pictures, dtype):
    unit = pictures.smooth(7, 9, 6, 1.0)
    kind = np.dtype(dtype)
    stored = unit > 0.5 if dtype is bool else (unit * np.iinfo(kind).max if kind.kind == "u" else unit).astype(kind)
    for order in ("C", "F"):
        np.save(tmp_path / "a.npy", np.asarray(stored, order=order))
        image = decode(tmp_path / "a.npy")
        if kind.itemsize == 1:
            assert image.dtype == torch.uint8
            close(image, stored.astype(np.uint8) * (255 if dtype is bool else 1))
        else:
            assert image.dtype == torch.float32
            close(image, unit, atol=1e-3)
    assert shape_of(tmp_path / "a.npy")[:3] == (6, 7, 9)
    np.save(tmp_path / "flat.npy", stored[..., 0])
    assert decode(tmp_path / "flat.npy", channels=3).shape == (3, 7, 9)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 3), np.int16), "int16"),
        (np.zeros((4, 4, 3), np.complex64), "complex64"),
        (np.zeros(5, np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.full((4, 4), 7.0), "in \\[0, 1\\]"),
        (np.zeros((1, 1, 9000), np.uint8), "channels"),
    ],
)
def test_numpy_files_that_are_no_pictures(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadFile, match=reason):
        decode(tmp_path / "a.npy")


def test_numpy_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{"a": 1}]], object), allow_pickle=True)
    with pytest.raises(BadFile, match="objects"):
        decode(tmp_path / "a.npy")


def test_truncated_files_are_bad(tmp_path, pictures):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA"):
        raw = pictures.encode(noise, kind)
        for share in (0.98, 0.5, 0.1):
            with pytest.raises(BadFile):
                decode(raw[: int(len(raw) * share)])
    np.save(tmp_path / "a.npy", noise)
    raw = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(BadFile, match="truncated"):
        decode(raw[:-5])


def test_damaged_bytes_raise_nothing_else(pictures):
    """Random damage gives a picture or a BadFile, in one line, and nothing else."""
    rng = np.random.default_rng(1)
    array = pictures.smooth(30, 30, 3)
    samples = [
        pictures.encode(array.astype(np.uint8), k)
        for k in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "AVIF")
    ]
    samples += [
        pictures.png16((array * 257).astype(np.uint16)),
        pictures.encode(array.astype(np.uint8), "TIFF", "CMYK"),
    ]
    buffer = io.BytesIO()
    np.save(buffer, array.astype(np.uint8))
    for raw in [*samples, buffer.getvalue()]:
        for _ in range(40):
            damaged = bytearray(raw[: rng.integers(4, len(raw) + 1)])
            for place in rng.integers(0, min(len(damaged), 200), 3):
                damaged[place] = rng.integers(256)
            try:
                assert decode(bytes(damaged), channels=3).shape[0] == 3
            except BadFile as error:
                assert error.reason and "\n" not in error.reason and "0x" not in error.reason


def test_no_picture_at_all(tmp_path):
    for raw, reason in [
        (b"", "empty"),
        (b"hello, this is text" * 9, "known format"),
        (b"%!PS-Adobe-3.0 EPSF", "known"),
    ]:
        with pytest.raises(BadFile, match=reason):
            decode(raw)
    with pytest.raises(BadFile, match="no such file") as caught:
        decode(tmp_path / "missing.png")
    assert caught.value.path == str(tmp_path / "missing.png")


def test_bombs_are_refused_before_decoding(pictures, monkeypatch):
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = pictures.png(head, b"\0" * 100000)
    with pytest.raises(BadFile, match=r"60000 x 60000|exceeds limit"):
        decode(bomb)
    large = struct.pack(">IIBBBBB", 12000, 12000, 1, 0, 0, 0, 0)  # below pillow's own limit, above ours
    with pytest.raises(BadFile, match="12000 x 12000 pixels are more than"):
        decode(pictures.png(large, b""))
    raw = pictures.encode(pictures.picture(), "JPEG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("eyespot.data.picture.native_jpeg", lambda *a: pytest.fail("decoded"))
    with pytest.raises(BadFile, match="24 x 20 pixels are more than the 100"):
        decode(raw, max_pixels=100)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    with pytest.raises(BadFile, match="more than"):
        decode(buffer.getvalue())


def test_plans(pictures):
    colour = pictures.smooth(80, 120, 3).astype(np.uint8)
    raw = pictures.encode(colour, "PNG")
    whole = decode(raw)
    part = decode(raw, plan={"region": (10, 20, 30, 40)})
    assert torch.equal(part, whole[:, 10:40, 20:60]) and part.is_contiguous()
    assert torch.equal(apply_plan(whole, {"region": (10, 20, 30, 40)}), part)
    assert decode(raw, plan={"region": (70, 100, 30, 40)}).shape == (3, 30, 40)  # moved inside
    assert decode(raw, plan={"region": (0, 0, 500, 500)}).shape == (3, 80, 120)
    small = decode(raw, plan={"short_side": 40})
    assert small.shape == (3, 40, 60)
    assert torch.equal(decode(raw, plan={"short_side": 200}), whole)
    both = decode(raw, plan={"region": (0, 0, 40, 60), "short_side": 20})
    assert both.shape == (3, 20, 30)
    jpeg = pictures.encode(colour, "JPEG", quality=97)  # shrunk while it is decoded
    assert (
        decode(jpeg, plan={"short_side": 20}).float() - decode(raw, plan={"short_side": 20}).float()
    ).abs().max() < 12
    deep = pictures.png16(pictures.smooth(80, 120, 1, 65535).astype(np.uint16))
    assert decode(deep, plan={"short_side": 40}).dtype == torch.float32


def test_region_is_in_upright_coordinates(pictures):
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(pictures.picture()).save(buffer, "PNG", exif=exif)
    whole = decode(buffer.getvalue())
    assert whole.shape == (3, 24, 20)
    assert torch.equal(decode(buffer.getvalue(), plan={"region": (12, 3, 8, 5)}), whole[:, 12:20, 3:8])


def test_suffixes_cover_what_is_read():
    assert {".jpg", ".png", ".tif", ".npy", ".webp", ".gif"} <= SUFFIXES
    assert not {".eps", ".pdf", ".svg", ".txt", ".mp4"} & SUFFIXES


def test_png_text_bombs_are_bad_files(pictures):
    raw = pictures.encode(pictures.picture(), "PNG")
    text = b"Comment\0\0" + zlib.compress(b"a" * (80 << 20))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    try:
        assert decode(raw[:33] + chunk + raw[33:]).shape == (3, 20, 24)
    except BadFile as error:
        assert error.reason

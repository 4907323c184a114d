"""Views: the same in any batch, honest about their geometry, made from pictures of any kind."""

import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from hypothesis import given, settings
from hypothesis import strategies as st

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.views import crop
from eyespot.views.image import ViewSpec, clean, multi_crop, overlap_boxes, two_views, view

PLAIN = {"jitter": None, "grey_p": 0.0}


def ramp(height, width):
    """A picture whose channels are its own pixel coordinates x + 0.5, y + 0.5 over 1000."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]) / 1000


def grid(size):
    """[1, size * size, 2] centres of the pixels of a view in [0, 1], row by row."""
    at = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], -1).view(1, -1, 2)


# --- draws --------------------------------------------------------------------------------------------------------
SHAPES = [(32, 32), (70, 110), (32, 32), (9, 140), (128, 128), (32, 48), (1, 1), (3, 5)]


@pytest.mark.parametrize("mode", ["exact", "linear"])
def test_a_view_is_the_same_in_any_batch(mode, pictures):
    images = [pictures(1, 3, h, w, seed=i)[0] for i, (h, w) in enumerate(SHAPES)]
    spec = ViewSpec(size=32, color=mode, blur_p=0.5, rotation=10, solarize_p=0.3, vertical_flip=0.3)
    index = np.arange(100, 108)
    whole = view(images, Draws(seed=3, epoch=2, index=index), spec)
    for rows in ([7, 3, 0, 5, 1], [4], [2, 0], [6, 7]):
        some = view([images[i] for i in rows], Draws(seed=3, epoch=2, step=9, index=index[rows]), spec)
        for field in ("box", "flip", "vflip", "angle", "jitter", "grey", "blur", "solarized", "source"):
            assert torch.equal(getattr(some, field), getattr(whole, field)[rows])
        off = (some.pixels - whole.pixels[rows]).abs()
        assert (off > 1e-5).sum() <= 2  # a value on the threshold of solarisation


def test_tensor_and_list_give_the_same_views(pictures):
    for shape, size in (((32, 32), 32), ((120, 130), 96)):
        x, spec = pictures(5, 3, *shape), ViewSpec(size=size)
        a, b = (view(images, Draws(index=range(5)), spec) for images in (x, list(x)))
        torch.testing.assert_close(a.pixels, b.pixels, atol=1e-5, rtol=0)


def test_other_names_seeds_and_epochs_give_other_views(pictures):
    x, spec = pictures(4), ViewSpec(size=32)
    base = Draws(seed=0, epoch=0, index=range(4))
    others = [base.scope("view1"), Draws(1, 0, index=range(4)), Draws(0, 1, index=range(4))]
    views = [view(x, d, spec).pixels for d in (base, *others)]
    for a, b in itertools.combinations(views, 2):
        assert (a != b).any()


def test_frequencies_of_the_draws():
    n = 4000
    spec = ViewSpec(size=4, flip=0.3, vertical_flip=0.1, grey_p=0.2, blur_p=0.6, solarize_p=0.25, rotation=20)
    got = view(torch.zeros(n, 3, 8, 8, dtype=torch.uint8), Draws(index=range(n)), spec)
    jittered = (got.jitter != torch.tensor([1.0, 1, 1, 0])).any(1)
    pairs = [(got.flip, 0.3), (got.vflip, 0.1), (got.grey, 0.2), (got.blur > 0, 0.6), (got.solarized, 0.25)]
    for drawn, p in (*pairs, (jittered, 0.8)):
        assert abs(drawn.float().mean().item() - p) < 0.035
    assert got.jitter[jittered].mean(0).sub(torch.tensor([1, 1, 1, 0])).abs().max() < 0.03
    assert got.angle.abs().max() <= 20 and got.angle.std() > 10


# --- crops and geometry -------------------------------------------------------------------------------------------
side = st.integers(1, 400)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(side, side), min_size=1, max_size=8), st.integers(0, 2**31), st.floats(0.01, 1.0))
def test_crops_lie_inside_the_picture(shapes, seed, least):
    source = np.array(shapes)
    draws = Draws(seed=seed, index=range(len(shapes)))
    boxes = crop.random_boxes(draws, source, scale=(least, 1.0))
    again = crop.overlapping_boxes(draws.scope("b"), source, boxes, scale=(least, 1.0))
    for box in (boxes, again):
        assert (box[:, :2] >= 0).all() and (box[:, 2:] >= 1).all()
        assert (box[:, :2] + box[:, 2:] <= source).all()
    share = boxes[:, 2] * boxes[:, 3] / source.prod(1)
    assert (share <= 1).all()


def test_crops_follow_torchvisions_rule():
    n = 4000
    boxes = crop.random_boxes(Draws(index=range(n)), np.tile([300, 400], (n, 1)))
    share, aspect = boxes[:, 2] * boxes[:, 3] / 120000, boxes[:, 3] / boxes[:, 2]
    assert share.min() > 0.078 and aspect.min() > 0.74 and aspect.max() < 1.35
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(8)
    drawn = [transform.make_params([torch.empty(3, 300, 400)]) for _ in range(1500)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    for ours, reference in zip(boxes.T, theirs.T, strict=True):
        spread = reference.std()
        assert abs(ours.mean() - reference.mean()) < 0.12 * spread and abs(ours.std() / spread - 1) < 0.08


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 1), (3, 9)])
def test_long_pictures_fall_back_to_torchvisions_central_crop(shape):
    box = crop.random_boxes(Draws(), np.array([shape]), scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))[0]
    transform = v2.RandomResizedCrop(8, scale=(1.0, 1.0))
    want = transform.make_params([torch.empty(3, *shape)])
    assert box.tolist() == [want["top"], want["left"], want["height"], want["width"]]


@pytest.mark.parametrize("size", [24, 80])
def test_pixels_come_from_where_the_geometry_says(size):
    """The channels of the picture are its coordinates: a view must show the coordinates of its own pixels."""
    images = [ramp(h, w) for h, w in [(60, 80), (200, 120), (90, 90), (333, 411), (40, 44), (77, 300)]]
    spec = ViewSpec(size=size, scale=(0.2, 0.8), vertical_flip=0.5, rotation=30, **PLAIN)
    got = view(images, Draws(seed=5, index=range(6)), spec)
    want = got.to_source(grid(size).expand(6, -1, -1))
    have = got.pixels[:, :2].flatten(2).transpose(1, 2) * 1000
    # away from the border of the crop (the antialiasing filter is cut there) and of the turned square (zero outside)
    low = got.box[:, None, :2].flip(-1) + 0.12 * got.box[:, None, 2:].flip(-1)
    high = got.box[:, None, :2].flip(-1) + 0.88 * got.box[:, None, 2:].flip(-1)
    inside = ((want > low) & (want < high)).all(-1)
    assert inside.float().mean() > 0.3
    # a widened filter over whole pixels keeps a ramp to some hundredths of a pixel
    assert (have - want)[inside].abs().max() < 0.1
    assert got.flip.any() and got.vflip.any() and not got.vflip.all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(8, 300), st.integers(8, 300))
def test_overlap_boxes_are_one_region_of_the_source(seed, height, width):
    draws = Draws(seed=seed, index=range(4))
    images = torch.zeros(4, 1, height, width, dtype=torch.uint8)
    spec = ViewSpec(size=2, scale=(0.05, 0.6), vertical_flip=0.3, **PLAIN)
    a = view(images, draws.scope("view1"), spec)
    b = view(images, draws.scope("view2"), spec, overlap_with=a)
    boxes = overlap_boxes(a, b)
    seen = []
    for v, box in zip((a, b), boxes, strict=True):
        assert (box >= 0).all() and (box <= 1).all() and (box[:, 2:] >= box[:, :2]).all()
        corners = v.to_source(box.view(4, 2, 2))
        seen.append(torch.cat([corners.amin(1), corners.amax(1)], 1))
    shared = torch.minimum(*(v.box[:, :2] + v.box[:, 2:] for v in (a, b))) - torch.maximum(a.box[:, :2], b.box[:, :2])
    touching = (shared > 0).all(1)
    torch.testing.assert_close(seen[0][touching], seen[1][touching], atol=1e-3, rtol=0)
    area = (seen[0][:, 2:] - seen[0][:, :2]).prod(1)
    torch.testing.assert_close(area[touching], shared[touching].prod(1), atol=0.5, rtol=1e-3)


def test_pairs_overlap_when_asked():
    n = 800
    images = torch.zeros(n, 1, 64, 64, dtype=torch.uint8)
    spec, draws = ViewSpec(size=1, scale=(0.02, 0.1), **PLAIN), Draws(index=range(n))
    a = view(images, draws.scope("view1"), spec)

    def missing(b):
        box = overlap_boxes(a, b)[1]
        return ((box[:, 2:] - box[:, :2]).prod(1) < 0.01).float().mean().item()

    free = missing(view(images, draws.scope("view2"), spec))
    forced = missing(view(images, draws.scope("view2"), spec, overlap_with=a))
    once = missing(view(images, draws.scope("view2"), spec, overlap_with=a, tries=1))
    assert free > 0.5 and forced < 0.1 and forced < once < free


@pytest.mark.golden
def test_overlap_boxes_equal_slotcons(golden):
    arrays, _ = golden("slotcon__grouping_losses")
    boxes = torch.from_numpy(arrays["crop_params"]).float()
    flips = [torch.from_numpy(arrays[f"flags{i}"]).bool() for i in (1, 2)]
    none = torch.zeros_like(flips[0])
    for i in (0, 1):
        got = crop.overlap_box(boxes[:, i], boxes[:, 1 - i], flips[i], none)
        np.testing.assert_allclose(got.numpy(), arrays[f"coords{i + 1}"], atol=1e-5)


# --- input of any kind --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_channels_and_types(channels, dtype, pictures):
    spec = ViewSpec(size=40, color="linear", rotation=5, blur_p=0.5)
    for images in (pictures(4, channels, 30, 50, dtype), list(pictures(4, channels, 90, 110, dtype))):
        got = view(images, Draws(index=range(4)), spec).pixels
        assert got.shape == (4, channels, 40, 40)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.min() >= 0 and got.max() <= 1 and got.std() > 0.01
        assert clean(images, 40).shape == (4, channels, 40, 40)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 3000), (5000, 2), (1500, 1700)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_tiny_huge_and_long_pictures(shape, interpolation, pictures):
    images = [torch.full((3, *shape), 77, dtype=torch.uint8), pictures(1, 3, 20, 20)[0]]
    spec = ViewSpec(size=32, interpolation=interpolation, flip=1.0, **PLAIN)
    got = view(images, Draws(index=[0, 1]), spec).pixels
    torch.testing.assert_close(got[0], torch.full((3, 32, 32), 77 / 255), atol=1e-5, rtol=0)
    evaluated = clean(images, 80)
    torch.testing.assert_close(evaluated[0], torch.full((3, 80, 80), 77 / 255), atol=1e-5, rtol=0)


@pytest.mark.parametrize("color", ["exact", "linear"])
@pytest.mark.parametrize("size", [16, 96])
def test_pictures_in_any_memory_order(size, color, pictures):
    """Decoders give rows of pixels, [H, W, C] in memory."""
    spec = ViewSpec(size=size, color=color, blur_p=0.5, solarize_p=0.3)
    for dtype in (torch.uint8, torch.float32):
        x = pictures(6, 3, 90, 110, dtype)
        pixels_first = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in x]
        want = view(x, Draws(index=range(6)), spec).pixels
        for images in (x.contiguous(memory_format=torch.channels_last), pixels_first):
            got = view(images, Draws(index=range(6)), spec).pixels
            assert ((got - want).abs() > 1.01 / 255).sum() <= 2 and got.is_contiguous()


def test_autocast_and_gradients_do_not_reach_the_views(pictures):
    x = pictures(4, 3, 32, 32, torch.float32).requires_grad_()
    spec = ViewSpec(size=32, color="linear", rotation=5)
    want = view(x, Draws(index=range(4)), spec).pixels
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = view(x, Draws(index=range(4)), spec).pixels
    assert torch.equal(got, want) and not got.requires_grad and got.dtype == torch.float32


def test_the_images_given_are_left_alone(pictures):
    for dtype in (torch.uint8, torch.float32):
        x = pictures(6, 3, 16, 16, dtype)
        before = x.clone()
        spec = ViewSpec(size=16, scale=(1, 1), ratio=(1, 1), flip=0, solarize_p=1, blur_p=1)
        view(x, Draws(index=range(6)), spec)
        view(list(x), Draws(index=range(6)), spec)
        clean(x, 16)
        assert torch.equal(x, before)


# --- multi-crop, two views, the clean view --------------------------------------------------------------------------
def test_two_views_and_multi_crop_share_their_scopes(pictures):
    x, draws = pictures(4), Draws(index=range(4))
    spec, small = ViewSpec(size=32), ViewSpec(size=16, scale=(0.05, 0.3))
    pair = two_views(x, draws, spec)
    crops = multi_crop(x, draws, [spec, spec], small, 3)
    assert [v.pixels.shape[-1] for v in crops] == [32, 32, 16, 16, 16]
    assert torch.equal(pair["view1"], crops[0].pixels) and torch.equal(pair["view2"], crops[1].pixels)
    assert (pair["view1"] != pair["view2"]).any() and (crops[2].pixels != crops[3].pixels).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(100, 140), (140, 101), (70, 70), (50, 300)])
def test_clean_equals_torchvisions_resize_and_central_crop(shape, dtype, pictures):
    x = pictures(2, 3, *shape, dtype)
    for size, ratio in ((70, None), (32, None), (48, 0.9)):
        short = round(size / (ratio or (1.0 if size <= 64 else 0.875)))
        want = v2.Compose([v2.Resize(short, antialias=True), v2.CenterCrop(size), v2.ToDtype(torch.float32, True)])(x)
        if shape == (size, size):
            want = v2.functional.to_dtype(x, torch.float32, True)
        for images in (x, list(x)):
            torch.testing.assert_close(clean(images, size, crop_ratio=ratio), want, atol=1e-5, rtol=0)


# --- mistakes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.2)},
        {"ratio": (0, 1)},
        {"flip": 1.5},
        {"jitter": (0.1, 0.1, 0.1)},
        {"jitter": (0.1, 0.1, 0.1, 0.7)},
        {"blur_sigma": (0.0, 1.0)},
        {"interpolation": "biliner"},
        {"color": "lineal"},
        {"rotation": -3.0},
    ],
)
def test_wrong_specs_are_named(wrong):
    with pytest.raises(UserError) as error:
        ViewSpec(**{"size": 8, **wrong})
    assert str(next(iter(wrong.values()))) in str(error.value)


@pytest.mark.parametrize(
    "images",
    [
        [],
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 0, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.zeros(3, 3, 8, 8, dtype=torch.uint8),
        [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)],
        [torch.zeros(8, 8), torch.zeros(8, 8)],
    ],
)
def test_wrong_pictures_are_named(images):
    with pytest.raises(UserError):
        view(images, Draws(index=[0, 1]), ViewSpec(size=8))


def test_rotated_views_share_no_box(pictures):
    a = view(pictures(1), Draws(), ViewSpec(size=8, rotation=10))
    with pytest.raises(UserError, match="rotation"):
        overlap_boxes(a, a)


@pytest.mark.parametrize("color", ["linear", "exact"])
def test_bright_pictures_stay_in_range_whatever_else_is_in_the_batch(color):
    """The rounding of a resize may leave [0, 1]; colours clamp, but not every picture of a batch is recoloured."""
    images = 255 * torch.randint(0, 2, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    spec = ViewSpec(size=12, scale=(0.08, 0.6), color=color)
    for epoch in range(20):
        draws = Draws(epoch=epoch, index=range(8))
        whole = view(images, draws, spec).pixels
        assert float(whole.max()) <= 1 and float(whole.min()) >= 0
        halves = [
            view(images[rows], draws.rows(rows.start, rows.stop), spec).pixels for rows in (slice(0, 3), slice(3, 8))
        ]
        assert torch.equal(torch.cat(halves), whole)

"""Crops, rotation, colour and filters: equal to torchvision for the same parameters."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from eyespot.draws import Draws
from eyespot.views import color as colors
from eyespot.views import crop, filters
from eyespot.views.image import View, ViewSpec, view
from eyespot.views.resample import by_canvas, by_matrices, native, resized_crops, rotate

MODES = {"bilinear": TF.InterpolationMode.BILINEAR, "bicubic": TF.InterpolationMode.BICUBIC}


# --- resized crops ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [8, 32, 56])
def test_matrices_equal_resized_crop(size, interpolation, pictures):
    x = pictures(dtype=torch.float32)
    boxes = crop.random_boxes(Draws(index=range(6)), np.tile([32, 40], (6, 1)))
    flip = np.arange(6) % 2 == 1
    got = by_matrices(
        x, torch.from_numpy(boxes), torch.from_numpy(flip), torch.from_numpy(~flip), size, interpolation, x.dtype
    )
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        want = TF.resized_crop(
            x[i], top, left, height, width, [size, size], MODES[interpolation], antialias=True
        ).clamp(0, 1)
        want = TF.horizontal_flip(want) if flip[i] else TF.vertical_flip(want)
        torch.testing.assert_close(got[i], want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "size"), [((32, 40), 32), ((150, 130), 96)])
def test_uint8_equals_resized_crop_to_one_grey_level(shape, size, interpolation, pictures):
    x = pictures(4, 3, *shape)
    boxes = crop.random_boxes(Draws(index=range(4)), np.tile(shape, (4, 1)))
    none = np.zeros(4, dtype=bool)
    got = resized_crops(x, boxes, none, none, size, interpolation)
    got = got if got.dtype == torch.uint8 else (got * 255).round()
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        want = TF.resized_crop(x[i], top, left, height, width, [size, size], MODES[interpolation], antialias=True)
        assert (got[i].float() - want.float()).abs().max() <= 1


def test_float_pictures_of_any_size_equal_resized_crop(pictures):
    x = [pictures(1, 3, h, w, torch.float32)[0] for h, w in [(20, 31), (120, 90), (97, 200)]]
    source = np.array([p.shape[-2:] for p in x])
    boxes = crop.random_boxes(Draws(index=range(3)), source)
    none = np.zeros(3, dtype=bool)
    got = resized_crops(x, boxes, none, none, 48)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        want = TF.resized_crop(x[i], top, left, height, width, [48, 48], antialias=True)
        torch.testing.assert_close(got[i], want, atol=2e-5, rtol=0)


def test_paths_agree(pictures):
    x = [pictures(1, 2, h, w, torch.float32)[0] for h, w in [(20, 31), (70, 50), (33, 33), (5, 64)]]
    boxes = crop.random_boxes(Draws(index=range(4)), np.array([p.shape[-2:] for p in x]))
    flip, vflip = np.array([True, False, True, False]), np.array([True, True, False, False])
    arguments = (boxes, flip, vflip, 24, "bicubic", torch.device("cpu"))
    torch.testing.assert_close(by_canvas(x, *arguments, torch.float32), native(x, *arguments), atol=2e-5, rtol=0)


def test_threads_change_nothing(pictures):
    x = pictures(16, 3, 120, 100)
    spec = ViewSpec(size=72, color="linear", blur_p=0.5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = view(x, Draws(index=range(16)), spec).pixels
        torch.set_num_threads(1)
        one = view(x, Draws(index=range(16)), spec).pixels
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


@pytest.mark.parametrize("angle", [-170.0, -33.0, 0.0, 12.5, 90.0])
def test_rotate_equals_torchvision(angle, pictures):
    x = pictures(2, 3, 24, 24, torch.float32)
    want = TF.rotate(x, angle, TF.InterpolationMode.BILINEAR)
    torch.testing.assert_close(rotate(x, torch.full((2,), angle)), want, atol=2e-5, rtol=0)


# --- colour -------------------------------------------------------------------------------------------------------
FUNCTIONS = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]


@pytest.mark.parametrize("which", range(4))
def test_each_operation_equals_torchvision(which, pictures):
    x = pictures(7, 3, 17, 19, torch.float32)
    x[0] = 0.3  # grey: no hue
    x[1, 1] = x[1, 0]  # two largest channels equal
    x[2], x[3] = 0.0, 1.0
    factor = torch.tensor([0.5, -0.5, 0.1, 0.31, -0.2, -0.01, 0.0]) + (1.0 if which < 3 else 0.0)
    got = colors.OPERATIONS[which](x.clone(), factor)
    for i in range(7):
        torch.testing.assert_close(got[i], FUNCTIONS[which](x[i], factor[i].item()), atol=1e-5, rtol=0)


def exact_reference(x, look: View, order, spec):
    for i in range(len(x)):
        p = x[i]
        if (look.jitter[i] != torch.tensor([1.0, 1, 1, 0])).any():
            for which in order[i]:
                p = FUNCTIONS[which](p, look.jitter[i, which].item())
        p = TF.rgb_to_grayscale(p, 3) if look.grey[i] else p
        if look.blur[i] > 0:
            k = 2 * filters.blur_radius(spec.blur_sigma[1], spec.size) + 1
            p = TF.gaussian_blur(p, [k, k], [look.blur[i].item()] * 2)
        yield TF.solarize(p, spec.solarize_threshold) if look.solarized[i] else p


@pytest.mark.parametrize("size", [20, 60])
def test_whole_exact_view_equals_torchvision(size, pictures):
    x, draws = pictures(40, 3, 70, 60, torch.float32), Draws(index=range(40))
    spec = ViewSpec(size=size, vertical_flip=0.5, blur_p=0.5, solarize_p=0.4)
    got = view(x, draws, spec)
    order = draws.uniform64("order", 4).argsort(1, kind="stable")
    cropped = []
    for i, (top, left, height, width) in enumerate(got.box.int().tolist()):
        p = TF.resized_crop(x[i], top, left, height, width, [size, size], antialias=True)
        p = TF.horizontal_flip(p) if got.flip[i] else p
        cropped.append(TF.vertical_flip(p) if got.vflip[i] else p)
    different = 0
    for have, want in zip(got.pixels, exact_reference(cropped, got, order, spec), strict=True):
        # solarisation jumps at its threshold: a value on it may fall on either side
        different += int(((have - want).abs() > 1e-4).sum())
    assert different <= 3
    assert {got.flip.sum().item(), got.vflip.sum().item(), got.grey.sum().item()} & {0, 40} == set()


def test_strength_zero_leaves_the_operation_out(pictures):
    x = pictures(8, 3, 16, 16, torch.float32)
    spec = ViewSpec(size=16, scale=(1, 1), ratio=(1, 1), flip=0, jitter=(0.4, 0, 0, 0), jitter_p=1, grey_p=0)
    got = view(x, Draws(index=range(8)), spec)
    want = (x * got.jitter[:, :1, None, None]).clamp(0, 1)
    torch.testing.assert_close(got.pixels, want, atol=1e-5, rtol=0)


def test_linear_matrix_is_the_exact_colour_where_nothing_clamps(pictures):
    """Without hue the four operations commute and only clamping tells the modes apart."""
    x = 0.4 + 0.1 * pictures(30, 3, 16, 16, torch.float32)
    spec = {"size": 16, "scale": (1, 1), "ratio": (1, 1), "jitter": (0.2, 0.2, 0.2, 0.0)}
    exact, linear = (view(x, Draws(index=range(30)), ViewSpec(color=m, **spec)) for m in ("exact", "linear"))
    torch.testing.assert_close(exact.jitter, linear.jitter)
    torch.testing.assert_close(exact.pixels, linear.pixels, atol=2e-4, rtol=0)  # the weights of grey sum to 0.9999


def test_linear_hue_turns_like_hsv(pictures):
    third = colors.hue_matrix(np.array([1 / 3]))[0]
    np.testing.assert_allclose(third @ [1, 0, 0], [0, 1, 0], atol=1e-12)  # red becomes green, as in HSV
    x = pictures(16, 3, 24, 24, torch.float32)
    shift = np.full(16, 0.2)
    turned = torch.einsum("bij,bjhw->bihw", torch.from_numpy(colors.hue_matrix(shift)).float(), x).clamp(0, 1)
    want = TF.adjust_hue(x, 0.2)
    assert (turned - want).abs().mean() < 0.5 * (x - want).abs().mean()


def test_linear_grey_keeps_grey_pictures_and_removes_colour(pictures):
    x = pictures(20, 1, 16, 16, torch.float32).expand(-1, 3, -1, -1).contiguous()
    spec = ViewSpec(size=16, scale=(1, 1), ratio=(1, 1), flip=0, jitter=(0, 0, 0.4, 0.2), jitter_p=1, color="linear")
    torch.testing.assert_close(view(x, Draws(index=range(20)), spec).pixels, x, atol=1e-5, rtol=0)
    grey = view(pictures(), Draws(index=range(6)), ViewSpec(size=16, grey_p=1, color="linear")).pixels
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["exact", "linear"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_get_brightness_and_contrast_only(channels, mode, pictures):
    x = 0.3 + 0.3 * pictures(12, channels, 20, 20, torch.float32)
    spec = ViewSpec(size=20, scale=(1, 1), ratio=(1, 1), flip=0, jitter=(0.2, 0.2, 0.4, 0.1), color=mode)
    got = view(x, Draws(index=range(12)), spec)
    assert (got.jitter[:, 2:] == torch.tensor([1.0, 0.0])).all() and not got.grey.any()
    brightness, contrast = got.jitter[:, 0, None, None, None], got.jitter[:, 1, None, None, None]
    want = brightness * x
    want = contrast * want + (1 - contrast) * want.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(got.pixels, want, atol=1e-5, rtol=0)


# --- filters ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [9, 40, 64])
def test_blur_equals_torchvision(size, pictures):
    x = pictures(3, 3, size, size, torch.float32)
    sigma = torch.tensor([0.1, 0.8, 2.0])
    radius = filters.blur_radius(2.0, size)
    got = filters.gaussian_blur(x, sigma, radius)
    for i in range(3):
        k = 2 * radius + 1
        torch.testing.assert_close(got[i], TF.gaussian_blur(x[i], [k, k], [sigma[i].item()]), atol=1e-5, rtol=0)


def test_blur_touches_chosen_rows_only_and_small_pictures_pass(pictures):
    x = pictures(4, 1, 12, 12, torch.float32)
    got = filters.blur_(x.clone(), torch.tensor([2]), torch.tensor([1.5]), 3)
    assert (got[2] != x[2]).any() and torch.equal(got[[0, 1, 3]], x[[0, 1, 3]])
    for size in (1, 2, 3):
        out = view(pictures(2, 3, 5, 5), Draws(index=[0, 1]), ViewSpec(size=size, blur_p=1.0, solarize_p=1.0))
        assert torch.isfinite(out.pixels).all()


def test_solarize_equals_torchvision(pictures):
    x = pictures(2, 3, 8, 8, torch.float32)
    got = filters.solarize_(x.clone(), torch.tensor([0, 1]), 0.4)
    torch.testing.assert_close(got, TF.solarize(x, 0.4))

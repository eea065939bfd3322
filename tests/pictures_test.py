"""Numbers as colours: against the published map, and rising in lightness."""

from __future__ import annotations

import numpy as np
import pytest

from nerf_tf.output import pictures

LUMINANCE = [0.2126, 0.7152, 0.0722]


def test_the_map_is_magma():
    matplotlib = pytest.importorskip("matplotlib", reason="the original map is matplotlib's")
    levels = np.linspace(0.0, 1.0, 256)
    expected = 255 * matplotlib.colormaps["magma"](levels)[:, :3]
    np.testing.assert_allclose(pictures.apply_colour_map(levels), expected, atol=3)


def test_lightness_rises_evenly():
    srgb = pictures.apply_colour_map(np.linspace(0.0, 1.0, 64)) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) @ LUMINANCE
    lightness = np.where(linear > 0.008856, 116 * np.cbrt(linear) - 16, 903.3 * linear)  # CIE L*
    steps = np.diff(lightness)
    assert steps.min() > 0.4 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()
    assert lightness[-1] > 95


def test_levels_beyond_the_ends_and_nan():
    np.testing.assert_array_equal(
        pictures.apply_colour_map(np.array([-1.0, np.nan, np.inf, 2.0])), pictures.MAGMA[[0, 0, -1, -1]]
    )


def test_false_colours_grow_lighter_from_dark_to_light_and_vanish_where_empty():
    values = np.linspace(2.0, 6.0, 64)[None]
    for dark, light, sign in ((2.0, 6.0, 1), (6.0, 2.0, -1)):
        colours = pictures.false_colours(values, np.ones_like(values), dark, light)
        assert np.all(sign * np.diff(colours[0] @ LUMINANCE) > 0)
    for background in (0, 255):
        empty = pictures.false_colours(values, np.zeros_like(values), 2.0, 6.0, background)
        np.testing.assert_array_equal(empty, background)
    half = pictures.false_colours(np.array([[6.0]]), np.array([[0.5]]), 2.0, 6.0, 255)
    np.testing.assert_array_equal(half, np.rint((pictures.MAGMA[-1] + 255) / 2)[None, None])


def test_one_value_everywhere_has_a_colour():
    values = np.full([2, 3], 4.0)
    low, high = pictures.display_range([pictures.opaque_values(values, np.ones_like(values))])
    assert low < high
    np.testing.assert_array_equal(pictures.false_colours(values, np.ones([2, 3]), 1.0, 1.0).shape, (2, 3, 3))


def test_expected_depth_is_where_rays_end():
    depth, acc = np.array([[4.0, 1.0, 0.0]], np.float32), np.array([[1.0, 0.25, 0.0]], np.float32)
    np.testing.assert_array_equal(pictures.expected_depth(depth, acc), [[4.0, 4.0, 0.0]])


def test_the_range_leaves_out_what_is_empty_stray_or_no_number():
    values = np.concatenate([np.linspace(1.0, 2.0, 1000), [1e9, np.nan, np.inf, 77.0]])
    acc = np.ones_like(values)
    acc[-1] = 0.1
    low, high = pictures.display_range(
        [pictures.opaque_values(part, a) for part, a in ((values, acc), (values, 0 * acc))]
    )
    assert (low, high) == pytest.approx((1.01, 1.99), abs=0.002)
    assert pictures.display_range([])[0] == 0.0

"""Attention maps as the client reads, measures and draws them."""

import io

import numpy as np
import pytest
from PIL import Image

from sfumato_client.attention_maps import WordMaps, centre_of_mass, draw_sheet, heat_colours, overlay


def maps_of(*words: str) -> WordMaps:
    """Word i attends to column i of 8, and a little to everything."""
    maps = np.full((len(words), 8, 8), 0.01, np.float32)
    for index in range(len(words)):
        maps[index, :, index] = 1
    return WordMaps(list(words), maps, 4, 4)


def test_the_centre_of_mass_is_where_the_map_is() -> None:
    heat = np.zeros((4, 8), np.float32)
    heat[0, 6] = 2
    assert centre_of_mass(heat) == (6.5 / 8, 0.5 / 4)
    assert centre_of_mass(np.ones((4, 8), np.float32)) == (0.5, 0.5)
    assert centre_of_mass(np.zeros((4, 8), np.float32)) == (0.5, 0.5)


def test_a_constant_under_a_map_never_moves_its_centre_to_the_other_half() -> None:
    heat = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    x, y = centre_of_mass(heat)
    higher_x, higher_y = centre_of_mass(heat + 10)
    assert (x > 0.5, y > 0.5) == (higher_x > 0.5, higher_y > 0.5)


def test_words_in_a_row_are_summed_and_unknown_ones_are_said() -> None:
    maps = maps_of("A", "soccer", "ball")
    assert np.array_equal(maps.of("Soccer ball"), maps.maps[1] + maps.maps[2])
    with pytest.raises(ValueError, match="its words are A, soccer, ball"):
        maps.of("ball soccer")


def test_the_overlay_is_bright_where_the_word_is() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    drawn = np.asarray(overlay(grey, maps_of("a", "b").maps[0])).astype(int).sum(-1)
    assert drawn[:, 2].mean() > drawn[:, 60].mean() + 100


def test_colours_run_from_dark_to_bright() -> None:
    lightness = heat_colours(np.linspace(0, 1, 9, dtype=np.float32)).astype(int).sum(-1)
    assert (np.diff(lightness) > 0).all()


def test_the_sheet_has_a_tile_for_the_image_and_each_word() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), "navy").save(buffer, "PNG")
    sheet = draw_sheet(buffer.getvalue(), maps_of(*"abcdefg"))
    assert sheet.size == (6 * 192, 2 * (96 + 22))
    assert sheet.getpixel((96, 60)) == (0, 0, 128)

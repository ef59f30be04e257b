"""Bytes of the storage formats, by hand."""

import pytest

from ridgeline.errors import InputError
from ridgeline.ops.formats import FORMATS, get_format


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [("fp64", 480), ("fp32", 240), ("bf16", 120), ("fp16", 120), ("int64", 480)],
)
def test_a_plain_format_takes_its_bits(name, nbytes):
    assert get_format(name).nbytes((3, 4, 5)) == nbytes


def test_int8_has_a_16_bit_scale_a_row():
    assert get_format("int8").nbytes((10, 64)) == 10 * (64 + 2)


def test_fp8_in_blocks_has_a_32_bit_scale_a_block():
    assert get_format("fp8-128x128").nbytes((256, 512)) == 256 * 512 + 2 * 4 * 4


def test_int4_has_a_16_bit_scale_a_group():
    assert get_format("int4-g128").nbytes((10, 256)) == 10 * (256 / 2 + 2 * 2)
    assert get_format("int4-g64").nbytes((10, 256)) == 10 * (256 / 2 + 4 * 2)
    assert get_format("int4-g32").nbytes((10, 256)) == 10 * (256 / 2 + 8 * 2)


def test_int4_with_zero_points_has_4_bits_more_a_group():
    assert get_format("int4-g128-zp").nbytes((10, 256)) == 10 * (256 / 2 + 2 * (2 + 0.5))


def test_a_group_that_the_row_does_not_fill_has_a_scale_all_the_same():
    assert get_format("int4-g128").nbytes((1, 130)) == 130 / 2 + 2 * 2


def test_groups_end_with_their_row():
    one_row, many_rows = get_format("int4-g128").nbytes((1, 640)), get_format("int4-g128").nbytes((10, 64))
    assert (one_row, many_rows) == (320 + 5 * 2, 320 + 10 * 2)


def test_scales_make_a_format_quantised():
    assert {name for name in FORMATS if get_format(name).is_quantised} == {
        "fp8",
        "fp8-128x128",
        "int8",
        "int8-g256",
        "int4-g32",
        "int4-g64",
        "int4-g128",
        "int4-g32-zp",
        "int4-g64-zp",
        "int4-g128-zp",
    }


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown storage format 'int3'.*bf16"):
        get_format("int3")

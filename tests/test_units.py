"""Sizes, FLOP counts and durations, as typed and as printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.errors import UnitError
from advisor.units import (
    format_bytes,
    format_count,
    format_flops,
    format_joules,
    format_seconds,
    parse_bytes,
    parse_flops,
    parse_joules,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512MB", 512_000_000),
        ("512 MiB", 512 * 2**20),
        ("1.5gb", 1_500_000_000),
        ("1e3B", 1000),
        ("64kb", 64_000),
    ],
)
def test_bytes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("512", "MB (10^6 bytes) or MiB"),
        ("512XB", "unknown unit 'XB'"),
        ("0MB", "greater than 0"),
        ("-3MB", "greater than 0"),
        ("MB", "not a size"),
        ("1e999MB", "too large"),
    ],
)
def test_bad_bytes(text, hint):
    with pytest.raises(UnitError, match=hint.replace("(", r"\(").replace(")", r"\)").replace("^", r"\^")):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("2GFLOPs", 2e9), ("2gflop", 2e9), ("300 MFLOPs", 3e8), ("1TFLOP", 1e12)]
)
def test_flops(text, expected):
    assert parse_flops(text) == expected


@pytest.mark.parametrize("text", ["2GFLOPS", "2GFLOPs/s", "2GFLOP/s"])
def test_a_rate_is_not_a_count(text):
    with pytest.raises(UnitError, match=f"'{text.removeprefix('2')}' is a rate"):
        parse_flops(text)


@pytest.mark.parametrize("text", ["2", "2GB", "0GFLOPs", "two"])
def test_bad_flops(text):
    with pytest.raises(UnitError):
        parse_flops(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("5m", 300), ("200ms", 0.2), ("1h", 3600), ("2min", 120)]
)
def test_seconds(text, expected):
    assert parse_seconds(text) == expected


@pytest.mark.parametrize("text", ["5", "0s", "-1m", "soon", "5d"])
def test_bad_seconds(text):
    with pytest.raises(UnitError):
        parse_seconds(text)


def test_printed():
    assert format_bytes(64_000_000) == "64.0 MB"
    assert format_bytes(999) == "999 B"
    assert format_bytes(999_999) == "1.00 MB"
    assert format_flops(1_783_000_000) == "1.78 GFLOP"
    assert format_count(2_236_682) == "2.24 M"
    assert format_count(12) == "12"
    assert format_seconds(0.012) == "12.0 ms"
    assert format_seconds(75) == "75.0 s"
    assert format_seconds(300) == "5.0 min"
    assert [format_joules(j) for j in (0.0125, 2.5, 1234, 5e6)] == ["12.5 mJ", "2.50 J", "1.23 kJ", "5.00 MJ"]


@given(st.integers(1, 10**14))
def test_what_is_printed_can_be_typed(count):
    assert abs(parse_bytes(format_bytes(count)) - count) <= 0.006 * count
    assert abs(parse_flops(format_flops(count)) - count) <= 0.006 * count


@pytest.mark.parametrize(("text", "joules"), [("5 J", 5.0), ("3mJ", 0.003), ("3MJ", 3e6), ("2Wh", 7200.0)])
def test_energies_are_told_apart_by_case(text, joules):
    assert parse_joules(text) == pytest.approx(joules)


@pytest.mark.parametrize("text", ["5", "5j", "-2J", "0J", "5W"])
def test_other_energies_are_refused(text):
    with pytest.raises(UnitError):
        parse_joules(text)

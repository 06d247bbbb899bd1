"""The hardware table has a source for every figure, and reads what users write."""

from __future__ import annotations

import dataclasses

import pytest

from dora_jax.cost import hardware
from dora_jax.cost.hardware import Devices, parse_devices
from dora_jax.cost.prices import DEVICE_ITEMS

# The vendors' datasheets: dense bf16 TFLOP/s, memory GB, memory TB/s.
VENDORS = {
    "a100-40gb": (312, 40, 1.555),
    "a100": (312, 80, 2.039),
    "h100": (989, 80, 3.35),
    "h200": (989, 141, 4.8),
    "v4": (275, 32, 1.2),
    "v5e": (197, 16, 0.819),
    "v5p": (459, 95, 2.765),
    "v6e": (918, 32, 1.638),
}


def test_the_table_has_the_vendors_figures() -> None:
    assert set(hardware.table()) == set(VENDORS)
    for item, (tflops, gigabytes, terabytes) in VENDORS.items():
        row = hardware.table()[item]
        assert row.peak_bf16_flops_per_second == tflops * 1e12
        assert row.memory_bytes == gigabytes * 1e9
        assert row.memory_bytes_per_second == pytest.approx(terabytes * 1e12)
        # Vendors' GB are between GB and GiB, and no framework finds more than that.
        assert gigabytes * 1e9 <= row.usable_bytes <= gigabytes * 2**30
        assert row.link_bytes_per_second > (row.host_bytes_per_second or 0)


@pytest.mark.parametrize("field", ["peak_bf16_flops_per_second", "usable_bytes", "source", "date"])
def test_a_row_without_a_figure_or_its_source_is_refused(field: str) -> None:
    row = hardware.table()["h100"]
    nothing = "" if field in ("source", "date") else 0.0
    with pytest.raises(ValueError, match=r"hardware h100.*(expected|source)"):
        dataclasses.replace(row, **{field: nothing})


def test_jax_names_find_their_row() -> None:
    named = {item for item in DEVICE_ITEMS.values() if hardware.find(item)}
    assert {"a100", "h100", "h200", "v4", "v5e", "v5p", "v6e"} <= named
    found = hardware.find("TPU v5 lite")
    assert found is not None
    assert found.item == "v5e"
    assert hardware.find("NVIDIA GeForce") is None
    assert hardware.find("cpu") is None


def test_devices_are_read_as_they_are_written() -> None:
    assert parse_devices("a100-40gb:4, H200,cpu") == [
        Devices("a100-40gb", 4, "a100-40gb:4"),
        Devices("h200", 1, "H200"),
        Devices("cpu", 1, "cpu"),
    ]


@pytest.mark.parametrize(
    "text", ["", ",", "h100:0", "h100:x", "h100:", "k80:2", "h100:-1", "h100:2:2"]
)
def test_what_is_no_hardware_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"hardware .*(h100|v5e)"):
        parse_devices(text)

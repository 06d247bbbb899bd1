"""The price book: what it says, and what it refuses to load."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math

import pytest

from dora_jax.config import CostConfig
from dora_jax.cost.prices import (
    DEVICE_ITEMS,
    INPUT_TOKENS,
    NOT_PRICED,
    OUTPUT_TOKENS,
    SET_BY_USER,
    PriceBook,
    user_price,
)
from dora_jax.cost.run_prices import device_price, device_price_notes

ENTRY = {
    "item": "h100",
    "unit": "gpu",
    "kind": "on-demand",
    "usd": 4.0,
    "source": "a catalog",
    "date": "2026-01-31",
}


@pytest.fixture(scope="module")
def book():
    return PriceBook.load()


def write_book(path, *changes):
    """A price book with one entry for each change of ENTRY; None leaves a field out."""
    entries = [
        {key: value for key, value in {**ENTRY, **change}.items() if value is not None}
        for change in changes
    ]
    path.write_text(json.dumps({"version": 1, "date": "2026-02-01", "entries": entries}))
    return path


def test_an_a100_costs_what_the_paper_says(book):
    price = book.device_price("NVIDIA A100-SXM4-80GB")
    assert (price.item, price.usd, price.unit, price.date) == ("a100", 1.875, "gpu", "2023")
    assert "Distill or Annotate" in price.source


def test_the_small_a100_is_billed_as_it_is_quoted(book):
    assert book.device_price("NVIDIA A100-SXM4-40GB") == book.device_price("a100-40gb")


@pytest.mark.parametrize(
    ("task", "usd"),
    [
        ("wlp", 0.26),
        ("stanceosaurus", 0.364),
        ("fever", 0.129),
        ("multipit_id", 0.2),
        ("multipit_gen", 0.371),
        ("nq", 0.129),
    ],
)
def test_labels_cost_what_the_paper_says(book, task, usd):
    price = book.label_price(task)
    assert (price.usd, price.unit) == (usd, "label")
    assert price.source and price.date


@pytest.mark.parametrize(
    ("device_kind", "item"),
    [("NVIDIA H200", "h200"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e")],
)
def test_the_names_jax_uses_find_their_item(book, device_kind, item):
    assert book.device_price(device_kind).item == item


def test_every_device_jax_may_name_has_a_price(book):
    unpriced = {kind for kind in DEVICE_ITEMS if not book.device_price(kind).is_set}
    assert unpriced == {"cpu"}


def test_a_cpu_costs_a_marked_zero(book):
    price = book.device_price("cpu")
    assert price.usd == 0.0
    assert price.source == NOT_PRICED
    assert not price.is_set


def test_a_board_is_shared_by_its_jax_devices(book):
    price = book.device_price("TPU v2")
    assert price.usd == 4.5 / 8
    assert "4.5 USD per board of 8" in price.note


@pytest.mark.parametrize("device_kind", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 PCIe"])
def test_a_device_that_only_resembles_a_known_one_has_no_price(book, device_kind):
    with pytest.raises(ValueError, match=r"a100.*h200.*PRICE_USD_PER_DEVICE_HOUR"):
        book.device_price(device_kind)


def test_an_unknown_task_is_told_the_known_ones(book):
    with pytest.raises(ValueError, match=r"'wpl'.*multipit_gen.*wlp"):
        book.label_price("wpl")


def test_spot_is_never_replaced_by_on_demand(book):
    assert book.device_price("NVIDIA H100 80GB HBM3", spot=True).usd == 1.60
    with pytest.raises(ValueError, match="no spot price"):
        book.device_price("NVIDIA A100-SXM4-80GB", spot=True)


def test_the_newest_entry_holds_and_among_equals_the_dearest(tmp_path):
    path = write_book(
        tmp_path / "book.json",
        {"usd": 9.0, "date": "undated"},
        {"usd": 2.0, "date": "2026-03-01"},
        {"usd": 3.0, "date": "2026-03-01"},
        {"usd": 5.0, "date": "2025-12"},
    )
    assert PriceBook.load(path).device_price("h100").usd == 3.0


def test_a_book_of_the_user_may_price_the_cpu(tmp_path):
    path = write_book(tmp_path / "book.json", {"item": "cpu", "unit": "host", "usd": 0.2})
    price = PriceBook.load(path).device_price("cpu")
    assert price.usd == 0.2
    assert price.is_set


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"source": None}, r"entry 0 \(h100\): missing \['source'\]"),
        ({"date": None}, r"missing \['date'\]"),
        ({"kind": None}, r"missing \['kind'\]"),
        ({"usd": None}, r"missing \['usd'\]"),
        ({"pirce": 1.0}, r"not known \['pirce'\]"),
        ({"date": "last week"}, "YYYY-MM-DD"),
        ({"date": "2026-13"}, "YYYY-MM-DD"),
        ({"date": "2026-02-31"}, "day is out of range for month"),
        ({"usd": -1.0}, "above 0"),
        ({"usd": 0}, "above 0"),
        ({"usd": "4"}, "above 0"),
        ({"usd": math.nan}, "above 0"),
        ({"usd": 700.0}, "unknown"),
        ({"unit": "pod"}, "expected one of"),
        ({"kind": "reserved"}, "expected one of"),
        ({"devices_per_unit": 0}, "1 or more"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        PriceBook.load(write_book(tmp_path / "book.json", change))


def test_spot_above_on_demand_is_refused_within_one_source(tmp_path):
    spot = {"kind": "spot", "usd": 4.5}
    with pytest.raises(ValueError, match=r"h100 costs 4.5 USD on spot and 4.0 on demand"):
        PriceBook.load(write_book(tmp_path / "book.json", {}, spot))
    elsewhere = write_book(tmp_path / "other.json", {}, {**spot, "source": "another catalog"})
    assert PriceBook.load(elsewhere).device_price("h100", spot=True).usd == 4.5


def test_two_units_for_one_item_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one unit"):
        PriceBook.load(write_book(tmp_path / "book.json", {}, {"unit": "board"}))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", '"version": 1'),
        ('{"version": 2, "date": "2026", "entries": []}', '"version": 1'),
        ('{"version": 1, "date": "2026", "entries": []}', "found none"),
        ('{"version": 1, "date": "undated", "entries": [1]}', "the book"),
        ('{"version": 1, "date": "2026", "entries": [1]}', "entry 0: expected a JSON object"),
    ],
)
def test_a_file_that_is_no_price_book_is_refused(tmp_path, text, complaint):
    path = tmp_path / "book.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        PriceBook.load(path)


def test_a_price_of_the_user_is_marked():
    price = user_price(2.5)
    assert (price.usd, price.unit, price.source) == (2.5, "device", SET_BY_USER)
    assert price.is_set and price.date[:2] == "20"


@pytest.mark.parametrize("usd", [-0.01, math.inf, math.nan])
def test_a_price_of_the_user_must_be_a_price(usd):
    with pytest.raises(ValueError, match="0 or more"):
        user_price(usd)


# --- Units, ages, and a book of one's own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": "v4", "unit": "core"}, "a JAX device of v4 is a chip, which has two"),
        ({"item": "v5p", "unit": "core"}, "Enter the price of a chip"),
        ({"item": "v5e", "unit": "chip", "devices_per_unit": 8}, "a chip of v5e is 1"),
        ({"item": "v3", "unit": "chip"}, "a chip of v3 is 2 of JAX's devices"),
        ({"item": "v2", "unit": "core", "devices_per_unit": 2}, "a core of v2 is 1"),
        ({"item": "v6e", "unit": "gpu"}, "by chip, core, board or host"),
        ({"unit": "core"}, "GPUs by gpu or host"),
        ({"devices_per_unit": 8}, 'several write "unit": "host"'),
    ],
)
def test_a_unit_that_the_item_is_not_sold_in_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        PriceBook.load(write_book(tmp_path / "book.json", change))


def test_a_core_and_a_chip_of_v3_come_to_the_same(tmp_path):
    chip = {"item": "v3", "unit": "chip", "devices_per_unit": 2, "usd": 2.0}
    core = {"item": "v3", "unit": "core", "usd": 1.0}
    for change in (chip, core):
        book = PriceBook.load(write_book(tmp_path / "book.json", change))
        assert book.device_price("TPU v3").usd == 1.0


def test_a_spot_price_of_a_part_is_refused(tmp_path):
    path = write_book(tmp_path / "book.json", {}, {"kind": "spot", "usd": 0.39})
    with pytest.raises(ValueError, match=r"0.39 USD on spot and 4.0 on demand"):
        PriceBook.load(path)


@pytest.mark.parametrize(
    ("date", "stale"),
    [
        ("2026-01-31", False),
        ("2024-11-21", True),
        ("2025-11-21", False),
        ("2025-11-20", True),
        ("2025", False),  # may be as young as December
        ("2024", True),
        ("2025-10", True),
        ("undated", True),
    ],
)
def test_a_market_price_of_over_a_year_is_stale(tmp_path, date, stale):
    book = PriceBook.load(write_book(tmp_path / "book.json", {"date": date}))
    price = book.device_price("h100")
    assert price.is_stale(datetime.date(2026, 11, 21)) == stale


def test_a_price_book_that_does_not_price_the_device_says_so(tmp_path):
    today = datetime.date(2026, 11, 21)
    misspelt = CostConfig(price_book=str(write_book(tmp_path / "own.json", {"item": "h10O"})))
    price = device_price(misspelt, "NVIDIA H100 80GB HBM3", spot=False)
    (note,) = device_price_notes(misspelt, price, today)
    assert f"own.json prices h10O, not h100, which costs ${price.usd:,.3f}" in note
    set_by_hand = dataclasses.replace(misspelt, price_usd_per_device_hour=2.0)
    assert device_price(set_by_hand, "NVIDIA H100 80GB HBM3", spot=False).usd == 2.0
    assert not device_price_notes(set_by_hand, user_price(2.0), today)
    # Right, and of labels alone: nothing to say.
    right = CostConfig(price_book=str(write_book(tmp_path / "right.json", {})))
    assert device_price(right, "h100", spot=False).usd == 4.0
    assert not device_price_notes(right, device_price(right, "h100", spot=False), today)
    labels = write_book(tmp_path / "labels.json", {"item": "wlp", "unit": "label"})
    of_labels = CostConfig(price_book=str(labels))
    assert not device_price_notes(of_labels, device_price(of_labels, "h100", spot=False), today)
    old = device_price_notes(CostConfig(), dataclasses.replace(price, date="2024"), today)
    assert len(old) == 1 and "ask what it costs now" in old[0]


def test_what_a_label_costs_does_not_age(book):
    today = datetime.date(2026, 11, 21)
    assert not book.label_price("wlp").is_stale(today)
    assert not user_price(1.0).is_stale(today)
    assert not book.device_price("cpu").is_stale(today)


def test_a_book_of_ones_own_comes_before_the_packaged_one(tmp_path, book):
    path = write_book(tmp_path / "book.json", {"usd": 0.5, "date": "2020"})
    own = PriceBook.of_user(str(path))
    assert own.device_price("h100").usd == 0.5  # though older
    assert own.device_price("h100", spot=True) == book.device_price("h100", spot=True)
    assert own.device_price("v5e") == book.device_price("v5e")
    assert own.label_price("wlp") == book.label_price("wlp")
    assert PriceBook.of_user("") == book
    with pytest.raises(ValueError, match="no price book missing.json"):
        PriceBook.of_user("missing.json")


def test_tokens_of_a_language_model_have_two_prices(tmp_path):
    tokens = {"item": "gpt", "source": "its maker"}
    path = write_book(
        tmp_path / "book.json",
        tokens | {"unit": INPUT_TOKENS, "usd": 0.5},
        tokens | {"unit": OUTPUT_TOKENS, "usd": 1.5},
    )
    book = PriceBook.load(path)
    assert book.token_price("gpt", INPUT_TOKENS).usd == 0.5
    assert book.token_price("gpt", OUTPUT_TOKENS).usd == 1.5
    with pytest.raises(ValueError, match=r"no price per million input tokens for model 'gtp'.*gpt"):
        book.token_price("gtp", INPUT_TOKENS)


def test_every_language_model_of_the_book_has_both_prices_and_a_dated_source(book):
    tokens = [price for price in book.entries if price.unit in (INPUT_TOKENS, OUTPUT_TOKENS)]
    models = {price.item for price in tokens}
    assert "gpt-3.5-turbo" in models
    for model in models:
        sides = [book.token_price(model, unit) for unit in (INPUT_TOKENS, OUTPUT_TOKENS)]
        assert sides[0].usd < sides[1].usd
        assert sides[0].date == sides[1].date
    assert all(price.source and price.date != "undated" for price in tokens)


def test_the_papers_time_and_today_have_prices_of_their_own(book):
    """gpt-3.5-turbo cost 0.002 USD a thousand tokens when the paper was written."""
    then = [p for p in book.entries if p.item == "gpt-3.5-turbo" and p.date == "2023-03-01"]
    assert {price.usd for price in then} == {2.0}
    assert book.token_price("gpt-3.5-turbo", INPUT_TOKENS).usd == 0.5
    assert book.token_price("gpt-3.5-turbo", OUTPUT_TOKENS).usd == 1.5


def test_old_prices_of_tokens_are_stale(book):
    price = book.token_price("gpt-4.1", INPUT_TOKENS)
    assert price.date == "2025-07-04"
    assert not price.is_stale(datetime.date(2026, 7, 4))
    assert price.is_stale(datetime.date(2026, 7, 5))


@pytest.mark.parametrize(
    ("usd", "told"),
    [(5e-7, "one token or of a thousand"), (0.0005, "multiply it"), (15_000, "mix-up of units")],
)
def test_a_price_of_a_token_is_not_taken_for_that_of_a_million(tmp_path, usd, told):
    change = {"item": "gpt", "unit": INPUT_TOKENS, "usd": usd}
    with pytest.raises(ValueError, match=told):
        PriceBook.load(write_book(tmp_path / "book.json", change))
    with pytest.raises(ValueError, match=told):
        user_price(usd, INPUT_TOKENS)
    assert user_price(0.0, INPUT_TOKENS).usd == 0.0  # a model of one's own
    assert user_price(usd, "label").usd == usd


def test_swapped_prices_of_tokens_are_refused(tmp_path):
    sides = [
        {"item": "gpt", "unit": unit, "usd": usd}
        for unit, usd in ((INPUT_TOKENS, 4.0), (OUTPUT_TOKENS, 1.0))
    ]
    with pytest.raises(ValueError, match="look whether the two are swapped"):
        PriceBook.load(write_book(tmp_path / "book.json", *sides))
    other = [sides[0], {**sides[1], "source": "another list"}]
    assert PriceBook.load(write_book(tmp_path / "book.json", *other)).entries

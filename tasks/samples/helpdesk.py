"""Makes the spreadsheets of docs/own_task.md: messages to a shop, and the team they are for.

    python -m dora_jax.tasks.samples.helpdesk --output docs/own_task

A message names one or two things of its team in sentences that all teams share, and now and
then in passing one of another team; so it is the words for the things that must be learned,
and a few hundred labels do not show them all.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
from pathlib import Path

from dora_jax.tasks.samples.generator import Splits, choose, choose_other, draw_splits
from dora_jax.whole_files import write_whole

SEED = 20230713
SPLITS = {"train": 240, "test": 200, "unlabeled": 700}
SHARE_OF_PAIRS, SHARE_IN_PASSING = 0.5, 0.3

THINGS = {
    "billing": (
        "invoice", "refund", "receipt", "voucher", "charge", "discount", "deposit", "price",
        "instalment plan", "payment", "credit note", "tax line", "direct debit", "balance",
        "gift card", "reminder fee", "bank transfer", "total", "rebate", "quote",
    ),
    "delivery": (
        "parcel", "courier", "box", "tracking page", "pickup point", "customs form", "shipment",
        "packing slip", "driver", "warehouse", "delivery slot", "doorstep photo", "pallet",
        "address label", "depot", "express option", "package", "collection time", "truck", "route",
    ),
    "repair": (
        "battery", "display", "filter", "hinge", "cable", "switch", "motor", "lid", "fuse",
        "charger", "spare part", "handle", "sensor", "fan", "hose", "button", "blade", "bulb",
        "seal", "plug",
    ),
    "account": (
        "password", "login", "profile", "newsletter", "app", "customer number", "email address",
        "wishlist", "security code", "username", "bonus points", "privacy settings", "session",
        "sign-up form", "avatar", "membership", "phone number", "saved search", "cookie notice",
        "membership card",
    ),
}  # fmt: skip
MATTERS = (
    "there is something wrong with the {}",
    "please help me with the {}",
    "the {} is not what i expected",
    "i have waited for news of the {} since monday",
    "can you change the {} for me",
    "my {} causes trouble again",
    "who can tell me about the {}",
    "nobody answered my question on the {}",
)
IN_PASSING = ("the {} was fine this time", "all is well with the {}", "never mind the {}")
OPENINGS = ("hello,", "hi there,", "good morning,", "dear team,", "")
CLOSINGS = ("thanks.", "kind regards", "this is urgent!", "")


def make_rows(seed: int = SEED) -> Splits:
    """The rows of every split."""
    rng = random.Random(seed)

    def draw(_: str) -> tuple[str, str]:
        team = choose(tuple(THINGS), rng)
        thing = choose(THINGS[team], rng)
        if rng.random() < SHARE_OF_PAIRS:
            thing = f"{thing} and the {choose_other(THINGS[team], thing, rng)}"
        sentences = [choose(MATTERS, rng).format(thing)]
        if rng.random() < SHARE_IN_PASSING:
            other = choose_other(tuple(THINGS), team, rng)
            sentences.append(choose(IN_PASSING, rng).format(choose(THINGS[other], rng)))
        words = (choose(OPENINGS, rng), "; ".join(sentences) + ".", choose(CLOSINGS, rng))
        return " ".join(word for word in words if word), team

    return draw_splits(SPLITS, draw)


def write_tables(folder: Path, splits: Splits) -> None:
    """Writes `<split>.csv` for every split; a file is complete or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["number", "message", *([] if split == "unlabeled" else ["team"])])
        table.writerows([number, *row.values()] for number, row in enumerate(rows, start=1))
        write_whole(folder / f"{split}.csv", text.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the spreadsheets of docs/own_task.md.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the .csv files")
    write_tables(parser.parse_args().output, make_rows())

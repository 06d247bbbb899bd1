"""The model card of an exported student: what it is, how good, what it cost, how to load it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dora_jax.config import T5Config
from dora_jax.cost.flops import parameter_count
from dora_jax.cost.ledger import LABELS, LedgerRow
from dora_jax.cost.prices import NOT_PRICED
from dora_jax.metrics.scores import Scores

HOW = {
    "annotate": "fine-tuned on the human labels alone",
    "distill": "distilled from a teacher that was fine-tuned on the human labels",
    "teacher": "fine-tuned on the human labels; the teacher of the run",
    "llm": "fine-tuned on a large language model's labels",
    "llm_human": "fine-tuned on a large language model's labels and on human ones",
    "llm_distill": "distilled from a teacher, with human labels and a large language model's",
}


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds a text, greedy decoding one text at a time on a CPU."""

    median_ms: float
    p90_ms: float
    texts: int
    mean_tokens: float  # of an answer
    machine: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
      model: "annotate", "distill" or "teacher".
      run: name of the run directory.
      config: of the run, as its config.json has it.
      network: of the model.
      scores: on the test split; None where the run has not scored it.
      rows: of the ledger, those of the stages this model needed.
      data: the token store's manifest.
      made_by: of the training stage's manifest.
      fingerprint: of the model.
      weight_bytes: of the weights as exported.
      latency: None where it was not measured.
      example: a source of the test split with its prompt, and the model's answer; None where no
        answer at hand is whole text.
    """

    model: str
    run: str
    config: Mapping[str, Any]
    network: T5Config
    scores: Scores | None
    rows: Sequence[LedgerRow]
    data: Mapping[str, Any]
    made_by: Mapping[str, Any]
    fingerprint: str
    weight_bytes: int
    latency: Latency | None
    example: tuple[str, str] | None


def model_card(facts: Facts, form: str) -> str:
    """Markdown, with the front matter of a Hugging Face card.

    Args:
      facts: what is told.
      form: "hf" or "t5x": how the model is loaded.
    """
    task, scale = facts.config["data"]["task"], facts.config["scale"]
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text2text-generation\n"
        f"tags: [t5, dora_jax, {task}, {scale}]\n---\n"
        if form == "hf"
        else "",
        f"# {task}: {facts.model}\n\nA T5 of {parameter_count(facts.network):,} parameters for the "
        f"task `{task}`, {HOW[facts.model]}. Exported from the run `{facts.run}` of dora_jax.\n",
        _rehearsal(facts),
        _quality(facts),
        _cost(facts),
        _size(facts),
        _use(facts) if form == "hf" else _use_t5x(),
        _provenance(facts),
    ]
    return "\n".join(part for part in parts if part)


def _rehearsal(facts: Facts) -> str:
    if facts.config["scale"] != "rehearsal":
        return ""
    return (
        "> **Rehearsal.** A small network, pretrained for minutes inside the run on the task's own "
        "text. It shows that the path works. It is no result, and no model to use.\n"
    )


def _quality(facts: Facts) -> str:
    if facts.scores is None:
        return "## Quality\n\nNot measured: the run did not score this model.\n"
    scores = facts.scores
    share = f"{facts.config['evaluate']['confidence']:.0%}"
    lines = [f"| metric, percent | strict [{share} interval] | as in the paper |", "|---|---|---|"]
    for name, value in scores.strict.items():
        low, high = scores.intervals.get(name, (None, None))
        interval = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
        paper = f"{scores.paper[name]:.1f}" if name in scores.paper else "–"
        marked = f"**{name}**" if name == scores.primary else name
        lines.append(f"| {marked} | {value:.1f}{interval} | {paper} |")
    origin = facts.data.get("origin", "unknown origin")
    return (
        f"## Quality\n\nOn {scores.examples:,} examples of the test split ({origin}).\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _cost(facts: Facts) -> str:
    labels = [row for row in facts.rows if row.stage == LABELS]
    work = [row for row in facts.rows if row.stage != LABELS]
    label_usd, work_usd = (sum(row.dollars for row in rows) for rows in (labels, work))
    prices = sorted({_price(row) for row in facts.rows})
    hours = sum(row.device_hours for row in work)
    kinds = sorted({row.device_kind for row in work if row.device_kind})
    not_counted = sorted({what for row in facts.rows for what in row.not_counted})
    unpriced = any(row.price_source == NOT_PRICED for row in work)
    lines = [
        "## Cost",
        "",
        f"- human labels: {sum(row.examples for row in labels):,}, {label_usd:,.2f} USD",
        f"- compute: {hours:.3f} device-hours on {', '.join(kinds) or 'no device'}, "
        f"{work_usd:,.2f} USD{f' ({NOT_PRICED})' if unpriced else ''}",
        f"- total: {label_usd + work_usd:,.2f} USD, all stages that this model needed",
        f"- prices: {'; '.join(prices)}",
    ]
    if not_counted:
        lines.append(f"- not counted: {', '.join(not_counted)}")
    return "\n".join(lines) + "\n"


def _price(row: LedgerRow) -> str:
    unit = row.unit if row.stage == LABELS else f"{row.unit}-hour"
    return f"{row.price_usd_per_unit:g} USD a {unit} ({row.price_source}, {row.price_date})"


def _size(facts: Facts) -> str:
    network = facts.network
    lines = [
        "## Size and speed",
        "",
        f"- {parameter_count(network):,} parameters, {facts.weight_bytes / 1e6:,.1f} MB as float32",
        f"- {network.num_encoder_layers} + {network.num_decoder_layers} layers, width "
        f"{network.emb_dim}, vocabulary {network.vocab_size:,}",
    ]
    if facts.latency is None:
        lines.append("- CPU latency: not measured")
    else:
        latency = facts.latency
        lines.append(
            f"- CPU latency: {latency.median_ms:.1f} ms a text (median), {latency.p90_ms:.1f} ms "
            f"(90th percentile), one at a time, greedy, over {latency.texts} test texts padded to "
            f"{facts.config['data']['source_length']} tokens, with answers of "
            f"{latency.mean_tokens:.1f} tokens on average, by dora_jax, compilation not counted; "
            f"{latency.machine}"
        )
    return "\n".join(lines) + "\n"


def no_repeat_ngram_size(config: Mapping[str, Any]) -> int:
    """What the run scored its models with; the first runs did not know it."""
    return config["evaluate"].get("no_repeat_ngram_size", 0)


def _use(facts: Facts) -> str:
    data, prompt = facts.config["data"], facts.data["prompt_prefix"]
    source, answer = facts.example or (f"{prompt}…", None)
    printed = "" if answer is None else f"\nIt prints\n\n```text\n{answer}\n```\n"
    settings = f"max_new_tokens={data['target_length']}, do_sample=False"
    if no_repeats := no_repeat_ngram_size(facts.config):
        settings += f", no_repeat_ngram_size={no_repeats}"
    return f"""## Load with transformers

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # the folder of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
inputs = tokenizer({source!r}, return_tensors="pt")
tokens = model.generate(**inputs, {settings})
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
```
{printed}
Every text begins with the prompt `{prompt}`. In training, sources were cut at
{data["source_length"]} tokens and targets at {data["target_length"]}.
Do not call `resize_token_embeddings`: transformers 5 then ties the output head to the embedding
without a word.
"""


def _use_t5x() -> str:
    return """## Load with T5X

`checkpoint_0` is in T5X's present form (Orbax), with the tree of its `examples/t5`. The vocabulary
is `spiece.model`. Optimizer state is not part of it. Back to Hugging Face:
`python launch/convert.py --source=t5x:checkpoint_0 --target=hf:FOLDER --vocabulary=spiece.model`.
"""


def _provenance(facts: Facts) -> str:
    config, data, made_by = facts.config, facts.data, facts.made_by
    side = config["teacher" if facts.model == "teacher" else "student"]
    lines = [
        "## Provenance",
        "",
        f"- scale: {config['scale']}; code {made_by['code_version']}, jax {made_by['jax']}, Python "
        f"{made_by['python']}, {made_by['devices']} × {made_by['device_kind']}",
        f"- first weights: {_first_weights(side)}",
        f"- data: {data.get('origin', 'unknown origin')}, fingerprint "
        f"{data.get('data_fingerprint', '–')}",
        f"- human labels: {data.get('labels', '–')}; seed {config['seed']}",
        f"- fingerprint of the training stage: {facts.fingerprint}",
    ]
    if facts.model == "distill":
        count = parameter_count(T5Config(**config["teacher"]["network"]))
        lines.append(
            f"- teacher: {count:,} parameters; first weights: {_first_weights(config['teacher'])}"
        )
    return "\n".join(lines) + "\n"


def _first_weights(side: Mapping[str, Any]) -> str:
    return side["weights"] or "random, pretrained in the run on the task's text"

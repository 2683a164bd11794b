"""A study as a page of Markdown and a picture for the documents. Knows its JSON; counts nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.pictures import Bar, grouped

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.small{font-size:9px}.grid{stroke:#ddd}"
    ".found{fill:#2b6cb0}.bound{fill:#dd9b2f}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}}"
)
# Where a picture has no room for more.
_SHORT = {
    "text layer": "layer", "text pooling": "text", "vision source": "source",
    "vision pooling": "vision",
}  # fmt: skip
_RATES = ("gate", "oracle", "top1", "top2", "soft", "uniform", "random", "base", "wrong_expert")
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def markdown(study: Mapping[str, Any]) -> str:
    """The page.

    Args:
        study: What `python -m training.study` writes as JSON.
    """
    titles = {
        "What the router reads, and how its head is trained": choices_table,
        "Bars": bars_table,
        "Stages": stages_table,
        "Loss of the right answer, nats a token": losses_table,
        "Experts": experts_table,
        "Ablations": ablations_table,
        "Masking one expert": masking_table,
        "Fewer experts": pruning_table,
        "Time": seconds_table,
    }
    parts = [
        f"{', '.join(study['experts'])}; seeds {', '.join(map(str, study['seeds']))}. "
        f"`{study['command']}`"
    ]
    for title, table in titles.items():
        columns, rows = table(study)
        if rows:
            parts.append(f"## {title}\n\n{_table(columns, rows)}")
    return "\n\n".join(parts) + "\n"


def picture(choices: Sequence[Mapping[str, Any]]) -> str:
    """Accuracies of the choices as a whole SVG file.

    Args:
        choices: Rows of `choices.compare`.
    """
    groups = [
        (
            f"{_SHORT.get(row['factor'], row['factor'])} {row['value']}"
            f"{' *' if row['default'] else ''}",
            [Bar("held-out", row["held_out"]["mean"], kind="found"),
             Bar("unseen themes and sizes", row["unseen"]["mean"], kind="bound")],
        )
        for row in choices
    ]  # fmt: skip
    drawn = grouped(groups, "Gate accuracy by what the router reads and how its head is trained")
    head, body = drawn.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{_STYLE}</style>{body}\n'


def choices_table(study: Mapping[str, Any]) -> Table:
    """A row a choice; the values in force are marked."""
    columns = ("factor", "value", "held-out", "unseen themes and sizes", "ms a record")
    chosen = study["best"]
    rows = []
    for row in study["choices"]:
        value = f"{row['value']}{' (default)' if row['default'] else ''}"
        if chosen[row["factor"]] == row["value"]:
            value = f"**{value}**"
        seconds = row["extraction"]["seconds_a_record"]
        rows.append(
            (row["factor"], value, _spread(row["held_out"]), _spread(row["unseen"]),
             f"{1000 * seconds:.0f}")
        )  # fmt: skip
    return columns, rows


def bars_table(study: Mapping[str, Any]) -> Table:
    """A row a bar."""
    columns = ("bar", "found", "needed", "met", "by seed")
    return columns, [
        (bar["name"], f"{bar['found']:.3f}", f"{bar['sign']} {bar['needed']:.3f}",
         "yes" if bar["met"] else "NO", bar["why"])
        for bar in study["bars"]
    ]  # fmt: skip


def stages_table(study: Mapping[str, Any]) -> Table:
    """A row a stage and set of cases, means over the seeds."""
    columns = ("heads", "cases", *_RATES, "ece")
    rows = []
    for stage in study["stages"]:
        rates = [stage["rates"].get(name) for name in _RATES]
        shown = [f"{rate['mean']:.3f}" if rate else "" for rate in rates]
        rows.append(
            (stage["name"], f"{stage['cases']} {stage['set']}", *shown, _number(stage["ece"]))
        )
    return columns, rows


def losses_table(study: Mapping[str, Any]) -> Table:
    """A row a stage and set of cases: how likely each mode finds what is right."""
    modes = _RATES[1:]
    return ("heads", "cases", *modes), [
        (stage["name"], f"{stage['cases']} {stage['set']}",
         *(_number(stage["losses"].get(mode)) for mode in modes))
        for stage in study["stages"]
    ]  # fmt: skip


def experts_table(study: Mapping[str, Any]) -> Table:
    """A row an expert: the first seed's head of stage 1, held-out."""
    columns = ("expert", "cases", *_RATES, "95 % of own expert")
    rows = []
    for name, part in study["per_expert"].items():
        shown = [_number(part[f"{rate}_accuracy"]) for rate in _RATES]
        low, high = part["wilson_95"]["oracle_accuracy"]
        rows.append((name, str(part["cases"]), *shown, f"{low:.3f} to {high:.3f}"))
    return columns, rows


def ablations_table(study: Mapping[str, Any]) -> Table:
    """A row a kind of run of stage 2: how it ended, and what its head is worth, over the seeds."""
    columns = (
        "run", "gates", "granularity", "entropy", "KL", "balance", "answer loss", "own gate",
        "least marginal", "gate", "top1", "top2", "soft",
    )  # fmt: skip
    rows = []
    for row in study["ablations"]:
        run, rates = row["run"], row["rates"]
        name = "; ".join((row["name"], *row["collapsed"]))
        if run is None:
            rows.append((name, *[""] * (len(columns) - 1)))
            continue
        ended = [_number(run[key]) for key in ("loss", "own_gate", "least_marginal")]
        weights = [f"{run[f'{key}_weight']:g}" for key in ("entropy", "kl", "balance")]
        shown = [_mean(rates.get(rate)) for rate in ("gate", "top1", "top2", "soft")]
        rows.append((name, run["gates"], run["granularity"], *weights, *ended, *shown))
    return columns, rows


def read_ablations(path: Path) -> Table:
    """The ablations of a study that was written down.

    Args:
        path: Its JSON.

    Raises:
        ValueError: It is no study with ablations.
        OSError: It cannot be read.
    """
    try:
        columns, rows = ablations_table(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON of a study: python -m training.study") from error
    if not rows:
        raise ValueError(f"{path} has no ablations: run the study with --parts ablations")
    return columns, rows


def masking_table(study: Mapping[str, Any]) -> Table:
    """A row an expert that is masked."""
    columns = ("masked", "all cases", "its own", "others'", "cost")
    return columns, [
        (row["expert"], *(_rate(row[key]) for key in ("everyone", "own", "others")),
         f"{row['cost']:.3f}")
        for row in study["masking"]
    ]  # fmt: skip


def pruning_table(study: Mapping[str, Any]) -> Table:
    """A row a number of experts that are left."""
    columns = ("experts left", "removed", "top-1")
    return columns, [
        (str(row["left"]), row["removed"] or "", _rate(row["rate"])) for row in study["pruning"]
    ]


def seconds_table(study: Mapping[str, Any]) -> Table:
    """A row a step."""
    return ("step", "seconds"), [(name, f"{s:.0f}") for name, s in study["seconds"].items()]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])


def _spread(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.3f} ± {value['deviation']:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _mean(rate: Mapping[str, Any] | None) -> str:
    return _rate(rate and {"value": rate["mean"], "wilson_95": rate["wilson_95"]})


def _rate(rate: Mapping[str, Any] | None) -> str:
    if rate is None:
        return ""
    low, high = rate["wilson_95"]
    return f"{rate['value']:.3f} [{low:.2f}, {high:.2f}]"

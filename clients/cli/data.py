"""`molora data synthesize|import|label|sample|stats`. Knows the calls and prints their counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import connection, output
from clients.cli.connection import Json
from clients.cli.exits import refused_input

if TYPE_CHECKING:
    from training.data.sources import SourceReport

app = typer.Typer(help="Screens and records.", no_args_is_help=True)


@app.command("synthesize")
def synthesize(
    out: Annotated[Path, typer.Argument(help="New or empty folder.")],
    images_per_kind: Annotated[int, typer.Option(min=1, help="Screens of each expert.")] = 100,
    tasks_per_image: Annotated[int, typer.Option(min=1, help="Records an image, at most.")] = 8,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    experts: Annotated[
        str | None, typer.Option(help="Whose screens, comma-separated; unset: all seven.")
    ] = None,
    other_sizes: Annotated[
        float,
        typer.Option(min=0, max=1, help="Part shown at other sizes, so that a size tells little."),
    ] = 0.5,
    looks: Annotated[
        str,
        typer.Option(help="Themes and other sizes: own, any, or to test with unseen, fresh."),
    ] = "own",
    as_json: Json = False,
) -> None:
    """Draw screens and write them as a data set, split by image."""
    from training.data.synthesize import EXPERTS, synthesize

    with refused_input(), output.progress("drawing") as advance:
        made = synthesize(
            out,
            images_per_kind=images_per_kind,
            tasks_per_image=tasks_per_image,
            seed=seed,
            experts=experts.split(",") if experts else EXPERTS,
            other_sizes=other_sizes,
            looks=looks,
            progress=advance,
        )
    if as_json:
        output.print_json(connection.plain(made))
        return
    rows = [[name, s.images, s.records, str(s.path)] for name, s in made.splits.items()]
    output.table(None, ("split", "images", "records", "file"), rows)


@app.command("import")
def import_(
    sources: Annotated[
        list[Path], typer.Argument(help="*.jsonl, test.json, or folders that hold them.")
    ],
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    rules: Annotated[Path | None, typer.Option(help="YAML file of further label rules.")] = None,
    by_source: Annotated[
        bool, typer.Option("--by-source", help="Keep each file's images in one split.")
    ] = False,
    drop_tested: Annotated[
        bool, typer.Option("--drop-tested", help="Leave out records on images of test files.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    as_json: Json = False,
) -> None:
    """Make one labelled data set, split by image, of foreign records; count what is left out.

    What only an agent named goes to hinted.jsonl: add it to train.jsonl for stage 1.
    """
    from training.data.importer import import_data
    from training.data.labels import read_rules

    with refused_input(), output.progress("reading") as advance:
        imported = import_data(
            sources,
            out,
            rules=read_rules(rules) if rules else (),
            by_source=by_source,
            drop_tested=drop_tested,
            seed=seed,
            progress=advance,
        )
    if as_json:
        output.print_json(connection.plain(imported))
        return
    splits = [
        [split, label, records, imported.images[split]]
        for split, adapters in imported.adapters.items()
        for label, records in sorted(adapters.items()) or [("-", imported.records[split])]
    ]
    output.table(None, ("split", "adapter", "records", "images of the split"), splits)
    _print_left_out(imported.sources)


@app.command("label")
def label(
    source: Annotated[Path, typer.Argument(help="JSONL file of foreign records.")],
    out: Annotated[Path, typer.Argument(help="Where to write the labelled ones.")],
    rules: Annotated[Path | None, typer.Option(help="YAML file of further rules.")] = None,
    as_json: Json = False,
) -> None:
    """Write the expert's name into each record, by rules; report what no rule decides."""
    from training.data.labels import label_file, read_rules

    with refused_input():
        labelling = label_file(source, out, read_rules(rules) if rules else ())
    if as_json:
        output.print_json(connection.plain(labelling))
        return
    output.table(None, ("label", "records"), sorted(labelling.labelled.items()))
    output.table(None, ("decided by", "records"), sorted(labelling.rules.items()))
    if labelling.unmatched:
        output.console.print(f"no rule matches {_lines(labelling.unmatched)}")
    if labelling.contradicting:
        output.console.print(f"rules contradict on {_lines(tuple(labelling.contradicting))}")
    for refusal in labelling.refused:
        output.console.print(f"line {refusal.row} is no record: {refusal.reason}", markup=False)


@app.command("sample")
def sample(
    source: Annotated[Path, typer.Argument(help="JSONL file of labelled records: one split.")],
    out: Annotated[Path, typer.Argument(help="New or empty folder.")],
    records: Annotated[int, typer.Option(min=1, help="How many to draw.")],
    augment: Annotated[
        bool, typer.Option("--augment", help="Change each screen: crop, scale, colour, blur, JPEG.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of order and changes.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw records, every adapter as often and each of its tasks, into a data set of their own."""
    from training.data.sample import draw_sample

    with refused_input(), output.progress("drawing") as advance:
        made = draw_sample(
            source, out, records=records, augment=augment, seed=seed, progress=advance
        )
    if as_json:
        output.print_json(connection.plain(made))
        return
    rows = [
        [adapter, task, n]
        for adapter, tasks in sorted(made.counts.items())
        for task, n in sorted(tasks.items())
    ]
    output.table(f"{made.path}: {records} records", ("adapter", "task", "records"), rows)


@app.command("stats")
def stats(
    files: Annotated[list[Path], typer.Argument(help="JSONL files of records.")],
    as_json: Json = False,
) -> None:
    """Count labels, tasks, actions and sizes, and images that two files share."""
    from training.data.stats import collect_stats

    with refused_input(), output.progress("counting") as advance:
        found = collect_stats(files, progress=advance)
    if as_json:
        output.print_json(connection.plain(found))
        return
    for file in found.files:
        parts = (
            ("adapter", file.adapters),
            ("task", file.task_types),
            ("action", file.actions),
            ("size", file.image_sizes),
        )
        rows = [[part, name, n] for part, counts in parts for name, n in sorted(counts.items())]
        output.table(f"{file.path}: {file.records} records, {file.images} images", _STATS, rows)
        output.console.print(
            f"refused {len(file.refused)}  missing images {file.missing_images}  "
            f"repeated ids {file.duplicate_ids}  "
            f"most records on one image {file.most_records_per_image}"
        )
        output.console.print(
            f"adapters given away by the prompt alone {_share(file.told_by_prompt)}  "
            f"by the image's size alone {_share(file.told_by_size)}"
        )
    output.console.print(f"images shared by two files: {found.shared_images}")


def _print_left_out(sources: Sequence[SourceReport]) -> None:
    for source in sources:
        forms = ", ".join(f"{count} {form}" for form, count in sorted(source.forms.items()))
        output.console.print(f"{source.path}: {forms or 'nothing'}", markup=False)
        for reason, skipped in source.skipped.items():
            shown = _lines(tuple(skipped.rows), skipped.count)
            output.console.print(f"  left out {shown}: {reason}", markup=False)


_STATS = ("of", "value", "count")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _lines(numbers: tuple[int, ...], count: int | None = None) -> str:
    """The first ten of `count` row numbers, of which `numbers` may be the first ones only."""
    count = len(numbers) if count is None else count
    shown = ", ".join(map(str, numbers[:10]))
    more = f" and {count - 10} more" if count > 10 else ""
    return f"{count} records: lines {shown}{more}"

"""The verb tree. Knows which module holds a verb; knows no verb's work."""

from __future__ import annotations

import typer

from clients.cli import ask, bench, data, doctor, evaluate, experts, export, serve, train
from clients.cli.extras import TrainingCommand, TrainingGroup

app = typer.Typer(
    help="Mixtures of LoRA experts on Qwen3-VL: serve, ask, and train them.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with locals would print prompts.
    pretty_exceptions_enable=False,
)
app.add_typer(serve.app, name="serve")
app.command("route")(ask.route)
app.command("predict")(ask.predict)
app.command("generate")(ask.generate)
app.add_typer(experts.app, name="experts")
app.add_typer(data.app, name="data", cls=TrainingGroup)
app.add_typer(train.app, name="train", cls=TrainingGroup)
app.command("evaluate", cls=TrainingCommand)(evaluate.evaluate)
app.command("export", cls=TrainingCommand)(export.export)
app.command("bench", cls=TrainingCommand)(bench.bench)
app.command("doctor")(doctor.doctor)

"""Defines the commands and their options. It imports nothing heavy, so that `kdcli --help` is fast."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from kdcli import __version__

CONTEXT = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
)
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Config groups and keys, such as student=tiny trainer.epochs=2."
    ),
]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="Run a sweep: one run for every combination of a,b values.")
]
ConfigDir = Annotated[Path | None, typer.Option(help="A folder with YAML files and classes of your own.")]
Cfg = Annotated[
    str | None, typer.Option(metavar="[job|hydra|all]", help="Print the composed config and stop.")
]
Resolve = Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")]
Info = Annotated[
    str | None,
    typer.Option(
        metavar="[all|config|defaults|defaults-tree|plugins|searchpath]", help="Print how Hydra composes it."
    ),
]
Rerun = Annotated[Path | None, typer.Option(metavar="RUN", help="Repeat a run with its recorded config.")]
TrustRun = Annotated[
    bool,
    typer.Option(
        "--trust-run",
        help="Allow a recorded run to name classes and code to run here, and to read environment variables.",
    ),
]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Knowledge distillation: trains a small student with a large teacher, and shows whether the teacher helped."""
    if version:
        typer.echo(f"kdcli {__version__}")
        raise typer.Exit


@app.command()
def distill(
    overrides: Overrides = None,
    multirun: Multirun = False,
    config_dir: ConfigDir = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    info: Info = None,
    rerun: Rerun = None,
    trust_run: TrustRun = False,
) -> None:
    """Train a student with a teacher, train the no-teacher baseline (control), and compare all three.

    kdcli distill teacher=bert-base student=tiny dataset=csv dataset.path=reviews.csv
    """
    from kdcli.launch.run import launch

    raise typer.Exit(
        launch("distill", overrides or [], multirun, config_dir, cfg, resolve, info, rerun, trust_run)
    )


@app.command("eval")
def evaluate(
    overrides: Overrides = None,
    multirun: Multirun = False,
    config_dir: ConfigDir = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    info: Info = None,
    trust_run: TrustRun = False,
) -> None:
    """Score a run's models (run=), a checkpoint (model=) or an exported file (artifact=).

    kdcli eval run=runs/distill/2026-… split=validation
    """
    from kdcli.launch.run import launch

    raise typer.Exit(
        launch("eval", overrides or [], multirun, config_dir, cfg, resolve, info, trust_run=trust_run)
    )


@app.command()
def export(
    overrides: Overrides = None,
    multirun: Multirun = False,
    config_dir: ConfigDir = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    info: Info = None,
    trust_run: TrustRun = False,
) -> None:
    """Export a run's student for a device, and run and measure the files there.

    kdcli export run=runs/distill/2026-… hardware=cpu
    kdcli export run=runs/distill/2026-… hardware=cpu,intel -m
    """
    from kdcli.launch.run import launch

    raise typer.Exit(
        launch("export", overrides or [], multirun, config_dir, cfg, resolve, info, trust_run=trust_run)
    )


@app.command("list")
def list_(
    group: Annotated[str | None, typer.Argument(help="teacher, student, dataset, loss, hardware …")] = None,
    config_dir: ConfigDir = None,
) -> None:
    """List the options of each config group, including those in your own folder."""
    from kdcli.launch.choices import list_groups

    raise typer.Exit(list_groups(group, config_dir))


def main() -> None:
    """Run the command line."""
    gc.disable()  # until everything is imported, since nothing of that is garbage, and the collector takes a sixth of the time
    app()

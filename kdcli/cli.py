"""The grammar of the commands. Imports nothing heavy: `kdcli --help` is quick."""

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
        metavar="[KEY=VALUE]...", help="Config groups and keys, as in student=tiny trainer.epochs=2."
    ),
]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="A sweep: a run for every combination of a,b values.")
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
Rerun = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Repeat a run, with the config that it recorded.")
]
TrustRun = Annotated[
    bool,
    typer.Option(
        "--trust-run",
        help="Run the classes and the code that a recorded run names, and resolve what it reads of the environment.",
    ),
]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Knowledge distillation: a small student learns from a large teacher, with the evidence that it helped."""
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
    """Teach a student, train its control, and compare them with the teacher.

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
    """Make a run's student into files for a device, and run and measure them there.

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
    """What there is to choose from, a line each, your own folder included."""
    from kdcli.launch.choices import list_groups

    raise typer.Exit(list_groups(group, config_dir))


def main() -> None:
    """The entry point."""
    gc.disable()  # until all is imported, of which nothing is garbage: to look for some takes a sixth of the time
    app()

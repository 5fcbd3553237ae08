"""Defines the commands and their options. It imports nothing heavy, so that `kdcli --help` is fast."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kdcli import __version__
from kdcli.launch.commandline import App

CONTEXT = {"help_option_names": ["-h", "--help"]}
app = App(context_settings=CONTEXT)
_KEYS = "config groups and keys, such as student=tiny trainer.epochs=2."
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE.yaml] [KEY=VALUE]...", help=f"A YAML file with keys first; {_KEYS}"),
]
OverridesOfRun = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN] [KEY=VALUE]...", help="A run directory first; keys, such as split=validation."
    ),
]
OverridesOfExport = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN] [KEY=VALUE]...", help="A run directory first; keys, such as hardware=cpu."),
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
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The run directory (hydra.run.dir=); with -m that of the sweep."),
]
Rerun = Annotated[Path | None, typer.Option(metavar="RUN", help="Repeat a run with its recorded config.")]
TrustRun = Annotated[
    bool,
    typer.Option(
        "--trust-run",
        help="Allow a recorded run to name classes and code to run here, and to read environment variables.",
    ),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow Python files in the model's folder to run.")
]
MergeAdapter = Annotated[
    bool, typer.Option("--merge-adapter", help="Merge an adapter of PEFT into its base model.")
]
JsonResult = Annotated[
    bool, typer.Option("--json", help="Print the results as JSON in place of the table (format=json).")
]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Knowledge distillation: trains a small student with a large teacher, and shows whether the teacher helped.

    kdcli distill
    kdcli distill teacher=bert-base student=tiny dataset=csv dataset.path=reviews.csv

    Config keys and groups are given as KEY=VALUE: `kdcli keys` and `kdcli list` show them.

    Exit codes: 0 done; 1 the job failed; 2 the config, the command line or the data is wrong; 3 an exported file misses its budget or tolerance;
    130 interrupted; 143 terminated.
    """
    if version:
        typer.echo(f"kdcli {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


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
    out: Out = None,
) -> None:
    """Train a student with a teacher, train the no-teacher baseline (control), and compare all three.

    kdcli distill
    kdcli distill teacher=bert-base student=tiny dataset=csv dataset.path=reviews.csv
    kdcli distill kdcli.yaml trainer.epochs=3 --out runs/tickets

    The first word may be a YAML file with the same keys (kdcli init writes one); typed keys replace those of the file, and relative paths are
    relative to the working directory. The same command on the same directory continues a run that was stopped.

    Exit codes: 0 done; 1 the job failed; 2 the config, the command line or the data is wrong, found before training; 130 interrupted;
    143 terminated.
    """
    from kdcli.launch.run import launch

    raise typer.Exit(
        launch("distill", overrides or [], multirun, config_dir, cfg, resolve, info, rerun, trust_run, out)
    )


@app.command()
def check(
    overrides: Overrides = None,
    multirun: Multirun = False,
    config_dir: ConfigDir = None,
    rerun: Rerun = None,
    trust_run: TrustRun = False,
    out: Out = None,
    no_load: Annotated[
        bool,
        typer.Option("--no-load", help="Load no model and no torch: no time, memory, disk and truncation."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report what `kdcli distill` with the same words would do: rows, labels, models, steps, time, memory, disk, and queries with their cost.

    kdcli check kdcli.yaml
    kdcli check teacher=openai dataset=csv dataset.path=tickets.csv --no-load

    Nothing is trained, sent or written, and no API key is needed. It stops at what would stop the run.

    Exit codes: 0 the run can start; 2 the config, the command line or the data is wrong; 1 anything else; 130 interrupted; 143 terminated.
    """
    from kdcli.launch.check import CheckOptions
    from kdcli.launch.run import launch

    options = CheckOptions(with_models=not no_load, as_json=as_json)
    raise typer.Exit(
        launch(
            "distill",
            overrides or [],
            multirun,
            config_dir,
            rerun=rerun,
            trust_run=trust_run,
            out=out,
            check=options,
        )
    )


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="FILE", help="A data file, or a folder of files.")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[dataset.KEY=VALUE]...",
            help="What the file does not show, such as dataset.label=category.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="CONFIG", help="The file to write.")] = Path("kdcli.yaml"),
    no_schema: Annotated[
        bool,
        typer.Option("--no-schema", help="Write no kdcli.schema.json, by which editors complete the config."),
    ] = False,
) -> None:
    """Look at a data file, and write a commented config for it: kdcli.yaml.

    kdcli init tickets.csv
    kdcli check kdcli.yaml
    kdcli distill kdcli.yaml

    It finds encoding, delimiter, header, columns, labels and the task, and proposes teacher, student and device. Nothing is overwritten.

    Exit codes: 0 written; 2 the config exists, the file cannot be read, or it fits no task, or several; 1 anything else.
    """
    from kdcli.commands.init import init as command

    raise typer.Exit(_guarded(lambda: command(data, keys or [], out, not no_schema)))


@app.command("eval")
def evaluate(
    overrides: OverridesOfRun = None,
    multirun: Multirun = False,
    config_dir: ConfigDir = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    info: Info = None,
    trust_run: TrustRun = False,
    out: Out = None,
    as_json: JsonResult = False,
) -> None:
    """Score a run's models (RUN), a checkpoint (model=) or an exported file (artifact=).

    kdcli eval runs/distill/2026-… split=validation
    kdcli eval model=FOLDER dataset=csv dataset.path=tickets.csv split=all

    Exit codes: 0 done; 1 the job failed; 2 the config, the command line or the data is wrong; 130 interrupted; 143 terminated.
    """
    from kdcli.launch.run import launch

    raise typer.Exit(
        launch(
            "eval",
            overrides or [],
            multirun,
            config_dir,
            cfg,
            resolve,
            info,
            trust_run=trust_run,
            out=out,
            as_json=as_json,
        )
    )


@app.command()
def export(
    overrides: OverridesOfExport = None,
    multirun: Multirun = False,
    config_dir: ConfigDir = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    info: Info = None,
    trust_run: TrustRun = False,
    as_json: JsonResult = False,
) -> None:
    """Export a run's student for a device, and run and measure the files there.

    kdcli export runs/distill/2026-… hardware=cpu
    kdcli export runs/distill/2026-… hardware=cpu,intel -m

    Exit codes: 0 done; 1 the job failed; 2 the config or the command line is wrong, or no file can be made or run; 3 a file misses its budget or
    tolerance, or one of several failed; 130 interrupted; 143 terminated.
    """
    from kdcli.launch.run import launch

    raise typer.Exit(
        launch(
            "export",
            overrides or [],
            multirun,
            config_dir,
            cfg,
            resolve,
            info,
            trust_run=trust_run,
            as_json=as_json,
        )
    )


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_ARTIFACT",
            help="A run directory, an exported file or folder, or a model directory.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT... | FILE [KEY=VALUE]... | -]",
            help="Texts; a csv, jsonl, parquet or txt file (text=COLUMN names its column); or - for the lines of stdin.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the answers into a new .jsonl or .csv file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --out replace a file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each input.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="The most tokens of a generated text.")
    ] = None,
    config_dir: ConfigDir = None,
    trust_run: TrustRun = False,
    trust_remote_code: TrustCode = False,
    merge_adapter: MergeAdapter = False,
) -> None:
    """Predict labels, entities, completions or translations for texts, a file, or the lines of stdin.

    A run predicts with its student; an exported file is executed by its own runtime.

    kdcli predict runs/distill/2026-… "A text." "Another text."
    kdcli predict runs/distill/2026-…/export/cpu reviews.csv text=review --out labels.csv
    cat reviews.txt | kdcli predict runs/distill/2026-… - --json

    Exit codes: 0 done; 1 failed; 2 the model, an input or the command line is wrong; 130 interrupted; 143 terminated.
    """
    from kdcli.launch.inference import predict as launch

    raise typer.Exit(
        launch(
            model,
            inputs or [],
            out,
            overwrite,
            as_json,
            max_new_tokens,
            config_dir=config_dir,
            trust_run=trust_run,
            trust_remote_code=trust_remote_code,
            merge_adapter=merge_adapter,
        )
    )


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_ARTIFACT",
            help="A run of a language model, an exported file or folder, or a model directory.",
        ),
    ],
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Show the answer of the run's teacher as well.")
    ] = False,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="The instruction before the conversation.")
    ] = "",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="The most tokens of an answer.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Sample from softmax(logits / temperature); 0: greedy.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="The seed of the first answer.")] = 0,
    config_dir: ConfigDir = None,
    trust_run: TrustRun = False,
    trust_remote_code: TrustCode = False,
    merge_adapter: MergeAdapter = False,
) -> None:
    """Talk to a language model; /reset forgets the conversation, /exit or Ctrl-D ends it.

    kdcli chat runs/distill/2026-… --teacher
    echo "Hello." | kdcli chat runs/distill/2026-…/export/laptop

    Exit codes: 0 done; 1 failed; 2 the model or the command line is wrong; 130 interrupted; 143 terminated.
    """
    from kdcli.launch.inference import chat as launch

    raise typer.Exit(
        launch(
            model,
            teacher,
            system,
            max_new_tokens,
            temperature,
            seed,
            config_dir=config_dir,
            trust_run=trust_run,
            trust_remote_code=trust_remote_code,
            merge_adapter=merge_adapter,
        )
    )


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...", help="Run directories, directories of sweeps, folders of exported files."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write an HTML page.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Compare runs with the first one: scores with paired intervals, sizes, latencies, and the keys that differ.

    kdcli compare runs/distill/2026-… runs/distill/2026-… --out compare.html

    Exit codes: 0 done; 2 a path is no run, sweep or export, or the file of --out exists.
    """
    from kdcli.commands.compare import compare as command

    raise typer.Exit(_guarded(partial(command, runs, out, overwrite, as_json)))


cache_app = App(
    no_args_is_help=True,
    context_settings=CONTEXT,
    help="""Show, check and clear what runs share through the cache.

    kdcli cache ls
    kdcli cache clear --older-than 30d

    Exit codes: 0 done; 1 an entry is damaged (verify); 2 a wrong option, or an entry is in use (clear).
    """,
)
app.add_typer(cache_app, name="cache")
CacheTeacher = Annotated[
    str | None, typer.Option("--teacher", metavar="NAME", help="Only of teachers whose name contains this.")
]
CacheKind = Annotated[
    str | None,
    typer.Option("--kind", metavar="KIND", help="Only of a kind, such as answers or teacher_outputs."),
]
CacheAge = Annotated[
    str | None,
    typer.Option("--older-than", metavar="30d", help="Only what no run has used for so long: 30d, 12h, 90m."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")]


@cache_app.command("ls")
def cache_ls(
    teacher: CacheTeacher = None, kind: CacheKind = None, older_than: CacheAge = None, as_json: AsJson = False
) -> None:
    """List what is stored: of which teacher, for which data, how large, and when it was last used.

    kdcli cache ls --kind answers

    Exit codes: 0 done; 2 a wrong option.
    """
    from kdcli.commands import cache

    raise typer.Exit(_guarded(lambda: cache.ls(cache.choose(teacher, kind, older_than), as_json)))


@cache_app.command("clear")
def cache_clear(
    teacher: CacheTeacher = None,
    kind: CacheKind = None,
    older_than: CacheAge = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete what is stored: all of it, or what the options choose. It is made again when a run needs it; answers of an endpoint are paid for again.

    kdcli cache clear --teacher gpt-4o --older-than 30d

    Exit codes: 0 done, or nothing is to be deleted; 2 a run uses an entry, a wrong option, or nobody can be asked and --yes is missing.
    """
    from kdcli.commands import cache

    raise typer.Exit(_guarded(lambda: cache.clear(cache.choose(teacher, kind, older_than), yes)))


@cache_app.command("verify")
def cache_verify(
    teacher: CacheTeacher = None, kind: CacheKind = None, older_than: CacheAge = None, as_json: AsJson = False
) -> None:
    """Read all entries, and compare them with their checksums.

    kdcli cache verify --kind teacher_outputs

    Exit codes: 0 all are as they were written; 1 one is damaged; 2 a wrong option.
    """
    from kdcli.commands import cache

    raise typer.Exit(_guarded(lambda: cache.verify(cache.choose(teacher, kind, older_than), as_json)))


@app.command("list")
def list_(
    group: Annotated[
        str | None,
        typer.Argument(
            help="A config group, such as teacher, student, dataset, loss or hardware.",
        ),
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the options of each config group and what they are, including those in your own folder.

    kdcli list
    kdcli list student
    kdcli list teacher --json

    Exit codes: 0 done; 2 there is no such group.
    """
    from kdcli.launch.choices import list_groups

    raise typer.Exit(list_groups(group, config_dir, as_json))


@app.command()
def keys(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PREFIX] [GROUP=OPTION]...",
            help="A key or the beginning of keys; options whose keys are wanted, such as loss=jsd.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Show config keys: type, range, default, choices and meaning of each, and of the arguments of the chosen components.

    kdcli keys
    kdcli keys trainer
    kdcli keys loss.soft_label loss=jsd
    kdcli keys teacher teacher=openai --json

    Exit codes: 0 done; 2 there is no such key or option.
    """
    from kdcli.commands.keys import show_keys

    raise typer.Exit(_guarded(partial(show_keys, words or [], as_json, config_dir)))


@app.command()
def completion(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish")],
    line: Annotated[
        str | None, typer.Option(hidden=True, help="Print what may stand at the end of it.")
    ] = None,
) -> None:
    """Print a script by which a shell completes commands, options, config groups, keys, values and paths.

    eval "$(kdcli completion bash)"
    kdcli completion zsh > ~/.zfunc/_kdcli
    kdcli completion fish > ~/.config/fish/completions/kdcli.fish

    The line for bash is for ~/.bashrc. For zsh, ~/.zshrc needs `fpath+=~/.zfunc` before `compinit`.

    Exit codes: 0 done; 2 another shell was named.
    """
    from kdcli.launch.completion import complete

    raise typer.Exit(_guarded(partial(complete, shell, line, lambda: context.find_root().command)))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what kdcli finds on this machine: versions, extras, devices, precisions, memory, the cache, disk and the hub.

    kdcli doctor
    kdcli doctor --json

    Exit codes: 0 done, whatever is missing.
    """
    from kdcli.commands.doctor import examine

    raise typer.Exit(_guarded(partial(examine, as_json)))


def _guarded(command: Callable[[], int]) -> int:
    """Run a command without Hydra, and return its exit code. Every exception becomes one message."""
    from kdcli import console
    from kdcli.errors import KDError

    console.setup_logging()
    try:
        return command()
    except BrokenPipeError:  # the reader of stdout wants no more: click ends quietly
        raise
    except KDError as error:
        failure = error
    except Exception as error:
        from kdcli.launch.hydra_errors import failure_of

        failure = failure_of(error)
    console.error(failure.message)
    return failure.exit_code


def main() -> None:
    """Run the command line."""
    gc.disable()  # until everything is imported, since nothing of that is garbage, and the collector takes a sixth of the time
    app()

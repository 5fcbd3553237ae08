"""Runs `kdcli check` and `dry_run=true`: the config is composed as for `kdcli distill`, and nothing is written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from kdcli import console, rundir
from kdcli.config.schema import Distill
from kdcli.evaluation.results import is_finished
from kdcli.files import workplace
from kdcli.launch.compose import (
    announce_loading,
    config_remarks,
    config_tree,
    display_name,
    override_words,
    require_components,
    require_data,
    run_folder,
)

STATES = {
    "new": "is new",
    "continue": "holds this run, which is continued",
    "finished": "holds this run, which is finished",
}


@dataclass(frozen=True)
class CheckOptions:
    """The options of `kdcli check`.

    Attributes:
        with_models: whether the models are loaded, and time and memory are measured.
        as_json: whether JSON is printed.
    """

    with_models: bool = True
    as_json: bool = False


def run_check(
    composed: DictConfig, written: Mapping[str, str], options: CheckOptions, command: Sequence[str] = ()
) -> None:
    """Check a composed config of `kdcli distill`, and print the result.

    Args:
        written: the keys that the user wrote, with their positions in files.
        command: the command line that starts the run, to print as the next one; of a finished run, its export is.

    Raises:
        KDError: what would stop the run.
    """
    tree = config_tree(composed) | {"dry_run": False}
    folder = run_folder(composed)
    is_named = "${now:" not in str(OmegaConf.to_container(composed.hydra.run, resolve=False))
    state = rundir.examine(folder, tree, is_finished)
    require_data("distill", composed)
    if options.with_models:
        announce_loading()
        require_components("distill", composed, written)
    for remark in config_remarks("distill", composed):
        console.warn(remark)
    config = Distill.model_validate(tree)
    words = override_words(composed.hydra.overrides.task)
    chose_hardware = any(word.lstrip("+").startswith(("hardware=", "hardware.")) for word in words)
    names = display_name(composed.hydra, config.model_dump())
    with workplace():
        from kdcli.commands.check import check

        result = check(config, folder, names, chose_hardware, options.with_models)
    if result is None:
        return
    start = shlex.join(["kdcli", "export", str(folder)] if state == "finished" else command)
    if options.as_json:
        place = {"path": str(folder), "state": state} if is_named else None
        console.say(
            json.dumps(
                result.as_json() | {"run_directory": place, "next": start}, indent=2, ensure_ascii=False
            )
        )
        return
    for line in result.lines():
        console.say(line)
    if not options.with_models:
        if result.plan.queries:
            console.say(
                "tokens are estimated from the bytes of the rows and the questions, four a token; answers that are stored already cost nothing"
            )
        console.say(
            "time, memory, disk, truncated rows and stored answers are known with the models loaded: leave --no-load out"
        )
    if is_named:
        console.say(f"the run directory {folder} {STATES[state]}")
    if command:
        console.say(f"next: {start}")

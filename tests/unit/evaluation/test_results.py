"""report.json and env.json: what is written is read again, and what another version wrote is understood or refused by name."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming, require_words

from kdcli.errors import ConfigError
from kdcli.evaluation.results import (
    RESULTS,
    SCHEMA,
    Environment,
    Report,
    Verdict,
    is_finished,
    json_schema,
    read,
)
from kdcli.evaluation.sections import EndpointResult, GenerationResult, Mistakes, Part, Translations

DOCS = Path(__file__).parents[3] / "docs"
REPORT: dict[str, Any] = {
    "task": "classification",
    "metric": "accuracy",
    "test_examples": 96,
    "smoke": False,
    "seed": 0,
    "labels": ["bad", "good"],
    "dataset": {
        "name": "reviews",
        "train": 440,
        "labelled": 440,
        "augmented": 0,
        "validation": 64,
        "test": 96,
        "fingerprint": "f00d",
    },
    "loss": {"soft_label": {"weight": 1.0, "temperature": 2.0}},
    "stages": [{"name": "student", "seconds": 1.5, "steps": 81}],
    "validation_score": {"teacher": 0.95, "student": 0.9},
    "models": {
        "teacher": {
            "parameters": 10,
            "bytes": 40,
            "score": 0.95,
            "scores": {"accuracy": 0.95},
            "path": "/teacher",
        },
        "student": {"parameters": 5, "bytes": 20, "score": 0.9, "scores": {"accuracy": 0.9}},
    },
    "assistants": {},
    "verdict": {
        "retention": 0.947,
        "gain_over_control": None,
        "gain_ci95": [0.0, 0.1],
        "agreement": 0.9,
        "kl_to_teacher": 0.1,
        "compression": 2.0,
        "speedup": None,
        "text": "The student keeps 94.7 % of the teacher's accuracy.",
    },
    "confusion": "a section of a task",
}
ENVIRONMENT: dict[str, Any] = {
    "kdcli": "0.1",
    "processes": 1,
    "seeds": {"run": 0},
    "bf16": {"teacher": False, "student": False},
    "dataset": {"path": "reviews.csv", "commit": None, "fingerprint": "f00d"},
    "teacher": {"path": "teacher", "commit": None, "weights": "1", "tokenizer": "2"},
    "student": None,
    "others": [],
    "stages": {},
}


def written(folder: Path, content: dict[str, Any], name: str = "report.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A key that the typed report does not know, such as a task's, would be lost, or a number changed."""
    path = tmp_path / "report.json"
    Report.of(**REPORT).write(path)
    assert json.loads(path.read_text()) == {"schema": SCHEMA, **REPORT}
    assert read(path, Report, "").as_json() == {"schema": SCHEMA, **REPORT}


def test_entries_are_read_under_their_former_names(tmp_path: Path) -> None:
    """The counts of an earlier version's report are lost, or it is refused, since entries have been renamed."""
    endpoint = dict.fromkeys(
        ("questions", "from_ledger", "requests", "retries", "prompt_tokens", "completion_tokens"), 1
    )
    endpoint |= {
        "base_url": "http://x",
        "model": "m",
        "cost": None,
        "refused": 0,
        "unparsable": 0,
        "shots": 0,
        "agreement": {},
    }
    former = {
        **REPORT,
        "dataset": REPORT["dataset"] | {"answers_left_out": {"cut off": 3}},
        "endpoint": endpoint | {"learnt": 40, "asked_for": {"A": "bad"}},
    }
    report = read(written(tmp_path, {"schema": 1, **former}), Report, "").as_json()
    assert report["dataset"]["dropped_completions"] == {"cut off": 3}
    assert (report["endpoint"]["training_rows"], report["endpoint"]["letters"]) == (40, {"A": "bad"})


@pytest.mark.parametrize("version", [SCHEMA + 1, 99])
def test_a_newer_file_is_refused_by_name(version: int, tmp_path: Path) -> None:
    """Read as far as it can be understood, it would give figures that mean something else."""
    path = written(tmp_path, {"schema": version, **REPORT})
    with pytest.raises(
        ConfigError, match=naming("report.json", f"schema {version}", "update kdcli")
    ) as refused:
        read(path, Report, "")
    assert refused.value.exit_code == 2
    with pytest.raises(ConfigError, match="newer"):
        is_finished(tmp_path)  # the same distill would write it again otherwise


def test_a_file_from_before_schemas_is_understood(tmp_path: Path) -> None:
    """env.json had no schema: a run of the version before could not be continued."""
    assert read(written(tmp_path, ENVIRONMENT, "env.json"), Environment, "").dataset.fingerprint == "f00d"


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("schema", 0, "schema"),
        ("schema", "1", "schema"),
        ("task", None, "task"),
        ("models", [], "models"),
        ("verdict", {}, "verdict.retention"),
        ("dataset", {"name": "a"}, "dataset.train"),
    ],
)
def test_a_damaged_report_does_not_count(
    key: str, value: Any, wrong: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that says it is finished, and whose report nobody can read, can neither be continued nor used."""
    path = written(tmp_path, {"schema": SCHEMA, **REPORT, key: value})
    with pytest.raises(ConfigError, match=naming("report.json", "damaged", wrong, "do this")):
        read(path, Report, "do this")
    with caplog.at_level(logging.WARNING):
        assert not is_finished(tmp_path)
    require_words(caplog.text, "report.json", "damaged")


@pytest.mark.parametrize("name", RESULTS)
def test_the_documented_schemas_are_current(name: str) -> None:
    """A reader in another language is written by the schema in docs/ (make schemas)."""
    assert (DOCS / f"{name}.schema.json").read_text(encoding="utf-8") == json_schema(name)


@pytest.mark.parametrize(
    "part", [*RESULTS.values(), Verdict, Mistakes, GenerationResult, Translations, EndpointResult]
)
def test_each_entry_has_a_meaning(part: type[Part]) -> None:
    """A key of a result file of which neither the schema nor the documentation says what it is."""
    clear = {"test", "validation", "kdcli", "schema", "teacher", "control", "student", "source"}
    properties = part.model_json_schema()["properties"]
    assert not {name for name, entry in properties.items() if not entry.get("description")} - clear


def test_each_entry_of_a_report_is_documented() -> None:
    """The page about runs leaves out an entry of report.json, or explains one that is no more."""
    page = (
        (DOCS / "runs.md").read_text(encoding="utf-8").partition("## report.json\n")[2].partition("\n## ")[0]
    )
    named = {
        name
        for line in page.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split(" | ")[0])
    }
    assert named == {field.alias or name for name, field in Report.model_fields.items()}

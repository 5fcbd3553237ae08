"""Defines the typed contents of the files that the commands write: report.json, env.json and export.json. Never imports torch.

Every file has a `schema`, the number of its format. `read` understands the formats up to `SCHEMA` and refuses others by name. `make schemas`
writes the JSON schemas into docs/.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AliasChoices, Field, field_validator
from typing_extensions import TypedDict

from kdcli.config.types import Dtype, Quantization
from kdcli.errors import ConfigError
from kdcli.evaluation.sections import EndpointResult, GenerationResult, Mistakes, Part, Translations
from kdcli.files import read_json, write_json, write_text
from kdcli.rundir import EXPORT, REPORT, require_run, saved_config
from kdcli.tasks.presentation import Outcome

logger = logging.getLogger(__name__)
SCHEMA = 1
"""The newest format that this version reads, and the one that it writes."""
ENVIRONMENT = "env.json"
"""The file of a run directory that says what a run was made with."""


class Result(Part):
    """A file that a command writes."""

    schema_: int = Field(SCHEMA, alias="schema", ge=1, le=SCHEMA)
    """The number of the file's format."""

    @classmethod
    def of(cls, **content: Any) -> Self:
        """Return a result in the format of this version.

        Raises:
            pydantic.ValidationError: a bug: the content is not of the format.
        """
        return cls.model_validate({"schema": SCHEMA, **content})

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self.as_json())


Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
"""The bounds of a 95 % interval."""


class ModelResult(Part):
    """The cost and the scores of one model. An unknown value is null."""

    parameters: int | None = None
    """The number of weights."""
    bytes: int | None = None
    """The bytes of the weight files."""
    score: float | None = None
    """The task's headline metric on the test split; higher is better."""
    scores: dict[str, Any] = {}
    """All metrics of the task, and the 95 % interval of the headline metric."""
    latency_ms: dict[str, float | None] = {}
    """Percentiles of one row at a time: p50, p95, p99."""
    throughput_per_s: float | None = None
    """Rows a second at the fastest batch size; of models that generate text: tokens a second."""
    latency_runs: int | None = None
    """Rows that were timed for `latency_ms`, repetitions included."""
    latency_p50_ci95_ms: Interval | None = None
    """The 95 % interval of the median latency, from the medians of the rounds."""
    peak_memory_bytes: int | None = None
    """The peak memory of a process that loads and runs the model, less what it has before it loads it."""
    import_memory_bytes: int | None = None
    """The memory of that process before it loads the model."""
    load_seconds: float | None = None
    """The seconds to import the runtime and to load the model."""
    batch_size: int | None = None
    """The batch size of `throughput_per_s`; null: the model generates text."""
    first_token_ms: dict[str, float | None] | None = None
    """causal_lm: percentiles of the time to the first token."""
    between_tokens_ms: dict[str, float | None] | None = None
    """causal_lm: percentiles of the time between two tokens."""
    times_faster: float | None = None
    """The median latency of the baseline over this model's, on the same rows in turn. The baseline is the teacher; in an export it is the torch student."""
    speedup: float | None = None
    """This model's throughput over the baseline's, on the same rows in turn."""
    cpu_share: float | None = None
    """The CPU time of the process over the elapsed time while latency is timed; far below 1, something else uses the processor."""
    load: dict[str, Any] | None = None
    """Latencies under load: `rates` has those of each rate of `measure.request_rates`, and `most_requests_per_s` is the highest rate that keeps
    `limit_ms`."""
    confusion: list[list[int]] | None = None
    """classification: the rows of each gold label (outer list) by their predicted label; null: there are too many labels."""
    measured_as: str | None = None
    """The model of the same architecture whose speed and memory these are; null: this model's own were measured."""
    path: str | None = None
    """teacher: the directory of its checkpoint."""
    members: list[str] = []
    """teacher: the directories of an ensemble's checkpoints."""
    calibration: dict[str, Any] = {}
    """The expected calibration error on the test split (`ece`), the confidence and accuracy of each bin, and of a model that was calibrated the
    fitted `temperature` and the error without it (`ece_before`)."""
    method: str | None = None
    """A baseline that is not saved: what it is. The latency and the throughput of `trivial` were measured in the process of the run."""


class DatasetResult(Part):
    """The data set of a run: its numbers of rows and its fingerprint."""

    name: str
    """The option that was chosen, or the path."""
    train: int
    """Training rows, before augmentation."""
    labelled: int
    """Training rows that have a gold label or a reference."""
    augmented: int
    """Training rows that augmentation added."""
    validation: int
    test: int
    fingerprint: str
    """The SHA-256 of all rows and their splits."""
    dropped: dict[str, int] = {}
    """Rows that were dropped from the source, by reason."""
    dropped_completions: dict[str, int] = Field(
        {}, validation_alias=AliasChoices("dropped_completions", "answers_left_out")
    )
    """Completions of the teacher that were dropped, by reason."""


class StageTime(TypedDict):
    """A stage of a run."""

    name: str
    seconds: float
    """In all processes that the run has had."""
    steps: int


class TrainingResult(Part):
    """The length of a model's training."""

    steps: int
    """Optimizer steps of all its phases."""
    stopped: str
    """converged: the validation curve no longer improved; bound: it still did at the most steps that were allowed; steps: their number
    was fixed."""
    best_step: int | None
    """The step with the best validation score; null: there was no validation."""
    flat: bool
    """Whether more steps promised nothing."""
    rollout_buffer: int | None = None
    """On-policy distillation: the number of steps whose completions the student generated together."""


class ChanceResult(Part):
    """The lead of student and control over chance."""

    metric: str
    """The metric: macro F1 if accuracy hardly tells models apart, else the headline metric."""
    score: float
    """The score of the most frequent label, of no entity anywhere, of token frequencies, or of copies of the source."""
    student: Interval | None
    """The 95 % interval of the student's score less that of chance; null: one row has none."""
    control: Interval | None = None


class MissingResult(Part):
    """One thing that a judgement needs."""

    reason: str
    key: str | None
    """The config key that mends it; null: none does."""


class SeedResult(Part):
    """Student and control of one seed."""

    seed: int
    student: float
    control: float | None
    gain: float | None


class FidelityResult(Part):
    """A quantized teacher compared with itself without quantization, on the validation rows. An unknown value is null: the weights without
    quantization did not fit into memory."""

    quantization: Quantization
    kl: float | None
    """The mean divergence KL(without quantization ‖ with it) over the counted positions, in nats: a row of a classifier, a token of a language model."""
    agreement: float | None
    """The share of positions at which both predict the same class."""
    positions: int | None


class Verdict(Part):
    """The comparison of student, control and teacher on the test split. An unknown value is null."""

    retention: float | None
    """The student's share of the teacher's score."""
    gain_over_control: float | None
    """The student's score less the control's."""
    gain_ci95: Interval | None
    """The 95 % interval of `gain_over_control`, paired over the test rows."""
    gain_p: float | None = None
    """Two-sided, of the hypothesis that there is no gain; below 0.05 if and only if `gain_ci95` excludes 0."""
    smallest_gain: float | None = None
    """The smallest gain that rows like these show in 80 % of samples; null: they can show none."""
    chance: ChanceResult | None = None
    """Student and control against chance on the same rows; of several seeds: each by its lowest interval."""
    outcome: Outcome | None = None
    """Whether the teacher helped; null: an earlier version wrote the report."""
    missing: list[MissingResult] = []
    """What a judgement needs, if the outcome is `not_enough`."""
    seeds: list[SeedResult] = []
    """The results of each seed of a run with several seeds. `gain_over_control` is then the mean gain, and its interval is over seeds and rows."""
    agreement: float | None
    """The share of positions at which student and teacher predict the same."""
    kl_to_teacher: float | None
    """The mean KL divergence of the student from the teacher, in nats."""
    kl_gain_over_control: float | None = None
    """The KL divergence of the control from the teacher less the student's."""
    kl_gain_ci95: Interval | None = None
    """The 95 % interval of `kl_gain_over_control`."""
    compression: float | None
    """The teacher's parameters over the student's."""
    speedup: float | None
    """The student's throughput over the teacher's."""
    text: str
    """The verdict in a sentence."""


class Report(Result):
    """report.json: the results of `kdcli distill`."""

    task: str
    """The task: classification, token_classification, causal_lm, seq2seq, or a class of the user."""
    metric: str
    """The headline metric of the task."""
    test_examples: int
    """The rows of the test split."""
    smoke: bool
    """Whether it is a rehearsal (`debug=smoke`), whose figures mean nothing."""
    seed: int
    """The seed of the run."""
    measure: dict[str, Any] | None = None
    """How speed and memory were measured: the mode, and its settings; null: they were not measured."""
    labels: list[str]
    """The names of the labels or tags; empty for models that generate text."""
    tags: dict[str, Any] = {}
    """token_classification: how entities are read: the form of the tags, their letters, those that mean no entity, and the entity types."""
    dataset: DatasetResult
    """The rows of the data set, and its fingerprint."""
    suspicions: list[dict[str, Any]] = []
    """What makes the results doubtful: `kind`, `text`, `key` (the config key that mends it, or null) and figures."""
    loss: dict[str, dict[str, Any]]
    """The loss terms with their weights and arguments; with stages as stage/term."""
    stages: list[StageTime]
    """The stages of the run with their time and their steps."""
    training: dict[str, TrainingResult] = {}
    """The training of the student, the control, and a teacher that this run tuned, by their names; a further seed has student@5."""
    fidelity: FidelityResult | None = None
    """What the quantization of the teacher costs; null: it is not quantized."""
    validation_score: dict[str, float | None]
    """The best score of each model on the validation split."""
    models: dict[str, ModelResult]
    """Scores and costs of teacher, student, control and the baselines (`trivial`), by their names."""
    assistants: dict[str, ModelResult]
    """The assistants by the names of their stages."""
    verdict: Verdict
    """The comparison of student, control and teacher."""
    mistakes: Mistakes | None = None
    """classification, token_classification: the test rows that show where the student fails."""
    test_tokens: int | None = None
    """causal_lm: the tokens of the test split that count."""
    generations: list[GenerationResult] = []
    """causal_lm: the completions of some test prompts by each model."""
    translations: Translations | None = None
    """seq2seq: the texts that the student translates worst and best."""
    signature: dict[str, str] = {}
    """seq2seq: the signatures of sacrebleu, which define how BLEU and chrF are computed."""
    beams: int | None = None
    """seq2seq: the width of the beam search."""
    endpoint: EndpointResult | None = None
    """A teacher behind an endpoint: its requests, their cost and some answers."""

    @field_validator("models")
    @classmethod
    def _has_both(cls, models: dict[str, ModelResult]) -> dict[str, ModelResult]:
        if missing := {"teacher", "student"} - models.keys():
            raise ValueError(f"no entry for {' and '.join(sorted(missing))}")
        return models


class CheckpointRecord(Part):
    """A checkpoint, by its hashes."""

    path: str
    commit: str | None
    weights: str
    tokenizer: str


class DatasetRecord(Part):
    """The data set, by its fingerprint."""

    path: str
    commit: str | None
    fingerprint: str
    reading: list[dict[str, Any]] = []
    """How each file was read: its format, encoding, delimiter, quotes and columns. Later commands of the run read it so again."""


class MemoryRecord(Part):
    """The memory of a process of a run, beyond what it had before any model was loaded."""

    planned_bytes: int
    """The most that it was expected to take, by the shapes of the models."""
    phases: dict[str, int]
    """The most that each phase was expected to take."""
    free_bytes: int | None
    """What was free before; null: the system does not report it."""
    measured_bytes: int | None = None
    """The most that the main process took until student and control were trained; null: they are not yet."""


class Environment(Result):
    """env.json: the versions, the machine, the data and the checkpoints that a run was made with."""

    processes: int
    """The number of processes that trained together."""
    seeds: dict[str, int]
    """The seed of the run and of each of its stages."""
    bf16: dict[str, bool]
    """Whether teacher and student compute in bf16 by autocast."""
    dtypes: dict[str, Dtype] = {}
    """In which precision the weights of teacher and student are loaded."""
    quantization: dict[str, Quantization] = {}
    """The number format of the linear layers' weights while a model computes: of the teacher, and of the checkpoint that the student's adapters are
    trained on (`student`). A model that is not named is not quantized."""
    placement: dict[str, str] = {}
    """Where the weights of a local teacher were (`teacher`): resident, streamed or device_map, as `teacher.placement`."""
    memory: MemoryRecord | None = None
    """The memory that the run was expected to take, and that it took."""
    dataset: DatasetRecord
    """The data set, and how its files were read."""
    teacher: CheckpointRecord | dict[str, Any]
    """A local teacher's checkpoint; or what identifies a remote teacher."""
    stand_in: CheckpointRecord | None = None
    """The checkpoint from which students of a remote teacher are initialised."""
    student: CheckpointRecord | None
    """The checkpoint of `student.path`; null: there is none."""
    others: list[CheckpointRecord]
    """The further members of an ensemble."""
    stages: dict[str, str]
    """The fingerprints of the data sets of stages that have their own."""


class Parity(Part):
    """The difference between an artifact and the torch student. A task has some of the shares."""

    score_drop: float
    """The torch student's score less the artifact's."""
    agreement: float | None = None
    """The share of rows (of models that generate text: tokens) with the torch student's prediction."""
    generated: float | None = None
    """The share of the tokens generated by the torch student that are the artifact's most likely ones, up to the first difference."""
    same_tokens: float | None = None
    """The share of texts that the artifact's own tokenizer tokenizes as the student's does."""
    same_texts: float | None = None
    """The share of texts that are generated identically."""
    max_abs_difference: float | None = None
    """The largest difference of a logit, or of a token's log-probability."""
    max_abs_difference_of_probabilities: float | None = None
    within: bool
    """The tolerance of the device is kept."""


class ArtifactResult(ModelResult):
    """The cost of an exported file or folder on the device, and its quality relative to the student."""

    precision: str
    sha256: dict[str, str] = {}
    """The hashes of its files, by their paths relative to its folder."""
    retention: float | None = None
    """The share of the teacher's score."""
    parity: Parity | None
    """null: it does not run here."""
    budget: dict[str, Any]
    """Each limit that is set with `limit`, `value` and `met`; and `met`: all of them."""


class ExportResult(Result):
    """export.json: the results of `kdcli export`."""

    task: str
    """The task of the run."""
    metric: str
    """The headline metric of the task."""
    student: str | None = None
    """The hash of the student's weights."""
    hardware: str
    """The device, by the name that was typed."""
    note: str = ""
    """What the measurements do not show."""
    test_examples: int
    """The rows of the test split."""
    smoke: bool
    """Whether it is a rehearsal, whose figures mean nothing."""
    environment: dict[str, Any]
    """The versions and the machine."""
    threads: int
    """The threads of each runtime."""
    batch_sizes: list[int]
    """The batch sizes of which the fastest one gives `throughput_per_s`."""
    sequence_length: int | None = None
    """Tokens of each row that is timed; null: each row has its own length."""
    torch: ModelResult
    """The student in torch, as it was measured together with the artifacts."""
    artifacts: dict[str, ArtifactResult]
    """The files and folders that were written, by their paths."""
    failed: dict[str, str] = {}
    """The files that could not be made or run, and why."""
    quantization: dict[str, Any] = {}
    """The same files rounded after training, if the student's weights were rounded in training."""
    recommended: str | None
    """The smallest artifact within tolerance and budget."""
    exit_code: int | None = None
    """The exit code of one job of a sweep."""


class EvalResult(Result):
    """eval.json: the results of `kdcli eval`."""

    task: str
    metric: str
    """The headline metric of the task."""
    split: str
    examples: int
    labels: list[str]
    dataset: dict[str, Any]
    """Its name and its fingerprint."""
    environment: dict[str, Any]
    """The versions and the machine."""
    models: dict[str, ModelResult]
    verdict: Verdict | None = None
    """Of a run with teacher and student."""


class NewerVersionError(ConfigError):
    """A newer version of kdcli wrote the file."""


R = TypeVar("R", bound=Result)
RESULTS: dict[str, type[Result]] = {"report": Report, "env": Environment, "export": ExportResult}
"""The result files, by the stem of their names."""


def read(path: Path, kind: type[R], remedy: str) -> R:
    """Return a result file.

    Args:
        remedy: what the user can do about a damaged file.

    Raises:
        ConfigError: it is damaged, or a newer version of kdcli wrote it.
    """
    content = read_json(path, dict, remedy)
    version = content.get("schema", SCHEMA)
    if type(version) is int and version > SCHEMA:
        raise NewerVersionError(
            f"{path} has the schema {version}, and this version of kdcli reads up to {SCHEMA}: a newer version wrote it; update kdcli "
            "(pip install --upgrade kdcli)"
        )
    read_json(path, kind, remedy)  # checks the types strictly
    return kind.model_validate(content)


def read_report(run: Path) -> Report:
    """Return the report of a finished run.

    Raises:
        ConfigError: it is no run, the run is not finished, or its report is damaged or of a newer version.
    """
    saved_config(run)
    return finished_report(run)


def finished_report(run: Path) -> Report:
    """Return the report of a finished run, whatever its config holds.

    Raises:
        ConfigError: it is no run, the run is not finished, or its report is damaged or of a newer version.
    """
    if not (run / REPORT).is_file():
        require_run(run)
        raise ConfigError(
            f"{run} is not finished (no {REPORT}); continue it with: kdcli distill … --out {run}"
        )
    return read(run / REPORT, Report, "the same kdcli distill writes it again")


def read_export(folder: Path) -> ExportResult:
    """Return the results in a folder that `kdcli export` wrote.

    Raises:
        ConfigError: they are damaged, or of a newer version.
    """
    return read(folder / EXPORT, ExportResult, "export again: kdcli export RUN hardware=…")


def is_finished(run: Path) -> bool:
    """Return whether a run has its report. A damaged report is named in a warning and does not count: the same command writes it again.

    Raises:
        ConfigError: a newer version of kdcli wrote the report.
    """
    if not (run / REPORT).is_file():
        return False
    try:
        finished_report(run)
    except NewerVersionError:
        raise
    except ConfigError as error:
        logger.warning("%s", error.message)
        return False
    return True


def json_schema(name: str) -> str:
    """Return the JSON schema of a result file, as text."""
    schema = RESULTS[name].model_json_schema(by_alias=True)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> None:
    """Write the JSON schema of each result file."""
    for name in RESULTS:
        write_text(folder / f"{name}.schema.json", json_schema(name))

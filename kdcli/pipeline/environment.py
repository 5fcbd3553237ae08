"""Records in env.json what a run was made with, and checks that a continued run finds the same data and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcli.config.schema import Distill as Config
from kdcli.config.seeds import with_seed
from kdcli.config.types import Dtype, Quantization
from kdcli.device import device_peak
from kdcli.environment import environment
from kdcli.errors import DataError
from kdcli.evaluation.results import ENVIRONMENT, CheckpointRecord, DatasetRecord, Environment, read
from kdcli.models.checkpoint import Checkpoint, fast_bf16, stage_seed
from kdcli.pipeline.memory_plan import MemoryPlan
from kdcli.pipeline.plan import INITIALIZATION, STUDENT, Run

CHECKED = {
    "dataset": "dataset",
    "stages": "dataset of a stage",
    "teacher": "teacher",
    "others": "ensemble of teachers",
    "student": "student",
}
"""The keys that must not change while a run is continued, and what they describe."""
SEEDED = {"initialization": INITIALIZATION, "student": STUDENT}
"""Maps the stages that run once for each seed, by their names in env.json, to the names that are hashed into their random seeds."""


def record_environment(parts: Sequence[Run]) -> None:
    """Write env.json, or compare it with what a continued run finds.

    Raises:
        DataError: the data or a checkpoint are not those that the run was begun with.
        ConfigError: env.json is damaged.
    """
    run = parts[-1]
    path = run.folder / ENVIRONMENT
    current = _environment(parts)
    if not path.is_file():
        current.write(path)
        return
    recorded = read(
        path,
        Environment,
        "restore it; or remove it, and the run goes on without the check that its data and models are the ones it was begun with",
    )
    for key, description in CHECKED.items():
        if _identity(getattr(recorded, key)) != _identity(getattr(current, key)):
            raise DataError(
                f"the {description} is not the one that {run.folder} was begun with; start a new run"
            )


def record_peak(run: Run, before: int | None) -> None:
    """Write the peak memory of this process into env.json. Of a run that was continued it is the largest of its processes.

    Args:
        before: what the process had when its peak was reset; None: the system does not report it.
    """
    path, peak = run.folder / ENVIRONMENT, device_peak()
    recorded = read(path, Environment, "restore it from a copy")
    if recorded.memory is None or peak is None or before is None:
        return
    measured = max(peak - before, recorded.memory.measured_bytes or 0)
    memory = recorded.memory.model_copy(update={"measured_bytes": measured})
    recorded.model_copy(update={"memory": memory}).write(path)


def _identity(record: Any) -> Any:
    """Return a record without how files were read, which releases describe differently; their content is in the fingerprint."""
    return record.model_copy(update={"reading": []}) if isinstance(record, DatasetRecord) else record


def _environment(parts: Sequence[Run]) -> Environment:
    run = parts[-1]
    cfg, source = run.cfg, run.initializer.source
    readings = [reading.as_record() for part in parts for reading in part.data.readings]
    bf16 = {
        "teacher": fast_bf16(cfg.teacher.trainer.precision),
        "student": fast_bf16(cfg.trainer.precision),
    }
    return Environment.of(
        **environment(),
        processes=run.state.num_processes,
        seeds=_seeds(cfg),
        bf16=bf16,
        dtypes=_dtypes(run),
        quantization=_quantization(run),
        placement=_placement(run),
        memory=None if run.memory is None else _memory(run.memory),
        dataset={
            "path": cfg.dataset.path,
            "commit": run.data.commit,
            "fingerprint": run.data.fingerprint,
            "reading": readings,
        },
        teacher=_record(run.sources[0]) if run.remote is None else run.remote.fingerprint,
        stand_in=None if run.remote is None else _record(run.sources[0]),
        student=None if source is None else _record(source),
        others=list(map(_record, run.sources[1:])),
        stages={part.teacher_key: part.data.fingerprint for part in parts if part.cfg.dataset != cfg.dataset},
    )


def _dtypes(run: Run) -> dict[str, Dtype]:
    """Return the dtype of the weights of each model. A teacher that is tuned first is stored in fp32."""
    own: dict[str, Dtype] = {"student": run.cfg.student.dtype}
    if run.remote is not None:
        return own
    tuned = run.cfg.teacher.dtype == "auto" and run.tunes(run.sources[0])
    return {"teacher": "fp32" if tuned else run.sources[0].dtype, **own}


def _quantization(run: Run) -> dict[str, Quantization]:
    """Return the quantization of the models that have one."""
    given = {"teacher": run.cfg.teacher.quantization, STUDENT: run.initializer.quantization_base}
    return {name: kind for name, kind in given.items() if kind is not None}


def _placement(run: Run) -> dict[str, str]:
    """Return where the weights of a local teacher are."""
    if run.remote is not None:
        return {}
    divided = "device_map" if run.sources[0].divided else "resident"
    return {"teacher": "streamed" if run.streamed else divided}


def _memory(plan: MemoryPlan) -> dict[str, Any]:
    phases = {phase.name: phase.peak for phase in plan.phases}
    return {"planned_bytes": plan.peak, "phases": phases, "free_bytes": plan.free}


def _seeds(cfg: Config) -> dict[str, int]:
    """Return the seeds of the run and of its stages; those of further seeds by their names, student@5."""
    further = {
        with_seed(name, seed): stage_seed(seed, stage)
        for seed in cfg.all_seeds[1:]
        for name, stage in SEEDED.items()
    }
    own = {name: stage_seed(cfg.seed, stage) for name, stage in SEEDED.items()}
    return {"run": cfg.seed, "teacher": stage_seed(cfg.seed, "teacher"), **own, **further}


def _record(source: Checkpoint) -> dict[str, Any]:
    record = CheckpointRecord(
        path=source.name,
        commit=source.commit,
        weights=source.weights_hash,
        tokenizer=source.tokenizer_hash,
    )
    return record.as_json()

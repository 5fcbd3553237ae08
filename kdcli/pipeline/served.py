"""The checks of a teacher whose server scores given tokens, before anything is trained."""

from __future__ import annotations

import logging
import math

import datasets
import torch

from kdcli.data.splits import SPLITS
from kdcli.errors import ConfigError, TeacherError
from kdcli.models.checkpoint import find, load_tokenizer
from kdcli.pipeline.cost import are_stored
from kdcli.pipeline.plan import Run
from kdcli.pipeline.validate import storing_temperature
from kdcli.signals import FLOOR, AnySignal, TopKSignal, concatenate
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.local import LocalTeacher
from kdcli.teachers.remote.scorer import COMPARED_TEXTS, TokenScorer

logger = logging.getLogger(__name__)
VERIFIED_ROWS = 4
"""Rows of which the answers are compared with a checkpoint on this machine."""
MOST_DIVERGENCE = 0.05
"""Nats a token. A model in bf16 or fp8 differs by less from itself in fp32; one that was trained on differs by more."""


def require_served(run: Run, scorer: TokenScorer) -> None:
    """Prepare a scorer, and check that its server can be asked. Nothing is sent in a dry run, or if all outputs are stored: then the run needs
    no server.

    Raises:
        ConfigError, ModelError, TeacherError
    """
    scorer.client.ledger.since = run.fresh_since
    scorer.prepare(run.sources[0], run.task, run.max_length, run.cfg.teacher.top_k)
    temperature = storing_temperature(run)
    if temperature != 1.0:
        raise ConfigError(
            f"a loss term has temperature = {temperature:g}, and a server gives the log-probabilities at temperature 1 alone: the mass of "
            "the tokens that it does not list is not known at another one; give loss.soft_label.temperature=1 (each term with a temperature)"
        )
    if run.classes is not None:
        scorer.truncate_vocabulary(run.classes)
    if run.cfg.dry_run or (run.fresh_since is None and are_stored(run)):
        return
    tokenizer, candidates = load_tokenizer(run.sources[0]), []
    for split in SPLITS:
        lengths = run.encode(tokenizer, run.data[split]).lengths
        candidates.append((int(lengths.max()), split, int(lengths.argmax())))
    _, split, index = max(candidates)
    train = run.data["train"]
    compared = train.select(range(min(COMPARED_TEXTS, len(train))))
    scorer.require_server(run.data[split][index], list(compared))
    if scorer.verify is not None:
        _require_same_model(
            run, scorer, scorer.verify, compared.select(range(min(VERIFIED_ROWS, len(compared))))
        )


def _require_same_model(run: Run, scorer: TokenScorer, path: str, rows: datasets.Dataset) -> None:
    """Compare what the server answers about some rows with a checkpoint of its model on this machine.

    Raises:
        ModelError: the checkpoint cannot be used.
        TeacherError: it is another model.
    """
    own = run.cfg.teacher.model_copy(update={"path": path, "revision": None})
    source, local = find(own, "teacher.verify"), LocalTeacher(batch_size=1)
    local.open(source, run.task, run.max_length, "fp32")
    local.truncate_vocabulary(scorer.classes)
    examples = list(rows)
    compress = CachedTeacher(run.folder, scorer.top_k).compress
    here = local.outputs(examples, compress)
    divergence = served_divergence(concatenate(here), concatenate(scorer.outputs(examples)))
    if divergence > MOST_DIVERGENCE:
        raise TeacherError(
            f"{scorer.client.base_url} serves another model than teacher.verify = {path}: on {len(rows)} rows the KL divergence of its answers is "
            f"{divergence:.3g} nats a token (at most {MOST_DIVERGENCE:g}); correct teacher.base_url, teacher.model or teacher.verify"
        )
    logger.info(
        "teacher.verify: on %d rows the server's answers differ from those of %s by %.2g nats a token (KL divergence)",
        len(rows), path, divergence,
    )  # fmt: skip


def served_divergence(here: AnySignal, there: AnySignal) -> float:
    """Return the mean KL divergence of two signals of the k likeliest tokens, in nats, over the tokens that both list and the mass of all others."""
    assert isinstance(here, TopKSignal)
    assert isinstance(there, TopKSignal)
    same = here.indices[:, :, None] == there.indices[:, None, :]
    shared = same.any(-1)
    of_there = torch.where(same, there.log_p[:, None, :], 0.0).sum(-1)
    p, q = here.log_p.exp() * shared, of_there.exp() * shared
    terms = (p * (here.log_p - of_there)).sum(-1)
    rest_p, rest_q = ((1 - each.sum(-1)).clamp(min=math.exp(FLOOR)) for each in (p, q))
    return float((terms + rest_p * (rest_p / rest_q).log()).mean())

"""Declares sequence-to-sequence tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdcli.config.tasks import FolderFormat, TaskSpec

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset
_PAIRS = ("source", "target", "source_language", "target_language", "prefix", "clean")


class Seq2SeqSpec(TaskSpec):
    """Pairs of a source and a target."""

    family = "seq2seq"
    reads = frozenset({*_PAIRS, "truncation", "labelled", "unlabelled", "unlabelled_limit"})
    reads_of_run = frozenset({
        "rollout", "teacher.top_k", "teacher.from_scratch", "teacher.vocab_size", "measure.num_beams", "measure.new_tokens",
        "measure.generations", "hardware.tolerance.same_texts",
    })  # fmt: skip
    only_here = dict.fromkeys(_PAIRS, "it is for pairs of source and target")
    formats: ClassVar[dict[str, FolderFormat]] = {
        "gettext": FolderFormat((".po", ".mo"), ("source", "target")),
        "parallel": FolderFormat((), ("source", "target")),
    }
    inference_order = 1
    writes = True
    max_epochs = 10.0
    selects_by_gold = False
    from_scratch = True
    new_students = "translator-tiny or translator-small"

    def implied_by(self, cfg: Dataset) -> bool:
        """Return whether there is a column of sources, gettext catalogues, or parallel files."""
        return bool(cfg.source) or cfg.format in self.formats

    def usual_keys(self, tokenizer: Any) -> dict[str, Any]:
        """A source and a target, in the languages with which the tokenizer was saved."""
        languages = {
            "source_language": getattr(tokenizer, "src_lang", None),
            "target_language": getattr(tokenizer, "tgt_lang", None),
        }
        return {"source": "source", "target": "target", **languages}

    def check(self, cfg: Dataset) -> None:
        """Check that the data set has columns of pairs, or two locales of catalogues."""
        if cfg.format == "gettext":
            if cfg.source:
                raise ValueError("source and target: catalogues have no columns; leave them out")
            if not cfg.target_language:
                raise ValueError("gettext: name the locale to translate into (dataset.target_language=de)")
            if cfg.source_language == cfg.target_language:
                raise ValueError(f"source_language and target_language: both are {cfg.source_language}")
        elif not cfg.source:
            raise ValueError(
                "seq2seq: name the columns of the source and of its translation (dataset.source, dataset.target)"
            )
        if cfg.truncation == "cut":
            raise ValueError("truncation = cut: pairs are never cut; give refuse or drop")
        if others := [key for key in ("text_pair", "prompt", "messages", "words") if getattr(cfg, key)]:
            raise ValueError(f"source and {others[0]}: name the columns of one of them")
        if cfg.unlabelled and cfg.format == "gettext":
            raise ValueError(
                "unlabelled: catalogues hold translations; name a csv or jsonl file of sources with format= of its kind"
            )


SPEC = Seq2SeqSpec()

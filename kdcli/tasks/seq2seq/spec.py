"""Declares sequence-to-sequence tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from kdcli.config.paths import conf_dir
from kdcli.config.tasks import FolderFormat, TaskSpec
from kdcli.tasks.pairs import SOURCES

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset
    from kdcli.tasks.columns import Column, Fit
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
    column_keys = "dataset.source= and dataset.target="
    writes = True
    max_epochs = 10.0
    selects_by_gold = False
    from_scratch = True
    new_students = "translator-tiny or translator-small"

    def implied_by(self, cfg: Dataset) -> bool:
        """Return whether there is a column of sources, gettext catalogues, or parallel files."""
        return bool(cfg.source) or cfg.format in self.formats

    def usual_keys(self, tokenizer: Any) -> dict[str, Any]:
        """Return the keys of sources and targets, in the languages with which the tokenizer was saved."""
        languages = {
            "source_language": getattr(tokenizer, "src_lang", None),
            "target_language": getattr(tokenizer, "tgt_lang", None),
        }
        return {"source": "source", "target": "target", **languages}

    def fits(self, columns: Sequence[Column], given: Mapping[str, Any]) -> Iterator[Fit]:
        """Yield columns that are called source and target or so, or by two languages; a mapping of two languages; two columns of texts."""
        from kdcli.tasks.columns import POSSIBLE, Fit, is_language, texts_alone, usual_pair

        def are_texts(source: Column, target: Column) -> bool:
            return source.is_text and target.is_text and not target.looks_like_labels

        if pair := usual_pair(columns, SOURCES, are_texts):
            yield Fit({"source": pair[0], "target": pair[1]})
        languages = [column.name for column in columns if is_language(column.name) and column.is_text]
        if len(languages) == 2 and "id" not in languages:
            yield Fit({"source": languages[0], "target": languages[1]})
        for column in columns:
            mappings = [value for value in column.values if isinstance(value, dict)]
            names = list(dict.fromkeys(key for value in mappings[:100] for key in value))
            if len(mappings) == len(column.values) and len(names) == 2 and all(map(is_language, names)):
                yield Fit({"source": f"{column.name}.{names[0]}", "target": f"{column.name}.{names[1]}"})
        if len(texts := texts_alone(columns)) == 2:
            yield Fit({"source": texts[0], "target": texts[1]}, POSSIBLE)

    def proposed_data(self, keys: Mapping[str, Any]) -> Iterator[str]:
        """Yield the line by which pairs of too many tokens are dropped."""
        yield "truncation: drop  # pairs of more tokens are dropped, not cut"

    def proposed_models(self, keys: Mapping[str, Any]) -> Iterator[str]:
        """Yield a packaged teacher of the pair of languages, one that summarises, or a new one."""
        names = [str(keys.get(side, "")).rpartition(".")[2].lower()[:2] for side in ("source", "target")]
        teacher = f"opus-mt-{'-'.join(names)}"
        if (conf_dir() / "teacher" / f"{teacher}.yaml").is_file():
            yield f"teacher: {teacher}  # from the Hugging Face hub; kdcli list teacher"
            yield "student: layers  # some of the teacher's layers"
            yield "student.num_hidden_layers: 6"
            yield "student.decoder_layers: 1"
        elif "summary" in str(keys.get("target")) or "highlights" in str(keys.get("target")):
            yield "teacher: bart-large-cnn  # from the Hugging Face hub; kdcli list teacher"
            yield "student: layers  # some of the teacher's layers"
            yield "student.num_hidden_layers: 6"
            yield "student.decoder_layers: 3"
            yield "dataset.clean.max_ratio: null  # summaries are shorter than their articles"
        else:
            yield "teacher: transformer  # a new model, trained on the pairs first; others: kdcli list teacher"
            yield "student: translator-tiny"
        yield "rollout: beam  # the student learns what the teacher makes of the training sources"
        yield "hardware: cpu  # kdcli list hardware"

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

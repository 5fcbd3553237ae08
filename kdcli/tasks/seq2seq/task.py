"""Defines translation, and other tasks that turn one text into another, by a model with an encoder and a decoder."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.measure import Measure
from kdcli.config.schema import Distill
from kdcli.errors import ConfigError, DataError, listed, suggest
from kdcli.files import digest
from kdcli.generation import Reply, decoded, greedy_config, start_of, translate
from kdcli.signals import HiddenSignal
from kdcli.tasks.base import Predictions
from kdcli.tasks.encoded import Encoded, padded
from kdcli.tasks.language_model import LanguageModel, contradiction, head_of
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.seq2seq.presentation import PRESENTATION
from kdcli.tasks.seq2seq.rows import Seq2SeqRows
from kdcli.tasks.seq2seq.spec import SPEC
from kdcli.tasks.seq2seq.trivial import Copy
from kdcli.tasks.trivial import TrivialModel

logger = logging.getLogger(__name__)
COPIED = 0.5
"""The share of copied sources above which a teacher is refused."""
EXTREMES = 20
"""The numbers of worst and of best translations in the report."""
CHUNK = 1000
"""The number of rows in a call of the tokenizer."""
_CODE = re.compile(r"[a-z]{2,3}(_[A-Za-z]{2,4})?")
_TARGET = re.compile(r">>[^<>]*<<")
"""The first token of a source, which names the target language to multilingual Marian models."""


class Seq2Seq(LanguageModel):
    """The headline metric is BLEU (sacrebleu's, 0 to 100) of greedily generated texts.

    Rows hold `source` and `target`; the target is None until the teacher has translated a source that has none. All tokens of the target
    count, also its end token, except those that are given to the decoder and not predicted (a language code, the first token of BART).
    The decoder begins with the start token of the model, which is the padding token for Marian and T5.

    Args:
        languages: codes of source and target language, for multilingual tokenizers.
        prefix: text before each source.
        truncation: whether pairs of more than `max_length` tokens are refused or dropped.
    """

    metric = "bleu"
    metric_of_outputs = "log_prob"
    spec = SPEC
    row_schema = Seq2SeqRows
    presentation = PRESENTATION
    features = frozenset()
    head = ("ForConditionalGeneration", "MTModel")
    batch = 32
    auto = "AutoModelForSeq2SeqLM"
    writes = True
    searches = True
    corpus = True

    def __init__(
        self,
        languages: tuple[str | None, str | None] = (None, None),
        prefix: str = "",
        truncation: Literal["refuse", "drop"] = "refuse",
    ):
        super().__init__()
        self.languages, self.prefix, self.truncation = languages, prefix, truncation

    @classmethod
    def from_config(cls, cfg: DatasetConfig, labels: Sequence[str]) -> Self:
        """Return the task for a data set, with its languages and its prefix."""
        _require_sacrebleu()
        languages = cfg.source_language, cfg.target_language
        return cls(languages, cfg.prefix, "drop" if cfg.truncation == "drop" else "refuse")

    # ---- rows -> tokens ----------------------------------------------------------------------------------

    def from_pretrained(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load a checkpoint as in the base class. The decoder of mBART-25 and PLBart begins with the code of the target language, even if its config names another token."""
        model, info = super().from_pretrained(path, **kwargs)
        if self.languages[1] is not None and _begins_with_last(model):
            code = self.start(AutoTokenizer.from_pretrained(path, local_files_only=True))
            if code is not None:
                own: Any = model.generation_config
                model.config.decoder_start_token_id = own.decoder_start_token_id = code
        return model, info

    def given(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the first tokens of a target that are given, not predicted: a language code, or the first token of BART."""
        before, code = self._target_tokens(tokenizer)
        return before if code is None or not _has_older_targets(tokenizer) else [*before, code]

    def start(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """Return the language code that is the decoder's first input in place of the model's start token (mBART-25, PLBart); None: there is none."""
        return None if _has_older_targets(tokenizer) else self._target_tokens(tokenizer)[1]

    def _target_tokens(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int | None]:
        """Return the special tokens that the tokenizer writes before a target, and the language code that it writes behind its end token."""
        self._set_languages(tokenizer)
        empty = list(tokenizer(text_target="")["input_ids"])
        if len(empty) > 1 and empty[-2] == tokenizer.eos_token_id != empty[-1]:
            return empty[:-2], empty[-1]
        return (empty[:-1] if empty and empty[-1] == tokenizer.eos_token_id else empty), None

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Keep the pairs whose source and target have at most `max_length` tokens.

        Raises:
            DataError: one has more, and `truncation` is "refuse".
        """
        long = self.lengths(tokenizer, rows) > max_length
        if long.any() and self.truncation == "refuse":
            first = rows[int(long.argmax())]
            raise DataError(
                f"{long.sum()} of {len(rows)} pairs have more than dataset.max_length = {max_length} tokens in source or target, the first "
                f"is row {first['id']} ({first['source'][:60]!r}); raise dataset.max_length, or drop them "
                "(dataset.truncation=drop)"
            )
        return self.without_overlong(rows, long)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Return source ids (`input_ids`), target ids (`target`), and the target ids at the positions that count (`labels`). A target begins with the
        given tokens and ends with the end token, also where the tokenizer writes a language code behind that."""
        given = len(self.given(tokenizer))
        sources, targets = (
            [_cut(ids, max_length, len(behind)) for ids in side]
            for side, behind in zip(self._ids(tokenizer, rows), self._appended_tokens(tokenizer), strict=True)
        )
        flat = [np.asarray([token for ids in side for token in ids], np.int32) for side in (sources, targets)]
        offsets, target_offsets = (np.cumsum([0, *map(len, side)]) for side in (sources, targets))
        labels = flat[1].copy()
        for index in range(given):
            labels[target_offsets[:-1] + index] = IGNORE
        for row, text in enumerate(rows["target"][:]):
            if text is None:
                labels[target_offsets[row] : target_offsets[row + 1]] = IGNORE
        return Encoded(
            {"input_ids": flat[0], "target": flat[1], "labels": labels},
            offsets,
            target_offsets=target_offsets,
            pairs=[
                (source, target or "")
                for source, target in zip(rows["source"][:], rows["target"][:], strict=True)
            ],
        )

    def _ids(self, tokenizer: PreTrainedTokenizerBase, rows: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of all sources and of all targets."""
        self._set_languages(tokenizer)
        sources: list[list[int]] = []
        targets: list[list[int]] = []
        for start in range(0, len(rows), CHUNK):
            at = slice(start, start + CHUNK)
            texts = [self.prefix + text for text in rows["source"][at]]
            sources += tokenizer(texts, verbose=False)["input_ids"]
            references = [text or "" for text in rows["target"][at]]  # None: only the teacher translates it
            targets += tokenizer(text_target=references, verbose=False)["input_ids"]
        if self._target_tokens(tokenizer)[1] is not None:
            given = self.given(tokenizer)
            targets = [[*given, *ids[:-1]] for ids in targets]
        return sources, targets

    def _appended_tokens(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """Return the special tokens that are appended to a source and to a target."""
        self._set_languages(tokenizer)
        empty = list(tokenizer("")["input_ids"])
        end = empty.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in empty else len(empty)
        return empty[end:], [tokenizer.eos_token_id]

    def _set_languages(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the two languages of a multilingual tokenizer.

        Raises:
            ConfigError: the tokenizer does not know them, or they are not configured.
        """
        if code_token := _TARGET.match(self.prefix):
            _require_token(tokenizer, code_token[0])
        if "src_lang" not in dir(tokenizer):
            return
        codes = {
            code.strip("_")  # PLBart's are tokens of another form, __java__
            for name in ("lang_code_to_token", "lang_code_to_id")
            for code in getattr(tokenizer, name, ())
        } or {token for token in tokenizer.all_special_tokens if _CODE.fullmatch(token)}
        for key, code in zip(("source_language", "target_language"), self.languages, strict=True):
            if code is None or code not in codes:
                what = "is not set" if code is None else f"= {code}: the model does not know it"
                raise ConfigError(
                    f"dataset.{key} {what}{suggest(code or '', codes)}; its codes: {listed(sorted(codes))}"
                )
        source, target = self.languages
        if (tokenizer.src_lang, tokenizer.tgt_lang) != (source, target):
            tokenizer.src_lang, tokenizer.tgt_lang = source, target
            tokenizer.init_kwargs |= {"src_lang": source, "tgt_lang": target}  # which are saved

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Return right-padded sources (B, S) with their mask, targets and labels (B, T), and `rows` (B,)."""
        return padded(features, ("input_ids", "attention_mask", "target", "labels"), tokenizer)

    # ---- models ------------------------------------------------------------------------------------------

    def positions(self, labels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Select, of labels (B, T), the decoder positions from which counted tokens are predicted, and those tokens, (N,)."""
        row, column = (labels != IGNORE).nonzero(as_tuple=True)
        return (row, column), labels[row, column]

    def counts(self, labels: Tensor) -> Tensor:
        """Return the number of counted tokens of each row."""
        return (labels != IGNORE).sum(1)

    def signal(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: tuple[Tensor, Tensor]
    ) -> HiddenSignal:
        """Return the last hidden states of the decoder at the picked positions, (N, H), and the head. The decoder reads its start token and the target,
        shifted by one position; the padding of a target follows all counted tokens, which do not attend to it."""
        target = inputs["target"]
        start = torch.full_like(target[:, :1], start_of(model))
        mask = inputs.get("attention_mask")
        encoder_states = model.get_encoder()(
            input_ids=inputs["input_ids"], attention_mask=mask
        ).last_hidden_state
        hidden = model.get_decoder()(
            input_ids=torch.cat([start, target[:, :-1]], 1),
            encoder_hidden_states=encoder_states,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return HiddenSignal(hidden[pick], head_of(model))

    def probe(self, ids: Tensor) -> dict[str, Tensor]:
        """Return the same tokens as source and target."""
        return {"input_ids": ids, "target": ids}

    def own_logits(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Return the logits (L, C) of tokens (1, L)."""
        start = torch.full_like(ids[:, :1], start_of(model))
        return model(input_ids=ids, decoder_input_ids=torch.cat([start, ids[:, :-1]], 1)).logits[0].float()

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """Return the sources with the prefix."""
        return [[self.prefix + text] for text in rows["source"][:]]

    def prompts_and_references(self, rows: datasets.Dataset) -> list[dict[str, str]]:
        """Return the source of each row as `prompt`, and its target as `reference`."""
        pairs = zip(rows["source"][:], rows["target"][:], strict=True)
        return [{"prompt": source, "reference": target} for source, target in pairs]

    def replies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        **options: Any,
    ) -> list[Reply]:
        """Return the translation of each row; with `candidates`, that many consecutive translations of each row."""
        sources, _ = self._ids(tokenizer, rows)
        cut = [_cut(ids, max_length, len(self._appended_tokens(tokenizer)[0])) for ids in sources]
        texts = decoded(tokenizer, self._tokens(model, tokenizer, cut, max_length, **options))
        return [Reply(text, True) for text in texts]

    def greedy(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Encoded, max_length: int
    ) -> list[list[int]]:
        """Return the tokens of a greedy translation of each source, without the given ones."""
        sources = [part.tolist() for part in np.split(encoded.columns["input_ids"], encoded.offsets[1:-1])]
        return self._tokens(model, tokenizer, sources, max_length)

    def _tokens(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[Sequence[int]],
        max_length: int,
        **options: Any,
    ) -> list[list[int]]:
        given = self.given(tokenizer)
        remaining = max(1, max_length - len(given))
        options = {"max_new_tokens": remaining, "batch_size": self.batch} | options
        options["max_new_tokens"] = min(options["max_new_tokens"], remaining)
        return translate(model, tokenizer, sources, given, **options)

    def add_texts(
        self,
        predictions: Predictions,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        max_length: int,
    ) -> Predictions:
        """Add a greedy translation of each source."""
        texts = decoded(tokenizer, self.greedy(model, tokenizer, encoded, max_length))
        return self.with_texts(predictions, texts, encoded)

    def prepare_for_saving(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Write a generation config with which plain `generate` gives the texts that are scored here: greedy, with the language token first, up
        to `max_length` tokens, and without the search and the repetition penalties of the teacher's checkpoint."""
        given = self.given(tokenizer)
        own: Any = greedy_config(model, tokenizer)
        own.forced_bos_token_id = given[0] if given else None
        own.max_new_tokens = max_length
        model.generation_config = own

    def with_texts(self, predictions: Predictions, texts: Sequence[str], encoded: Encoded) -> Predictions:
        """Return the predictions with the text that the model generated for each row."""
        return Predictions(
            predictions.arrays, predictions.labels, predictions.counts, list(texts), encoded.pairs
        )

    def with_completion(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Replace the target."""
        return {**row, "target": text, "id": digest(row["id"], text)[:32]}

    def prompt(self, row: Mapping[str, Any]) -> str:
        """Return the source."""
        return str(row["source"])

    def with_prompt(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return another source, without a target."""
        return {**row, "source": text, "target": None, "id": digest("expanded", text)[:32]}

    # ---- run and report ------------------------------------------------------------------------------------

    def check_rows(self, cfg: Distill, rows: int, gold: int) -> None:
        """Require a complete target for every row, its own or the teacher's.

        Raises:
            ConfigError
        """
        rollout, max_length = cfg.rollout, cfg.dataset.max_length
        if rollout.source != "teacher" and gold < rows:
            raise ConfigError(
                f"{rows - gold} training rows have no target (dataset.labelled, dataset.unlabelled): let the teacher "
                "translate them (rollout=beam), or leave those keys out"
            )
        if rollout.source != "dataset" and rollout.max_new_tokens < max_length:
            raise ConfigError(
                f"rollout.max_new_tokens = {rollout.max_new_tokens} is below dataset.max_length = {max_length}: translations would be truncated, and "
                f"the student would learn to stop in the middle; give rollout.max_new_tokens={max_length}"
            )

    def teacher_findings(
        self,
        rows: datasets.Dataset,
        generate: Callable[[datasets.Dataset], list[Reply]],
        log_prob: Callable[[datasets.Dataset], float],
    ) -> Iterator[str]:
        """Check that the teacher translates, in the direction of the data, and that its scores do not contradict each other."""
        texts = [text for text, _ in generate(rows)]
        if not texts:
            return
        scores = self.text_scores(texts, list(zip(rows["source"][:], rows["target"][:], strict=True)))
        copied = scores["copied"]
        if copied > COPIED:
            yield (
                f"the teacher copies its source: {copied:.0%} of {len(rows)} texts are what it was given; is it for these languages "
                "(dataset.prefix, dataset.source_language, dataset.target_language), or was it trained long enough (teacher.trainer.epochs)?"
            )
        swapped = rows.rename_columns({"source": "target", "target": "source"})
        forward, backward = log_prob(rows), log_prob(swapped)
        if wrong := contradiction(forward, texts, "chrF", scores["chrf"]):
            yield (
                f"the teacher's scores contradict each other: {wrong}. It does not write as it was trained: check decoder_start_token_id and "
                "eos_token_id in its config.json and generation_config.json, its tokenizer files, and dataset.target_language"
            )
        if backward > forward:
            logger.warning(
                "pre-flight: the teacher finds the sources likelier as translations of the targets (%.2f nats a token) than the targets as "
                "those of the sources (%.2f): are dataset.source and dataset.target swapped?",
                backward,
                forward,
            )

    def generate_samples(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        cfg: Measure | None,
    ) -> list[str]:
        """Return translations of all rows by a beam search of `measure.num_beams`; none for a width of 1."""
        if cfg is None or cfg.num_beams < 2:
            return []
        return self.write(model, tokenizer, rows, max_length, num_beams=cfg.num_beams)

    def sample_scores(
        self, samples: Sequence[str], predictions: Predictions, rows: datasets.Dataset
    ) -> dict[str, float]:
        """Compute BLEU and chrF of the beam search."""
        if not samples:
            return {}
        scores = self.text_scores(samples, predictions.pairs)
        return {"bleu_beam": scores["bleu"], "chrf_beam": scores["chrf"]}

    def report_sections(
        self,
        rows: datasets.Dataset,
        predictions: Mapping[str, Predictions],
        samples: Mapping[str, Sequence[str]],
        cfg: Measure | None,
    ) -> dict[str, Any]:
        """Return how BLEU is computed, the width of the beam search, and the student's worst and best translations."""
        return {
            "signature": self.signatures(),
            "beams": cfg.num_beams if cfg is not None else 1,
            "translations": self._extremes(predictions),
        }

    def _extremes(self, predictions: Mapping[str, Predictions]) -> dict[str, list[dict[str, Any]]]:
        """Return the texts in which the student is furthest from the references and nearest to them, by chrF, with the other models' texts."""
        scores = self.each(predictions["student"])
        order = np.argsort(scores, kind="stable")

        def shown(row: int) -> dict[str, Any]:
            source, reference = predictions["student"].pairs[row]
            texts = {name: each.texts[row] for name, each in predictions.items()}
            return {"source": source, "reference": reference, **texts, "score": float(scores[row])}

        worst, best = order[:EXTREMES], order[::-1][:EXTREMES]
        return {"worst": [shown(row) for row in worst], "best": [shown(row) for row in best]}

    def dataset_summary(self, cfg: DatasetConfig, dropped: Mapping[str, int]) -> dict[str, Any]:
        """Add the languages and the prefix."""
        languages = {"source_language": cfg.source_language, "target_language": cfg.target_language}
        return super().dataset_summary(cfg, dropped) | languages | {"prefix": cfg.prefix}

    def snippet_constants(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """Add the prefix, and the given tokens of a target."""
        given = self.given(tokenizer)
        own = {"MAX_LENGTH": max(1, max_length - len(given)), "PREFIX": self.prefix, "GIVEN": given}
        return super().snippet_constants(tokenizer, max_length) | own

    def trivial(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> TrivialModel | None:
        """Return a copy of the source."""
        return Copy()

    # ---- scores ------------------------------------------------------------------------------------------

    def scores(self, predictions: Predictions) -> dict[str, Any]:
        """Return BLEU and chrF of the generated texts, the ratio of their length to that of the references, and the share of copied sources; and the
        scores of `LanguageModel` on the tokens of the references."""
        scores = super().scores(predictions) if "log_prob" in predictions.arrays else {}
        return (
            self.text_scores(predictions.texts, predictions.pairs) | scores if predictions.texts else scores
        )

    def text_scores(self, texts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Return sacrebleu's corpus BLEU and chrF (both 0 to 100), `length_ratio`, and `copied` in [0, 1]."""
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        references = [target for _, target in pairs]
        bleu = BLEU(force=True).corpus_score(list(texts), [references])
        copied = [
            _plain(text) == _plain(source) != _plain(target)
            for text, (source, target) in zip(texts, pairs, strict=True)
        ]
        return {
            "bleu": bleu.score,
            "chrf": CHRF().corpus_score(list(texts), [references]).score,
            "length_ratio": bleu.sys_len / max(1, bleu.ref_len),
            "copied": float(np.mean(copied)),
        }

    def signatures(self) -> dict[str, str]:
        """Return the signatures of sacrebleu, which say how BLEU and chrF are computed."""
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        signatures = {}
        for name, metric in (("bleu", BLEU(force=True)), ("chrf", CHRF())):
            metric.corpus_score(["a"], [["a"]])
            signatures[name] = str(metric.get_signature())
        return signatures

    def each(self, predictions: Predictions) -> np.ndarray:
        """Return the chrF of each text, 0 to 100, (rows,)."""
        from sacrebleu.metrics.chrf import CHRF

        metric = CHRF()
        return np.asarray(
            [
                metric.sentence_score(text, [target]).score
                for text, (_, target) in zip(predictions.texts, predictions.pairs, strict=True)
            ]
        )

    def nearest(self, candidates: Sequence[str], reference: str) -> str:
        """Return the candidate whose smoothed sentence BLEU against the reference is highest; the first of equals."""
        from sacrebleu.metrics.bleu import BLEU

        metric = BLEU(effective_order=True)
        return max(candidates, key=lambda text: metric.sentence_score(text, [reference]).score)

    def per_example_scores(self, predictions: Predictions) -> np.ndarray:
        """Raise an error: BLEU is not a mean over rows; use `sufficient_statistics`."""
        raise NotImplementedError

    def sufficient_statistics(self, predictions: Predictions) -> np.ndarray:
        """Return, for each text, the numbers of right n-grams and of all n-grams, n = 1 … 4, its length and that of the reference, (rows, 10). BLEU is a
        function of their sums."""
        from sacrebleu.metrics.bleu import BLEU

        metric = BLEU(effective_order=True)
        statistics = []
        for text, (_, target) in zip(predictions.texts, predictions.pairs, strict=True):
            score = metric.sentence_score(text, [target])
            statistics.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
        return np.asarray(statistics, np.float64)

    def score_from_statistics(self, sums: np.ndarray) -> float:
        """Compute corpus BLEU, (10,) -> 0 to 100."""
        from sacrebleu.metrics.bleu import BLEU

        right, total = sums[:4].round().astype(int).tolist(), sums[4:8].round().astype(int).tolist()
        length, reference = round(sums[8]), round(sums[9])
        return float(BLEU.compute_bleu(right, total, length, reference, smooth_method="exp").score)

    def chance_predictions(self, predictions: Predictions) -> Predictions | None:
        """Return copies of the sources."""
        if not predictions.texts:
            return None
        return replace(predictions, texts=[source for source, _ in predictions.pairs])

    def retention(self, student: float, teacher: float) -> float:
        """Return the ratio of BLEU scores."""
        return student / teacher if teacher else 0.0


def _require_token(tokenizer: PreTrainedTokenizerBase, code: str) -> None:
    """Require that the tokenizer knows the target language that a prefix names.

    Raises:
        ConfigError
    """
    if tokenizer.unk_token_id not in tokenizer(code, add_special_tokens=False)["input_ids"]:
        return
    codes = sorted(token for token in tokenizer.get_vocab() if _TARGET.fullmatch(token))
    remedy = f"its codes: {listed(codes)}" if codes else "it knows no such codes; leave the prefix out"
    raise ConfigError(
        f"dataset.prefix begins with {code}: the model does not know it{suggest(code, codes)}; {remedy}"
    )


def _begins_with_last(model: PreTrainedModel) -> bool:
    """Return whether the decoder's first input is the last token of the labels, which is the code of their language."""
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    marks = {model.config.pad_token_id, getattr(model.config, "decoder_start_token_id", None)}
    first, last, *_ = (token for token in range(4) if token not in marks)
    return shift is not None and shift(labels=torch.tensor([[first, last]]))[0, 0].item() == last


def _has_older_targets(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer is an NLLB's of transformers before 4.28: it writes the language code behind a text, and the model reads it before."""
    return bool(getattr(tokenizer, "legacy_behaviour", False))


def _cut(ids: list[int], max_length: int, behind: int) -> list[int]:
    """Return at most so many tokens of a text, with the special tokens behind it."""
    return ids if len(ids) <= max_length else [*ids[: max_length - behind], *ids[len(ids) - behind :]]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _require_sacrebleu() -> None:
    """Require the package that scores translations.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{error}: translations are scored by it; pip install 'kdcli[translation]'"
        ) from None

"""Text generation by a decoder: every token of a completion, or of plain text, is predicted from what stands before it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import datasets
import numpy as np
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.measure import Measure
from kdcli.config.schema import Distill
from kdcli.errors import ConfigError, DataError, listed
from kdcli.files import digest
from kdcli.generation import (
    Reply,
    ends_of,
    max_prompt_tokens,
    reply,
    require_room,
)
from kdcli.prompts import append_nothing, appended
from kdcli.signals import HiddenSignal
from kdcli.tasks.base import Predictions
from kdcli.tasks.causal_lm.alignment import NOWHERE, SPAN, counted_starts, token_starts
from kdcli.tasks.causal_lm.chat import Chat, Rendered, last_answer
from kdcli.tasks.causal_lm.checks import contradicting_completions, require_causal, require_separation
from kdcli.tasks.causal_lm.conversations import shown_turn
from kdcli.tasks.causal_lm.notes import log_notes, refusal
from kdcli.tasks.causal_lm.presentation import PRESENTATION
from kdcli.tasks.causal_lm.rows import CausalLMRows
from kdcli.tasks.causal_lm.spec import SPEC
from kdcli.tasks.causal_lm.special_tokens import without_repeated_tokens
from kdcli.tasks.causal_lm.trivial import BigramModel
from kdcli.tasks.encoded import Encoded, padded
from kdcli.tasks.language_model import LanguageModel, before_head, tokenize
from kdcli.tasks.rows import IGNORE, log_level
from kdcli.tasks.trivial import TrivialModel
from kdcli.text_metrics import text_scores

logger = logging.getLogger(__name__)
CHUNK = 1000
"""The number of rows in a call of the tokenizer."""
SHOWN = 10
"""The number of prompts that the report shows."""
PROMPT = 100
"""The number of characters of plain text that are used as a prompt."""


class CausalLM(LanguageModel):
    """The headline metric is the mean log-probability of a reference token, in nats.

    Rows hold `prompt` and `completion` (of which only the completion counts), `messages` (of which the assistant's turns count),
    or `texts`, pieces of documents packed into one row, which do not attend to each other (all tokens but the first of a piece
    count).
    """

    spec = SPEC
    row_schema = CausalLMRows
    presentation = PRESENTATION
    aligns = True
    head = ("ForCausalLM", "LMHeadModel")
    batch = 8
    checked_tokens = 64
    auto = "AutoModelForCausalLM"
    packs = False
    """Whether rows hold several documents; set by `prepare`."""
    drops_refused = False
    """Whether `prepare` drops the conversations that the chat template refuses (`dataset.bad_rows=drop`)."""
    refused = 0
    """The number of rows that `prepare` has dropped for that."""
    writes = True
    scores_untrained = True

    @classmethod
    def from_config(cls, cfg: DatasetConfig, labels: Sequence[str]) -> Self:
        """Return the task for a data set, with its rules for long and for refused rows."""
        task = super().from_config(cfg, labels)
        task.truncation = cfg.truncation or "cut"
        task.drops_refused = cfg.bad_rows == "drop"
        return task

    def __init__(self, labels: Sequence[str] = (), chat: bool = False):
        super().__init__(labels, chat)
        self.removed: Counter[str] = Counter()
        """The number of rows from which `prepare` has removed a special token, by the token."""

    def supports_architecture(self, architecture: type[PreTrainedConfig]) -> bool:
        """Return whether transformers has a decoder of this architecture, which is none for masked LM (BERT, RoBERTa): those attend to the token to predict."""
        masked = architecture in AutoModelForMaskedLM._model_mapping
        return super().supports_architecture(architecture) and not masked

    def check_loaded(self, model: PreTrainedModel) -> None:
        """Check the output head, and that the model is a decoder. For packed rows it must separate the documents of a row.

        Raises:
            ModelError: it reads the token that it predicts.
        """
        super().check_loaded(model)
        require_causal(model)
        if self.packs:
            require_separation(model)

    # ---- rows -> tokens ----------------------------------------------------------------------------------

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Pack plain text into rows of at most `max_length` tokens: long documents are cut, short ones share a row. Rows that were packed
        with another tokenizer are cut further if they are longer with this one. Conversations and completions that are too
        long are dropped or refused, unless `truncation` is cut. Special tokens that are written around a text anyway are removed from it.

        Raises:
            ConfigError: rows of `max_length` tokens have no position that counts.
            DataError: rows are too long, or all are dropped.
        """
        self.chat = self.chat or "messages" in rows.column_names
        is_chat = self.chat and not {"text", "texts"} & {*rows.column_names}
        if is_chat:
            Chat(tokenizer).require()
            rows = self._accepted(tokenizer, rows) if self.drops_refused else rows
        rows, removed = without_repeated_tokens(rows, tokenizer, is_chat)
        self.removed += removed
        if "text" in rows.column_names:
            groups = [[(text, True) for text in rows["text"][:]]]
        elif "texts" in rows.column_names:
            groups = [list(zip(row["texts"], row["ends"], strict=True)) for row in rows]
        else:
            return (
                rows
                if self.truncation == "cut" or not len(rows)
                else self._short(tokenizer, rows, max_length)
            )
        self.packs = True
        packed: list[dict[str, Any]] = []
        edges = len(_begin(tokenizer)) + 1  # and the end of text
        step = max_length - edges
        if step < 2:
            raise ConfigError(
                f"dataset.max_length = {max_length}: rows of plain text need at least {edges + 2} tokens, or there is none "
                "before another; raise it"
            )
        for group in groups:
            remaining = 0
            for document, last in group:
                spans = tokenize(tokenizer, [document], special=False)["offset_mapping"][0]
                for start in range(0, len(spans), step):
                    piece = spans[start : start + step]
                    if len(piece) + edges > remaining:
                        packed.append({"texts": [], "ends": []})
                        remaining = max_length
                    packed[-1]["texts"].append(document[piece[0][0] : piece[-1][1]])
                    packed[-1]["ends"].append(last and start + step >= len(spans))
                    remaining -= len(piece) + edges
        return datasets.Dataset.from_list(
            [{"id": digest(part["texts"], part["ends"])[:32], **part} for part in packed]
        )

    def _accepted(self, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset) -> datasets.Dataset:
        """Drop the conversations that the chat template refuses, and count them.

        Raises:
            DataError: it refuses all.
        """
        turns = self._conversations(rows) or []
        rendered = self._render(tokenizer, rows, turns, [True] * len(turns), generated=False)
        accepted = [index for index, each in enumerate(rendered) if isinstance(each, Rendered)]
        if len(accepted) == len(turns):
            return rows
        if not accepted:
            raise refusal(rows, turns, rendered)
        self.refused += len(turns) - len(accepted)
        logger.log(
            log_level(len(turns) - len(accepted), len(turns)),
            "%d of %d rows are dropped, because the chat template refuses them (dataset.bad_rows=drop)",
            len(turns) - len(accepted),
            len(turns),
        )
        return rows.select(accepted)

    def dataset_summary(self, cfg: DatasetConfig, dropped: Mapping[str, int]) -> dict[str, Any]:
        """Add the number of rows that the chat template refuses."""
        refused = {"refused by the chat template": self.refused} if self.refused else {}
        return super().dataset_summary(cfg, {**dropped, **refused})

    def _short(
        self, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, max_length: int
    ) -> datasets.Dataset:
        overlong = self.lengths(tokenizer, rows) > max_length
        if self.truncation == "refuse" and overlong.any():
            raise DataError(
                f"{overlong.sum()} of {len(rows)} rows have more than dataset.max_length = {max_length} tokens, the first is row "
                f"{rows[int(overlong.argmax())]['id']}; raise dataset.max_length, or cut or drop them (dataset.truncation=cut, =drop)"
            )
        short = self.without_overlong(rows, overlong)
        if not len(short):
            raise DataError(
                f"all {len(rows)} rows have more than dataset.max_length = {max_length} tokens; raise it"
            )
        return short

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Return the token ids, and the labels: the ids at the positions that count.

        Rows with completions that a model wrote may have a column `ends`: whether the completion is complete. If it is not, its end token does
        not count, and the row may have no position that counts.

        Raises:
            DataError: no token of a row counts (its prompt fills the context), or the chat template is missing, or does not
                distinguish the roles.
        """
        if "texts" in rows.column_names:
            return self._encode_texts(tokenizer, rows, max_length)
        turns = self._conversations(rows)
        written = "ends" in rows.column_names
        ends = rows["ends"][:] if written else [True] * len(rows)
        if turns is not None:
            either = self._render(tokenizer, rows, turns, ends, written)
            rendered = [each for each in either if isinstance(each, Rendered)]
            if len(rendered) < len(either):
                raise refusal(rows, turns, either)
        else:
            rendered = [
                Rendered(prompt + completion, [(0, len(prompt), len(prompt + completion))], Counter())
                for prompt, completion in zip(rows["prompt"][:], rows["completion"][:], strict=True)
            ]
        behind = appended(tokenizer) if turns is None else 0
        ids: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        for start in range(0, len(rendered), CHUNK):
            chunk = rendered[start : start + CHUNK]
            encodings = tokenize(tokenizer, [each.text for each in chunk], special=turns is None)
            for (_, spans, _), tokens, offsets, complete in zip(
                chunk,
                encodings["input_ids"],
                encodings["offset_mapping"],
                ends[start : start + CHUNK],
                strict=True,
            ):
                row = np.asarray(tokens[: len(tokens) - behind], np.int32)
                span = np.asarray(offsets, np.int64).reshape(-1, 2)[: len(row)]
                real = span[:, 1] > span[:, 0]
                counted = np.zeros(len(row), bool)
                begins = np.full(len(row), NOWHERE)
                for turn, begin, end in spans:
                    within = real & (span[:, 1] > begin) & (span[:, 0] < end)
                    counted |= within
                    begins[within] = token_starts(span, begin)[within] + turn * SPAN
                if turns is None and complete and tokenizer.eos_token_id is not None:
                    row = np.append(row, np.int32(tokenizer.eos_token_id))
                    counted = np.append(counted, True)
                    begins = np.append(begins, spans[0][2] - spans[0][1])
                starts.append(begins[:max_length])
                labels.append(np.where(counted, row, IGNORE)[:max_length])
                ids.append(row[:max_length])
        empty = (
            [] if written else [index for index, row in enumerate(labels) if not (row[1:] != IGNORE).any()]
        )
        if empty:
            refused = turns[empty[0]] if turns is not None else []
            prompt = refused[last_answer(refused) - 1]["content"] if refused else rendered[empty[0]].text
            raise DataError(
                f"row {rows['id'][empty[0]]} ({prompt[:60]!r}): no token of its completion is within dataset.max_length = "
                f"{max_length} tokens: the prompt fills them; so it is with {len(empty)} of {len(labels)} rows. Raise dataset.max_length, "
                "or drop longer rows (dataset.truncation=drop)"
            )
        encoded = _encoded(ids, labels, starts)
        encoded.notes = dict(sum((each.notes for each in rendered), Counter()))
        return encoded

    def _render(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Any,
        turns: Sequence[list[dict[str, str]]],
        ends: Sequence[bool],
        generated: bool,
    ) -> list[Rendered | DataError]:
        """Return the conversations as the chat template renders them, or the error of one that it refuses."""
        chat, rendered = Chat(tokenizer), list[Rendered | DataError]()
        chat.require()
        for conversation, tools, end in zip(turns, self._tools(rows), ends, strict=True):
            try:
                rendered.append(chat.render(conversation, tools, end, generated))
            except DataError as error:
                rendered.append(error)
        return rendered

    def _encode_texts(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Concatenate the pieces of a row. `position_ids` restart with each piece, which separates them."""
        begin = _begin(tokenizer)
        ids: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        for texts, ends in zip(rows["texts"][:], rows["ends"][:], strict=True):
            row: list[int] = []
            position_ids: list[int] = []
            counted: list[bool] = []
            begins: list[int] = []
            encodings = tokenize(tokenizer, list(texts), special=False)
            for index, (text, end) in enumerate(zip(texts, ends, strict=True)):
                piece = [*begin, *encodings["input_ids"][index]]
                span = np.asarray(encodings["offset_mapping"][index], np.int64).reshape(-1, 2)
                begins += [NOWHERE] * len(begin) + (token_starts(span, 0) + index * SPAN).tolist()
                if end and tokenizer.eos_token_id is not None:
                    piece.append(tokenizer.eos_token_id)
                    begins.append(len(text) + index * SPAN)
                row += piece
                position_ids += range(len(piece))
                counted += [False] + [True] * (len(piece) - 1)
            line = np.asarray(row, np.int32)
            ids.append(line[:max_length])
            labels.append(np.where(counted, line, IGNORE)[:max_length])
            positions.append(np.asarray(position_ids, np.int32)[:max_length])
            starts.append(np.asarray(begins, np.int32)[:max_length])
        return _encoded(ids, labels, starts, positions)

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Return right-padded inputs and labels (B, L), and `rows` (B,). Packed rows have position_ids in place of a mask."""
        mask = "position_ids" if "position_ids" in features[0] else "attention_mask"
        batch = padded(features, ("input_ids", "labels", mask), tokenizer)
        batch["labels"][:, 0] = IGNORE  # no token precedes it
        return batch

    # ---- models ------------------------------------------------------------------------------------------

    def positions(self, labels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Select, of labels (B, L), the positions from which counted tokens are predicted, and those tokens, (N,)."""
        row, column = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        return (row, column), labels[row, column + 1]

    def counts(self, labels: Tensor) -> Tensor:
        """Return the number of counted tokens of each row."""
        return (labels[:, 1:] != IGNORE).sum(1)

    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return all counted tokens."""
        labels = encoded.columns["labels"].copy()
        labels[encoded.offsets[:-1]] = IGNORE  # no token precedes the first one of a row
        return super().targets(Encoded({"labels": labels}, encoded.offsets))

    def aligned(self, teacher: Encoded, student: Encoded) -> list[tuple[np.ndarray, np.ndarray]]:
        """Match tokens by the character at which they begin."""
        alignments = []
        for row in range(len(student)):
            teacher_starts, student_starts = counted_starts(teacher, row), counted_starts(student, row)
            _, of_teacher, of_student = np.intersect1d(teacher_starts, student_starts, return_indices=True)
            index, matched = np.zeros(len(student_starts), np.int64), np.zeros(len(student_starts), bool)
            index[of_student], matched[of_student] = of_teacher, student_starts[of_student] >= 0
            alignments.append((index, matched))
        return alignments

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """Return the prompts, rendered by the chat template if there is one; of plain text its beginning."""
        conversations = self._conversations(rows)
        if conversations is None:
            return [[row["prompt"]] for row in self.prompts_and_references(rows)]
        chat = Chat(tokenizer)
        return [
            [chat.prompt(turns, tools)] for turns, tools in zip(conversations, self._tools(rows), strict=True)
        ]

    def prompts_and_references(self, rows: datasets.Dataset) -> list[dict[str, str]]:
        """Return the `prompt` and the `reference` of each row, as the report shows them."""
        if "texts" in rows.column_names:
            return [
                {"prompt": texts[0][:PROMPT], "reference": texts[0][PROMPT : 5 * PROMPT]}
                for texts in rows["texts"][:]
            ]
        conversations = self._conversations(rows)
        if conversations is None:
            pairs = zip(rows["prompt"][:], rows["completion"][:], strict=True)
            return [{"prompt": prompt, "reference": completion} for prompt, completion in pairs]
        shown = []
        for turns in conversations:
            last = last_answer(turns)
            prompt = "\n\n".join(map(shown_turn, turns[:last]))
            shown.append({"prompt": prompt, "reference": shown_turn(turns[last])})
        return shown

    def replies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        **options: Any,
    ) -> list[Reply]:
        """Generate after the prompt of each row, to the end of the text or of the turn."""
        prompts = [prompt for (prompt,) in self.inputs(rows, tokenizer)]
        ends = self.end_tokens(tokenizer)
        return reply(
            model, tokenizer, prompts, special=not self.chat, max_length=max_length, ends=ends, **options
        )

    def prepare_for_saving(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Set the end tokens, so that plain `generate` stops where a completion ends, also at the end of a turn of the chat template. The tokenizer
        then appends no end token to a prompt."""
        append_nothing(tokenizer)
        own: Any = model.generation_config
        ends = ends_of(model, tokenizer, self.end_tokens(tokenizer))
        own.eos_token_id = ends[0] if len(ends) == 1 else ends or None

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the special token with which the chat template closes an assistant's turn, if rows are conversations."""
        if not self.chat:
            return []
        added = tokenizer.added_tokens_decoder
        ids = tokenizer(Chat(tokenizer).closing, add_special_tokens=False)["input_ids"]
        return [token for token in ids if token in added and added[token].special][:1]

    def prompt(self, row: Mapping[str, Any]) -> str:
        """Return the user's first turn, or the prompt."""
        if "messages" in row:
            return next((turn["content"] for turn in row["messages"] if turn["role"] == "user"), "")
        return str(row["prompt"])

    def with_prompt(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return a conversation that begins with another turn of the user, or another prompt."""
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        own = {"messages": turns} if "messages" in row else {"prompt": text, "completion": ""}
        return {**row, **own, "id": digest("expanded", text)[:32]}

    def with_completion(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Replace the last turn of the assistant, or the completion."""
        answer = (
            {
                "messages": [
                    *row["messages"][: last_answer(row["messages"])],
                    {"role": "assistant", "content": text},
                ]
            }
            if "messages" in row
            else {"completion": text}
        )
        return {**row, **answer, "id": digest(row["id"], text)[:32]}

    # ---- run and report ------------------------------------------------------------------------------------

    def check_rows(self, cfg: Distill, rows: int, gold: int) -> None:
        """Require prompts for a rollout.

        Raises:
            ConfigError
        """
        if self.packs and cfg.rollout.source != "dataset":
            raise ConfigError(
                f"rollout.source = {cfg.rollout.source}: plain text has no prompts to answer; name dataset.prompt and "
                "dataset.completion, or dataset.messages"
            )

    def check_models(self, cfg: Distill, models: Iterable[PreTrainedConfig], generate: bool) -> None:
        """Require positions for the prompts and completions of rollouts and measurement.

        Raises:
            ConfigError
        """
        for config in models:
            if generate and cfg.rollout.source != "dataset":
                max_prompt_tokens(config, cfg.rollout.max_new_tokens, "rollout.max_new_tokens")
            if cfg.measure is not None:
                require_room(cfg.measure, config)

    def warn_of_truncation(self, encoded: Encoded, max_length: int) -> None:
        """Log how many turns and tokens count, and which special tokens were removed. Warn if completions are truncated: their ends are not learned."""
        if self.removed:
            logger.info(
                "special tokens at the edges of texts are removed, because the tokenizer or the chat template writes them: %s",
                listed(f"{token} ({rows:,} rows)" for token, rows in self.removed.items()),
            )
        if encoded.notes:
            log_notes(encoded.notes, int(self.targets(encoded)[1].sum()), int(encoded.offsets[-1]))
        if not self.packs and (full := int((np.diff(encoded.offsets) >= max_length).sum())):
            logger.log(
                log_level(full, len(encoded)),
                "%d of %d training rows fill dataset.max_length = %d tokens: longer rows are cut, and the ends of their completions are not "
                "learned; raise it, or drop longer rows (dataset.truncation=drop)",
                full, len(encoded), max_length,
            )  # fmt: skip

    def generate_samples(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        cfg: Measure | None,
    ) -> list[str]:
        """Return greedy completions of the first prompts, of at most `measure.new_tokens` tokens each."""
        if cfg is None:
            return []
        some = rows.select(range(min(cfg.generations, len(rows))))
        options = {"max_new_tokens": cfg.new_tokens, "batch_size": self.batch}
        return [text.strip() for text in self.write(model, tokenizer, some, max_length, **options)]

    def sample_scores(
        self, samples: Sequence[str], predictions: Predictions, rows: datasets.Dataset
    ) -> dict[str, float]:
        """Compute ROUGE-L against the references, and the diversity of the completions. Warn if the completions contradict the perplexity."""
        if not samples:
            return {}
        references = [row["reference"] for row in self.prompts_and_references(rows)]
        replies = [Reply(text, False) for text in samples]
        if wrong := contradicting_completions(float(predictions["log_prob"].mean()), replies, references):
            logger.warning("scores of a model contradict each other: %s", wrong)
        return text_scores(samples, references)

    def teacher_findings(
        self,
        rows: datasets.Dataset,
        generate: Callable[[datasets.Dataset], list[Reply]],
        log_prob: Callable[[datasets.Dataset], float],
    ) -> Iterator[str]:
        """Check that what the teacher writes does not contradict the probability that it gives to the references."""
        if replies := generate(rows):
            references = [row["reference"] for row in self.prompts_and_references(rows)]
            if wrong := contradicting_completions(log_prob(rows), replies, references):
                yield f"the teacher's scores contradict each other: {wrong}"

    def report_sections(
        self,
        rows: datasets.Dataset,
        predictions: Mapping[str, Predictions],
        samples: Mapping[str, Sequence[str]],
        cfg: Measure | None,
    ) -> dict[str, Any]:
        """Return the number of counted tokens, and for some prompts the reference and the completion of each model."""
        count = min([SHOWN, *map(len, samples.values())]) if samples else 0
        chosen = rows.select(range(count))
        generations: list[dict[str, Any]] = [
            row | {name: texts[index] for name, texts in samples.items()}
            for index, row in enumerate(self.prompts_and_references(chosen))
        ]
        for row, turns in zip(generations, self._conversations(chosen) or (), strict=False):
            prompt = turns[: last_answer(turns)]
            row["turns"] = [{"role": turn["role"], "text": shown_turn(turn)} for turn in prompt]
        return {"test_tokens": len(predictions["student"].labels), "generations": generations}

    def trivial(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> TrivialModel | None:
        """Return a model of the bigrams of the student's tokens."""
        return BigramModel(len(tokenizer))

    def _conversations(self, rows: datasets.Dataset) -> list[list[dict[str, str]]] | None:
        """Return the turns of each row; None if rows are not conversations."""
        if "messages" in rows.column_names:
            conversations: list[list[dict[str, str]]] = rows["messages"][:]
            return conversations
        if not self.chat or "prompt" not in rows.column_names:
            return None
        return [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            for prompt, completion in zip(rows["prompt"][:], rows["completion"][:], strict=True)
        ]

    def _tools(self, rows: datasets.Dataset) -> list[str | None]:
        """Return the tools of each conversation, as JSON."""
        return rows["tools"][:] if "tools" in rows.column_names else [None] * len(rows)

    def signal(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: tuple[Tensor, Tensor]
    ) -> HiddenSignal:
        """Return the input of the output layer at the picked positions, (N, H), and that layer."""
        without_cache = {"use_cache": False} if hasattr(model.config.get_text_config(), "use_cache") else {}
        return before_head(model, {**inputs, **without_cache}, pick)


def _encoded(
    ids: list[np.ndarray],
    labels: list[np.ndarray],
    starts: list[np.ndarray],
    positions: list[np.ndarray] | None = None,
) -> Encoded:
    columns = {"input_ids": ids, "labels": labels, "starts": starts}
    columns |= {"position_ids": positions} if positions else {}
    flat = {
        key: np.concatenate(parts).astype(np.int32) if parts else np.empty(0, np.int32)
        for key, parts in columns.items()
    }
    return Encoded(flat, np.cumsum([0, *map(len, ids)]))


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token with which this tokenizer begins a text; empty if there is none."""
    ids: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    return ids[: len(ids) - appended(tokenizer)][:1]

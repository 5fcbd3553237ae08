"""Text generation by a decoder: every token of a completion, or of plain text, is predicted from what stands before it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.schema import Distill, Measure
from kdcli.errors import ConfigError, DataError, ModelError
from kdcli.files import digest
from kdcli.generation import Reply, ends_of, max_prompt_tokens, reply, require_room
from kdcli.signals import HiddenSignal
from kdcli.tasks.base import Predictions
from kdcli.tasks.causal_lm.chat import apply_template, check_template, closing, last_answer, render
from kdcli.tasks.causal_lm.presentation import PRESENTATION
from kdcli.tasks.causal_lm.rows import CausalLMRows
from kdcli.tasks.causal_lm.spec import SPEC
from kdcli.tasks.encoded import Encoded, padded
from kdcli.tasks.language_model import CLOSE, LanguageModel, head_of, tokenize
from kdcli.tasks.rows import IGNORE, log_level
from kdcli.text_metrics import text_scores

logger = logging.getLogger(__name__)
CHUNK = 1000
"""Rows handed to the tokenizer at once."""
SHOWN = 10
"""Prompts that the report shows."""
PROMPT = 100
"""Characters of plain text that a model is given to go on from."""
SPAN = 2**20
"""Characters that one turn, or one document in a packed row, may have."""
NOWHERE = -(2**30)
"""Where a token begins that begins at no character."""


class CausalLM(LanguageModel):
    """The headline metric is the mean log-probability of a reference token, in nats.

    Rows hold `prompt` and `completion` (of which only the completion counts), `messages` (what the assistant says counts),
    or `texts`, pieces of documents packed into one row, which do not see each other (all tokens but the first of a
    piece count).
    """

    spec = SPEC
    row_schema = CausalLMRows
    presentation = PRESENTATION
    aligns = True
    head = ("ForCausalLM", "LMHeadModel")
    batch = 8
    auto = "AutoModelForCausalLM"
    packs = False
    """Rows hold several documents (since `prepare`)."""
    writes = True

    @classmethod
    def from_config(cls, cfg: DatasetConfig, labels: Sequence[str]) -> Self:
        """The task for a data set, with what becomes of its long rows."""
        task = super().from_config(cfg, labels)
        task.truncation = cfg.truncation or "cut"
        return task

    def supports_architecture(self, kind: type[PreTrainedConfig]) -> bool:
        """Not what is for masked LM too (BERT, RoBERTa): as it is born it sees the token that it shall predict."""
        return super().supports_architecture(kind) and kind not in AutoModelForMaskedLM._model_mapping

    def load(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, bool]:
        """A decoder with its output head, which keeps the documents of a row apart if rows hold several."""
        model, new = super().load(path, **kwargs)
        if self.packs:
            _check_apart(model)
        return model, new

    # ---- rows -> tokens ----------------------------------------------------------------------------------

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Plain text becomes rows of at most `max_length` tokens: long documents are cut, short ones share a row. Rows that were made so
        with another tokenizer are cut further where they are longer with this one: both can read them whole. Conversations and completions
        stay, but for those that are to be dropped.

        Raises:
            ConfigError: rows of so few tokens have none that counts.
            DataError: all are dropped.
        """
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
            room = 0
            for whole, last in group:
                spans = tokenize(tokenizer, [whole], special=False)["offset_mapping"][0]
                for start in range(0, len(spans), step):
                    piece = spans[start : start + step]
                    if len(piece) + edges > room:
                        packed.append({"texts": [], "ends": []})
                        room = max_length
                    packed[-1]["texts"].append(whole[piece[0][0] : piece[-1][1]])
                    packed[-1]["ends"].append(last and start + step >= len(spans))
                    room -= len(piece) + edges
        return datasets.Dataset.from_list(
            [{"id": digest(part["texts"], part["ends"])[:32], **part} for part in packed]
        )

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
        """Token ids, and the labels: the ids themselves where they count.

        Rows that a model has answered since may have `ends`: whether the answer came to its end, which does not count where
        it did not. Of such a row nothing need count.

        Raises:
            DataError: nothing of a row counts (its prompt fills the context), or the chat template is missing, or does
                not tell the roles apart.
        """
        if "texts" in rows.column_names:
            return self._encode_texts(tokenizer, rows, max_length)
        turns = self._conversations(rows)
        written = "ends" in rows.column_names
        ends = rows["ends"][:] if written else [True] * len(rows)
        if turns is not None:
            check_template(tokenizer)
            close = closing(tokenizer)
            rendered = []
            for name, conversation, end in zip(rows["id"][:], turns, ends, strict=True):
                try:
                    rendered.append(render(tokenizer, conversation, close, end))
                except DataError as error:
                    first = conversation[0]["content"][:60]
                    raise DataError(f"row {name} ({first!r}): {error.message}") from None
        else:
            rendered = [
                (prompt + completion, [(len(prompt), len(prompt + completion))])
                for prompt, completion in zip(rows["prompt"][:], rows["completion"][:], strict=True)
            ]
        ids: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        for start in range(0, len(rendered), CHUNK):
            chunk = rendered[start : start + CHUNK]
            found = tokenize(tokenizer, [text for text, _ in chunk], special=turns is None)
            for (_, spans), tokens, offsets, whole in zip(
                chunk,
                found["input_ids"],
                found["offset_mapping"],
                ends[start : start + CHUNK],
                strict=True,
            ):
                row = np.asarray(tokens, np.int32)
                where = np.asarray(offsets, np.int64).reshape(-1, 2)
                real = where[:, 1] > where[:, 0]
                counted = np.zeros(len(row), bool)
                places = np.full(len(row), NOWHERE)
                for number, (begin, end) in enumerate(spans):
                    within = real & (where[:, 1] > begin) & (where[:, 0] < end)
                    counted |= within
                    places[within] = _places(where, begin)[within] + number * SPAN
                if turns is None and whole and tokenizer.eos_token_id is not None:
                    if row.size == 0 or row[-1] != tokenizer.eos_token_id:
                        row = np.append(row, np.int32(tokenizer.eos_token_id))
                        counted, places = np.append(counted, True), np.append(places, 0)
                    counted[-1], places[-1] = True, spans[0][1] - spans[0][0]
                starts.append(places[:max_length])
                labels.append(np.where(counted, row, IGNORE)[:max_length])
                ids.append(row[:max_length])
        lost = [] if written else [at for at, row in enumerate(labels) if not (row[1:] != IGNORE).any()]
        if lost:
            said = turns[lost[0]] if turns is not None else []
            shown = said[last_answer(said) - 1]["content"] if said else rendered[lost[0]][0]
            raise DataError(
                f"row {rows['id'][lost[0]]} ({shown[:60]!r}): no token of its completion is within dataset.max_length = "
                f"{max_length} tokens: the prompt fills them; so it is with {len(lost)} of {len(labels)} rows. Raise dataset.max_length, "
                "or leave out what is longer (dataset.truncation=drop)"
            )
        return _encoded(ids, labels, starts)

    def _encode_texts(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Pieces one after the other; `position_ids` begin anew with each, which is what keeps them apart."""
        begin = _begin(tokenizer)
        ids: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        for texts, ends in zip(rows["texts"][:], rows["ends"][:], strict=True):
            row: list[int] = []
            places: list[int] = []
            counted: list[bool] = []
            at: list[int] = []
            found = tokenize(tokenizer, list(texts), special=False)
            for number, (text, end) in enumerate(zip(texts, ends, strict=True)):
                piece = [*begin, *found["input_ids"][number]]
                where = np.asarray(found["offset_mapping"][number], np.int64).reshape(-1, 2)
                at += [NOWHERE] * len(begin) + (_places(where, 0) + number * SPAN).tolist()
                if end and tokenizer.eos_token_id is not None:
                    piece.append(tokenizer.eos_token_id)
                    at.append(len(text) + number * SPAN)
                row += piece
                places += range(len(piece))
                counted += [False] + [True] * (len(piece) - 1)
            line = np.asarray(row, np.int32)
            ids.append(line[:max_length])
            labels.append(np.where(counted, line, IGNORE)[:max_length])
            positions.append(np.asarray(places, np.int32)[:max_length])
            starts.append(np.asarray(at, np.int32)[:max_length])
        return _encoded(ids, labels, starts, positions)

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Right-padded inputs and labels (B, L), and `rows` (B,). Packed rows have position_ids in place of a mask."""
        mask = "position_ids" if "position_ids" in features[0] else "attention_mask"
        batch = padded(features, ("input_ids", "labels", mask), tokenizer)
        batch["labels"][:, 0] = IGNORE  # nothing stands before it
        return batch

    # ---- models ------------------------------------------------------------------------------------------

    def positions(self, labels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(B, L) -> where the model stands when it predicts a counted token, and those tokens, (N,)."""
        row, column = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        return (row, column), labels[row, column + 1]

    def counts(self, labels: Tensor) -> Tensor:
        """Counted tokens of each row."""
        return (labels[:, 1:] != IGNORE).sum(1)

    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """All counted tokens."""
        labels = encoded.columns["labels"].copy()
        labels[encoded.offsets[:-1]] = IGNORE  # nothing stands before a row's first token
        return super().targets(Encoded({"labels": labels}, encoded.offsets))

    def aligned(self, teacher: Encoded, student: Encoded) -> list[tuple[np.ndarray, np.ndarray]]:
        """By the character at which each token begins."""
        alignments = []
        for row in range(len(student)):
            teacher_starts, student_starts = _begun(teacher, row), _begun(student, row)
            _, of_teacher, of_student = np.intersect1d(teacher_starts, student_starts, return_indices=True)
            index, matched = np.zeros(len(student_starts), np.int64), np.zeros(len(student_starts), bool)
            index[of_student], matched[of_student] = of_teacher, student_starts[of_student] >= 0
            alignments.append((index, matched))
        return alignments

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """The prompts, with the template's tokens where there is one; of plain text its beginning."""
        conversations = self._conversations(rows)
        if conversations is None:
            return [[row["prompt"]] for row in self.prompts_and_references(rows)]
        return [
            [apply_template(tokenizer, turns[: last_answer(turns)], add_generation_prompt=True)]
            for turns in conversations
        ]

    def prompts_and_references(self, rows: datasets.Dataset) -> list[dict[str, str]]:
        """What people see of each row: its `prompt`, and the `reference` that stands there."""
        if "texts" in rows.column_names:
            return [
                {"prompt": texts[0][:PROMPT], "reference": texts[0][PROMPT : 5 * PROMPT]}
                for texts in rows["texts"][:]
            ]
        conversations = self._conversations(rows)
        if conversations is None:
            pairs = zip(rows["prompt"][:], rows["completion"][:], strict=True)
            return [{"prompt": prompt, "reference": completion} for prompt, completion in pairs]
        found = []
        for turns in conversations:
            last = last_answer(turns)
            said = [turn["content"] for turn in turns[:last]]
            found.append({"prompt": "\n\n".join(said), "reference": turns[last]["content"]})
        return found

    def replies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        **options: Any,
    ) -> list[Reply]:
        """What a decoder writes after each row's prompt, to its end of text or of its turn."""
        prompts = [prompt for (prompt,) in self.inputs(rows, tokenizer)]
        ends = self._ends(tokenizer)
        return reply(
            model, tokenizer, prompts, special=not self.chat, max_length=max_length, ends=ends, **options
        )

    def prepare_for_saving(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """So that plain `generate` stops where an answer ends here: also where the chat template closes a turn."""
        own: Any = model.generation_config
        ends = ends_of(model, tokenizer, self._ends(tokenizer))
        own.eos_token_id = ends[0] if len(ends) == 1 else ends or None

    def _ends(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The special token with which the chat template closes the assistant's turn, if the rows are conversations."""
        if not self.chat:
            return []
        added = tokenizer.added_tokens_decoder
        ids = tokenizer(closing(tokenizer), add_special_tokens=False)["input_ids"]
        return [token for token in ids if token in added and added[token].special][:1]

    def prompt(self, row: Mapping[str, Any]) -> str:
        """The user's first turn, or the prompt."""
        if "messages" in row:
            return next((turn["content"] for turn in row["messages"] if turn["role"] == "user"), "")
        return str(row["prompt"])

    def with_prompt(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """A conversation that begins with another turn of the user, or another prompt."""
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        own = {"messages": turns} if "messages" in row else {"prompt": text, "completion": ""}
        return {**row, **own, "id": digest("expanded", text)[:32]}

    def with_completion(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """The row with another answer to its prompt: the last turn of the assistant, or the completion."""
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
        """There are prompts, if a rollout is to complete them.

        Raises:
            ConfigError
        """
        if self.packs and cfg.rollout.source != "dataset":
            raise ConfigError(
                f"rollout.source = {cfg.rollout.source}: plain text has no prompts to answer; name dataset.prompt and "
                "dataset.completion, or dataset.messages"
            )

    def check_models(self, cfg: Distill, models: Iterable[PreTrainedConfig], generate: bool) -> None:
        """They have positions for what they are to write in the run.

        Raises:
            ConfigError
        """
        for config in models:
            if generate and cfg.rollout.source != "dataset":
                max_prompt_tokens(config, cfg.rollout.max_new_tokens, "rollout.max_new_tokens")
            if cfg.measure is not None:
                require_room(cfg.measure, config)

    def warn_of_truncation(self, encoded: Encoded, max_length: int) -> None:
        """The end of an answer that is truncated is not learned."""
        if not self.packs and (full := int((np.diff(encoded.offsets) >= max_length).sum())):
            logger.log(
                log_level(full, len(encoded)),
                "%d of %d training rows fill dataset.max_length = %d tokens: what is longer is cut off, and the end of its answer is not "
                "learnt; raise it, or leave such rows out (dataset.truncation=drop)",
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
        """Greedy answers to the first prompts, of `measure.new_tokens` tokens at most each."""
        if cfg is None:
            return []
        some = rows.select(range(min(cfg.generations, len(rows))))
        options = {"max_new_tokens": cfg.new_tokens, "batch_size": self.batch}
        return [text.strip() for text in self.write(model, tokenizer, some, max_length, **options)]

    def sample_scores(
        self, samples: Sequence[str], predictions: Predictions, rows: datasets.Dataset
    ) -> dict[str, float]:
        """ROUGE-L against the references, and how varied the answers are."""
        return (
            text_scores(samples, [row["reference"] for row in self.prompts_and_references(rows)])
            if samples
            else {}
        )

    def report_sections(
        self,
        rows: datasets.Dataset,
        predictions: Mapping[str, Predictions],
        samples: Mapping[str, Sequence[str]],
        cfg: Measure | None,
    ) -> dict[str, Any]:
        """The number of counted tokens, and for some prompts the reference and what each model writes."""
        count = min([SHOWN, *map(len, samples.values())]) if samples else 0
        generations = [
            row | {name: texts[index] for name, texts in samples.items()}
            for index, row in enumerate(self.prompts_and_references(rows.select(range(count))))
        ]
        return {"test_tokens": len(predictions["student"].labels), "generations": generations}

    def _conversations(self, rows: datasets.Dataset) -> list[list[dict[str, str]]] | None:
        """Each row's turns; None if the rows are no conversations."""
        if "messages" in rows.column_names:
            return [
                [{"role": turn["role"], "content": turn["content"]} for turn in turns]
                for turns in rows["messages"][:]
            ]
        if not self.chat or "prompt" not in rows.column_names:
            return None
        return [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            for prompt, completion in zip(rows["prompt"][:], rows["completion"][:], strict=True)
        ]

    def signal(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: tuple[Tensor, Tensor]
    ) -> HiddenSignal:
        """The last hidden states at the picked positions, (N, H), and the head."""
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        return HiddenSignal(hidden[pick], head_of(model))


def _begun(encoded: Encoded, row: int) -> np.ndarray:
    """Where a row's counted tokens begin."""
    item = encoded[row]
    return item["starts"][1:][item["labels"][1:] != IGNORE]


def _places(where: np.ndarray, begin: int) -> np.ndarray:
    """Characters from `begin` to where each token begins: to the end of the one before it, as some tokenizers do not count
    the space that a token begins with. Tokens that begin inside a character are nowhere."""
    before = np.concatenate([[0], np.maximum.accumulate(where[:-1, 1])])[: len(where)]
    return np.where(where[:, 0] < before, NOWHERE, np.maximum(before - begin, 0))


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
    """The token that a text begins with, if this tokenizer has one."""
    return list(tokenizer("", add_special_tokens=True)["input_ids"][:1])


@torch.no_grad()
def _check_apart(model: PreTrainedModel) -> None:
    """What stands before a document in its row does not change what the model says of it.

    Raises:
        ModelError: this architecture does not go by `position_ids`.
    """
    body: Any = model.base_model
    places = torch.arange(4).repeat(2)[None]
    ids = torch.arange(8)[None] % model.config.get_text_config().vocab_size
    alone = body(input_ids=ids[:, 4:], use_cache=False).last_hidden_state
    try:
        packed = body(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state[:, 4:]
    except TypeError:
        packed = None
    if packed is None or not torch.allclose(
        packed, alone, atol=CLOSE * float(alone.abs().max().clamp(min=1))
    ):
        raise ModelError(
            f"{type(model).__name__} does not keep the documents of a row apart (it does not go by position_ids), which "
            "plain text needs; use another model, or data of prompts and completions"
        )

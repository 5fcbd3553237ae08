"""Defines the schema of a data set: every key with its type, range, default and meaning."""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kdcli.config.tasks import TaskSpec, inferred_task, packaged_specs, spec_of
from kdcli.config.types import (
    BatchSize,
    Character,
    Characters,
    Copies,
    Float,
    Fraction,
    Location,
    Name,
    Rows,
    Section,
    SplitSize,
    Tokens,
    VocabularySize,
    one_is_a_list,
)
from kdcli.errors import ConfigError, shown

NO_LABEL = ["-1", "-"]
"""The default of `dataset.no_label`."""


class Augment(Section):
    """Adds unlabelled text for the teacher: copies of the training texts in which words are replaced (Jiao et al. 2020,
    https://arxiv.org/abs/1909.10351, Algorithm 1)."""

    method: Literal["mlm", "embeddings"] | None = None
    """mlm: by words that a masked language model finds likely in their place. embeddings: by the words with the nearest word embeddings,
    which takes no forward pass. null: mlm if the checkpoint has a masked-LM head, else embeddings."""
    path: Location | None = None
    """The checkpoint that proposes words, named like that of a teacher; null: the teacher's before it is tuned."""
    revision: str | None = None
    """Branch, tag or commit of a hub id in `path`."""
    copies: Copies = 20
    """The number of copies of each text; duplicates are dropped."""
    probability: Fraction = 0.4
    """The probability with which a word is replaced."""
    candidates: VocabularySize = 15
    """The number of most likely words for a position, of which one is sampled."""
    batch_size: BatchSize = 32
    """Words in a batch of the masked language model."""


class Clean(Section):
    """Filters the training pairs (seq2seq) before validation and test are split off. Validation and test data with a source of their own are never
    filtered."""

    identical: bool = True
    """Drop pairs whose target is their source."""
    max_ratio: Annotated[Float, Field(gt=1, le=1e6)] | None = 3.0
    """Drop pairs whose ratio of target to source length, in characters, differs from the median ratio of the data set by more than this factor;
    null: keep them. Summaries need null."""
    ratio_from: Characters = 40
    """Apply `max_ratio` only to pairs whose longer side has at least this many characters, because short texts vary more."""
    script: bool = True
    """Drop pairs of which a side has most of its letters in another script than its column."""


class Dataset(Section):
    """Describes rows of text with labels, completions or translations, and how they are split."""

    task: str | None = None
    """null: inferred from the columns named (text + label: classification; words + tags: token_classification; prompt +
    completion, messages, or text with label=null: causal_lm; source + target: seq2seq). masked_lm is never inferred. A class of your own:
    MODULE.CLASS, searched in --config-dir and in the working directory."""
    format: Literal[
        "auto",
        "csv",
        "json",
        "jsonl",
        "parquet",
        "arrow",
        "txt",
        "conversations",
        "conll",
        "fasttext",
        "gettext",
        "parallel",
        "hub",
    ] = "auto"
    """auto: what the content and the name of the files tell (docs/formats.md); txt: plain text (causal_lm, masked_lm); conversations: YAML files with a list of `conversations`, each a list of turns; conll: a
    word and its tag a line, a blank line between sentences (token_classification); fasttext: `__label__LABEL` before the text in each line, columns `text` and `label`; gettext: .po and .mo catalogues (seq2seq); parallel: two text files, line by line (seq2seq).
    """
    path: Location
    """A file (`package:DISTRIBUTION/FILE` for one in an installed package), a pattern of files (`data/*.csv`), a folder with files or
    splits, one that `save_to_disk` of datasets wrote, a repository of the hub on disk, or a Hugging Face hub id."""
    name: str | None = None
    """The configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    train: str = "train"
    """hub, folders: the split to train on."""
    validation: Location | None = None
    """hub, folders: a split's name; files: another file; null: the split of that name in a local folder, or else split off the training
    rows by a hash of the text."""
    test: Location | None = None
    """The test split, named as by `validation`; null likewise."""
    split: str | None = None
    """csv, json, parquet, arrow: the column with the split of each row: train, validation (or dev) and test, or the values that `train`, `validation` and
    `test` name. null: a column that has a usual name (split, set, subset, partition, fold …) and names of splits; none: no column, and rows are
    split by a hash of the text."""
    validation_size: SplitSize = 0.1
    """The number of rows that are split off for it, from each class in proportion, or below 1 their share. With a share, rows that are added to the
    data leave the others in their splits, except for some that keep a class in proportion; a number of rows is exact."""
    test_size: SplitSize = 0.1
    """The number of rows that are split off for the test, or below 1 their share, as by `validation_size`."""
    text: str = "text"
    """The column of texts."""
    text_pair: str | None = None
    """The column of second texts, for tasks on pairs."""
    label: str | None = "label"
    """The column of labels, names or integers. null: the text itself is learned (causal_lm)."""
    words: str | None = None
    """token_classification: the column of words, a list for each row."""
    tags: str | None = None
    """token_classification: the column of their tags, a list of names (B-PER, I-PER, O …) or integers of the same length; or of spans of
    characters ([start, end, type], or mappings with start, end and label), whose `words` is the column of the texts."""
    sentence: str | None = None
    """token_classification: the column that numbers the sentences of a table with a word a row; null: one that is called so, if there is one."""
    outside: Annotated[list[Name], Field(min_length=1), BeforeValidator(one_is_a_list)] | None = None
    """token_classification: the tags of words that are in no entity; null: found by their names (O, o, 0, NONE, _ …), or the only tag without a
    prefix among tags with prefixes."""
    prompt: str | None = None
    """causal_lm: the column of prompts."""
    completion: str | None = None
    """causal_lm: the column of completions. Only the tokens of the completion count."""
    messages: str | None = None
    """causal_lm: the column of conversations, lists of {role, content} (or of the shapes of docs/conversations.md). The turns of the assistant
    count, but those with the weight 0."""
    chat: bool = False
    """Prompt and completion are a turn of the user and of the assistant, rendered by the chat template of the model."""
    context: (
        list[
            Literal[
                "tools",
                "functions",
                "system",
                "system_prompt",
                "systemInstruction",
                "system_instruction",
                "history",
                "input",
                "context",
            ]
        ]
        | None
    ) = None
    """causal_lm: the further columns that belong to a conversation, where the data has them: `tools` (or functions), `system` (or
    system_prompt), `history` (pairs of earlier turns), and `input` (or context), which follows the prompt. tools, system and input also read
    the columns with the other names. null: all of them, and `input` if `prompt` is called instruction (Alpaca, Dolly); []: none."""
    thoughts: Literal["template", "all", "drop"] = "template"
    """causal_lm: the reasoning of the assistant, in <think> tags or in a key of its own. template: as the chat template writes it, and that of
    the last turn also where the template leaves out that of earlier ones; all: that of every turn is written and learned; drop: none."""
    source: str | None = None
    """seq2seq: the column of sources."""
    target: str | None = None
    """seq2seq: the column of targets. jsonl, parquet, hub: `translation.de` is the key `de` in the column `translation`."""
    source_language: str | None = None
    """seq2seq: the source language, as a code of the model's tokenizer (eng_Latn, en, en_XX), if it is multilingual. gettext: also the locale
    whose translations are the sources; null: the texts in the code."""
    target_language: str | None = None
    """seq2seq: the target language, likewise. gettext: the locale (de, pt_BR), or another code of its language."""
    prefix: str = ""
    """seq2seq: the text before each source ("translate English to German: ", ">>fra<< ")."""
    clean: Clean = Clean()
    labels: list[Name] | None = Field(default=None, min_length=2)
    """The label names in order; null: those that the data set declares, or all found, sorted. In the data a class may also be written as its
    number among them, from 0 or from 1."""
    no_label: Annotated[list[Name], BeforeValidator(one_is_a_list)] = NO_LABEL
    """classification: the labels that mean that a row has none, as an empty cell does. The default is not applied where -1 or - is a class: among
    other negative numbers, together with +1, as often as 0 and 1, or where a single class would be left. Training rows without a label
    are text that only the teacher labels; those of validation and test are dropped."""
    as_classes: bool = False
    """classification: take every different value of the column of labels as a class, also where they look like scores, several labels a row,
    identifiers or texts."""
    duplicates: Literal["majority", "soft"] = "majority"
    """classification: the label of a text that several rows label differently. majority: that of most rows, or none where two have as many;
    soft: the loss on gold labels takes the share of the rows of each label, and scores take the majority."""
    near_duplicates: Literal["warn", "group", "ignore"] = "warn"
    """Texts of test that differ little from texts of train (70 % of their runs of five characters are common). warn: a share of
    1 % or more is a suspicion; group: near-duplicates stay in one split; at most 100,000 rows are compared."""
    encoding: str | None = None
    """null: UTF-8, UTF-16 or UTF-32 if the bytes are that, or else the most likely encoding of the text."""
    delimiter: Character | None = None
    """csv: null is the one by which the rows have as many fields as the header. conll: null is what most lines are cut into the same number of
    columns by."""
    quote: Character | Literal["none"] | None = None
    """csv: null is a double quote, or none where quotes are text; none: quotes are text."""
    escape: Character | Literal["none"] | None = None
    """csv: the character before a quote in a quoted field. null: a backslash if the file has no doubled quotes but escaped ones; none:
    quotes are doubled."""
    columns: list[Name] | None = Field(default=None, min_length=1)
    """csv, conll, json with arrays: the names of all columns in order, for a file without a header. conll: those called words and tags are read, or
    those that `words` and `tags` name."""
    field: str | None = None
    """json: the key of a document that holds the rows, with dots for keys in keys; null: the only one that can."""
    bad_rows: Literal["error", "drop"] = "error"
    """What becomes of a row that cannot be read: the run is refused, or the row is dropped and counted. classification: drop also drops training
    rows without a label."""
    replace: dict[str, str] = {}
    """Regular expressions and their replacements in the text, applied in order. White space is folded afterwards (classification)."""
    limit: Rows | None = None
    """The maximum number of training rows."""
    eval_limit: Rows | None = None
    """The maximum number of rows of validation and of test."""
    labelled: Rows | None = None
    """The maximum number of training rows that keep their label (seq2seq: their target); only the teacher labels the others."""
    unlabelled: Location | None = None
    """Further text that only the teacher labels: a file (or a hub split) like the training one; its labels are not read."""
    unlabelled_limit: Rows | None = None
    """The maximum number of its rows."""
    augment: Augment | None = None
    """classification: augmented copies of the training texts, which only the teacher labels; null: none."""
    max_length: Tokens = 128
    """The maximum number of tokens of a row; see `truncation` for longer rows."""
    truncation: Literal["cut", "refuse", "drop"] | None = None
    """What happens to a row of more than `max_length` tokens, in all splits, if it is a conversation, a prompt with its completion (causal_lm) or a
    pair (seq2seq). It is cut at its end (pairs are never cut), refused, or dropped; a cut row without a token that counts is refused. null: pairs
    are refused, and others are cut. Other texts are always cut."""
    mask_copies: Copies = 1
    """masked_lm: the number of copies of each training text, each with other masked tokens (Liu et al. 2019, https://arxiv.org/abs/1907.11692,
    section 4.1: static masking)."""

    @property
    def kind(self) -> str:
        """The name of the task: the configured one, or the one that the configured columns imply."""
        return self.task or inferred_task(self)

    @property
    def forces_format(self) -> bool:
        """Whether files are read in the configured format, whatever their contents and names say."""
        return self.format not in ("auto", "hub")

    @property
    def spec(self) -> TaskSpec:
        """The declarations of the task."""
        return spec_of(self.kind)

    @model_validator(mode="before")
    @classmethod
    def _format_of_name(cls, tree: Any) -> Any:
        """Set the format of words, catalogues, conversations and plain text by the file name, if it is auto."""
        if (
            not isinstance(tree, dict)
            or tree.get("format", "auto") != "auto"
            or not isinstance(tree.get("path"), str)
        ):
            return tree
        name = os.path.splitext(tree["path"].lower())[1]
        plain = tree.get("label", "label") is None and not any(
            tree.get(key) for key in ("prompt", "messages", "source", "words")
        )
        by_name = _BY_NAME.get(name) or ("txt" if name == ".txt" and plain else None)
        return tree | {"format": by_name} if by_name else tree

    @field_validator("task")
    @classmethod
    def _known(cls, task: str | None) -> str | None:
        if task:
            try:
                spec_of(task)
            except ConfigError as error:
                raise ValueError(error.message) from None
        return task

    @model_validator(mode="after")
    def _columns(self) -> Dataset:
        for first, second in (("prompt", "completion"), ("words", "tags"), ("source", "target")):
            column, other = getattr(self, first), getattr(self, second)
            if bool(column) != bool(other):
                raise ValueError(f"{first} and {second}: give both columns, or neither")
            if column and column == other:
                raise ValueError(
                    f"{first} and {second}: both are the column {shown(column)}; name two (COLUMN.0 and COLUMN.1, if it holds pairs)"
                )
        if self.chat and not self.prompt and self.format != "conversations":
            raise ValueError(
                "chat: it makes turns of a prompt and a completion; name dataset.prompt and dataset.completion"
            )
        if self.unlabelled_limit and not self.unlabelled:
            raise ValueError("unlabelled_limit: there is nothing to limit; name the text with unlabelled")
        return self

    @model_validator(mode="after")
    def _task(self) -> Dataset:
        spec = self.spec
        for name, other in packaged_specs():
            for key, purpose in other.only_here.items():
                if key not in spec.reads and getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key}: {purpose} ({name}), not for {self.kind}; leave it out")
        spec.check(self)
        readers = [name for name, other in packaged_specs() if self.format in other.formats]
        if readers and self.format not in spec.formats:
            raise ValueError(
                f"format = {self.format} is for {' and '.join(readers)}, not for {self.kind}; leave dataset.task out, or give another format"
            )
        return self

    @model_validator(mode="after")
    def _header(self) -> Dataset:
        if self.columns and self.format not in ("auto", "csv", "json", "jsonl", "conll"):
            raise ValueError(
                f"columns: {self.format} names its own columns; leave it out, or give format=auto"
            )
        if self.columns and (twice := [name for name in self.columns if self.columns.count(name) > 1]):
            raise ValueError(
                f"columns: {shown(twice[0])} stands there twice; give each column a name of its own"
            )
        return self

    @model_validator(mode="after")
    def _regular(self) -> Dataset:
        for pattern, put in self.replace.items():
            try:
                re.sub(pattern, put, "")
            except (re.error, IndexError) as error:
                raise ValueError(
                    f"replace: {shown(pattern)} by {shown(put)} is not a regular expression: {error}; correct it, or put \\ before each sign that stands for itself"
                ) from None
        if (both := set(self.labels or ()) & set(self.no_label)) and self.no_label != NO_LABEL:
            raise ValueError(f"labels and no_label: both have {shown(sorted(both)[0])}; leave it out of one")
        if self.labels and (
            twice := [name for index, name in enumerate(self.labels) if name in self.labels[:index]]
        ):
            raise ValueError(f"labels: {shown(twice[0])} stands there twice; leave it out once")
        for key in ("validation_size", "test_size"):
            size = getattr(self, key)
            if size > 1 and size != math.floor(size):
                raise ValueError(f"{key} = {size}: expected a whole number of rows, or a share below 1")
        return self


_BY_NAME = {
    **dict.fromkeys(
        (".conll", ".conllu", ".conllup", ".bio", ".iob", ".iob2", ".bioes", ".bilou", ".bmes"), "conll"
    ),
    **dict.fromkeys((".po", ".mo"), "gettext"),
    **dict.fromkeys((".yml", ".yaml"), "conversations"),
}
"""The formats that are recognized by the end of a file's name before it is read, because tasks are inferred from them."""
READ_BY_ALL = frozenset({
    "task", "format", "path", "name", "revision", "train", "validation", "test", "split", "validation_size", "test_size", "encoding", "delimiter",
    "quote", "escape", "columns", "field", "bad_rows", "replace", "limit", "eval_limit", "max_length", "near_duplicates",
})  # fmt: skip
"""The keys of a data set that every task reads; the others are declared by the tasks that read them (`TaskSpec.reads`)."""

"""Reads and checks the vocabulary of a tokenizer: its ids, its files, its padding token, and whether a model's embeddings have rows for it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kdcli.errors import ModelError, listed, shown

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "tekken.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model",
    "source.spm", "target.spm", "target_vocab.json",
)  # fmt: skip
LISTED = 0.5
"""The least share of the lines of a vocab.txt that are tokens, if it lists one token a line. (BERTweet writes a token and its count.)"""


def target_vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that a model predicts, with their ids. Marian's models may have another vocabulary for targets than for sources."""
    if not getattr(tokenizer, "separate_vocabs", False):
        return tokenizer.get_vocab()
    return {**tokenizer.target_encoder, **tokenizer.added_tokens_encoder}


def count_ids(vocabulary: dict[str, int]) -> int:
    """Return the highest id + 1: the rows that embeddings need. Ids may have gaps."""
    return max(vocabulary.values()) + 1


def count_segments(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of segment ids that a tokenizer gives to the tokens of a pair and to padding; 0: none. XLNet's class token has one of its own."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return 0
    return max(*tokenizer("a", "a")["token_type_ids"], tokenizer.pad_token_type_id) + 1


def require_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, folder: Path, name: str
) -> None:
    """Refuse a tokenizer that has no tokens, or tokens that the model has no embeddings for.

    Args:
        folder: the directory of its files.
        name: what the messages call the model.

    Raises:
        ModelError
    """
    vocabulary, text_config = tokenizer.get_vocab(), config.get_text_config()
    if not vocabulary.keys() - set(tokenizer.all_special_tokens):  # transformers makes an empty one up
        raise ModelError(
            f"{name}: there are no tokenizer files (tokenizer.json …) in {folder}; put those of the model there from which it was fine-tuned, or save "
            "its tokenizer there (save_pretrained)"
        )
    if len(names := {token_id: token for token, token_id in vocabulary.items()}) < len(vocabulary):
        token, token_id = next((token, i) for token, i in vocabulary.items() if names[i] != token)
        raise ModelError(
            f"{name}: its tokenizer gives {shown(token)} and {shown(names[token_id])} the same id, {token_id}: it is damaged. Put the right "
            "tokenizer files beside the weights"
        )
    target_rows = getattr(text_config, "decoder_vocab_size", None) or text_config.vocab_size
    highest = max([count_ids(vocabulary) - 1, *tokenizer.all_special_ids])
    for last, rows in (
        (highest, text_config.vocab_size),
        (count_ids(target_vocabulary(tokenizer)) - 1, target_rows),
    ):
        if last >= rows:
            sizes = f"{name}: its tokenizer has token ids up to {last}, its embeddings have {rows} rows"
            if added := _added_beyond(tokenizer, rows, vocabulary):
                raise ModelError(
                    f"{sizes}: {listed(added)} was added without resizing them. Remove it from tokenizer.json and tokenizer_config.json, or resize the "
                    "embeddings and save the model again: model.resize_token_embeddings(len(tokenizer))"
                )
            raise ModelError(
                f"{sizes}: this is another model's tokenizer. Put the right tokenizer files beside the weights"
            )
    _require_listed(folder / "vocab.txt", vocabulary, name)


def _added_beyond(tokenizer: PreTrainedTokenizerBase, rows: int, vocabulary: dict[str, int]) -> list[str]:
    """Return the tokens without embeddings if they were added one by one to a vocabulary that fits; else nothing."""
    beyond = {token_id: token for token, token_id in vocabulary.items() if token_id >= rows}
    added = tokenizer.get_added_vocab()
    if sorted(beyond) != [*range(rows, rows + len(beyond))] or any(
        each not in added for each in beyond.values()
    ):
        return []
    return [shown(beyond[token_id]) for token_id in sorted(beyond)]


def _require_listed(file: Path, vocabulary: dict[str, int], name: str) -> None:
    """Refuse a vocab.txt whose tokens have other ids than in tokenizer.json, if it lists one token a line."""
    if not file.is_file():
        return
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise ModelError(f"{name}: {file} is not UTF-8 ({error}); save it as UTF-8") from None
    tokens = [line for line in lines if line]
    if sum(token in vocabulary for token in tokens) < LISTED * len(tokens):
        return
    rows_of: dict[str, list[int]] = {}
    for index, token in enumerate(lines):
        rows_of.setdefault(token, []).append(index)
    for token, rows in rows_of.items():
        if token and vocabulary.get(token) not in rows:
            raise ModelError(
                f"{name}: vocab.txt says that token {rows[0]} is {shown(token)}, tokenizer.json says "
                f"{vocabulary.get(token)}: they are of two models. Put the right tokenizer files beside the weights"
            )


def set_padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str) -> None:
    """Give a tokenizer without a padding token the one of the model's config, or its end-of-text token, as decoders do.

    Raises:
        ModelError: there is no token to pad with, or config.json names one beyond the embeddings.
    """
    text_config = config.get_text_config()
    pad = text_config.pad_token_id
    if pad is not None and pad >= text_config.vocab_size:
        raise ModelError(
            f"{name}: config.json pads with token {pad}, and its embeddings have {text_config.vocab_size} rows; write the tokenizer's "
            "padding token there (pad_token_id), or null"
        )
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{name}: its tokenizer has neither a padding nor an end-of-text token; name one in tokenizer_config.json "
            '("eos_token": …)'
        )
    tokenizer.pad_token = _special_tokens(tokenizer).get(pad, tokenizer.eos_token)


def share_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Make a tokenizer pad with the token by which its model finds the padding, if it looks for it by its id and not by the mask.

    Decoders that classify read the logits of the last token that is not padding, and an encoder-decoder never generates it. All other
    models are given a mask, and may name another token than their tokenizer does. A token of config.json that is no special one is not
    taken over, since the tokenizer would split texts at it.
    """
    config = model.config.get_text_config()
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    if not (config.is_encoder_decoder or (classifies and _is_decoder(model.config))):
        return
    special = _special_tokens(tokenizer)
    is_named = config.pad_token_id in special
    if is_named:
        tokenizer.pad_token = special[config.pad_token_id]
    last = tokenizer("a")["input_ids"][-1]
    if classifies and tokenizer.pad_token_id == last and (config.is_encoder_decoder or not is_named):
        # the model reads the last token before the padding, or counts the end tokens of each row: it would skip them, or count the padding
        tokenizer.pad_token = next(token for token_id, token in special.items() if token_id != last)
    config.pad_token_id = tokenizer.pad_token_id


def _is_decoder(config: PreTrainedConfig) -> bool:
    decoders, masked = AutoModelForCausalLM._model_mapping, AutoModelForMaskedLM._model_mapping
    return type(config) in decoders and type(config) not in masked


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int | None, str]:
    """Return the special tokens by their ids."""
    added: dict[int | None, str] = {
        index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    return {**added, **dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))}


def require_savable(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that a tokenizer can be saved: it is saved with each model that is trained with it.

    Raises:
        ModelError
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_tokenizer(tokenizer, Path(folder))
        except OSError:
            raise
        except Exception as error:  # tokenizers raises Exception itself
            raise ModelError(
                f"{name}: its tokenizer can be loaded but cannot be saved with the student: {shown(str(error))}; remove the keys of "
                "tokenizer_config.json that its class does not know"
            ) from None


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files. The vocabulary files of a tokenizer that is written in Python are copied, because BERTweet's class writes its
    merges in another format than it reads (transformers 5.23), and would cut texts otherwise."""
    tokenizer.save_pretrained(folder)
    if tokenizer.is_fast:
        return
    for key, name in tokenizer.vocab_files_names.items():
        file = getattr(tokenizer, key, None)
        if isinstance(file, str) and Path(file).is_file() and Path(file) != folder / name:
            shutil.copyfile(file, folder / name)

"""Prompts that are to be continued: no special token stands behind them, wherever the same weights write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
import transformers as of
from support.tiny import decoder, exchanges, speller
from tokenizers import Tokenizer, processors

from kdcli.exporting.artifacts import Split
from kdcli.exporting.runtimes.torch import TorchCausalLM
from kdcli.measure.spec import MeasureSpec
from kdcli.prompts import append_nothing, appended, tokenize_prompts
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.rows import IGNORE

ROWS = datasets.Dataset.from_list(
    [
        {"id": str(number), "prompt": prompt, "completion": f" {answer}"}
        for number, (prompt, answer) in enumerate(exchanges(12))
    ]
)


def template(single: str) -> Callable[[of.PreTrainedTokenizerFast], None]:
    """A post-processor of special tokens around a text, as most tokenizers of the hub have."""

    def change(tokenizer: of.PreTrainedTokenizerFast) -> None:
        special = [
            (token, tokenizer.convert_tokens_to_ids(token))
            for token in ("<|end|>", "<|user|>")
            if token in single
        ]
        inner = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), inner]
        )

    return change


def roberta(tokenizer: of.PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(
        ("<|end|>", 0), ("<|user|>", tokenizer.convert_tokens_to_ids("<|user|>")), trim_offsets=False
    )


KINDS = {
    "none": (template("$A"), 0, []),
    "end": (template("$A <|end|>"), 1, []),
    "beginning and end": (template("<|user|> $A <|end|>"), 1, ["<|user|>"]),
    "two ends": (template("<|user|> $A <|end|> <|end|>"), 2, ["<|user|>"]),
    "as RoBERTa's": (roberta, 1, ["<|user|>"]),
}


def changed(kind: str) -> tuple[of.PreTrainedTokenizerFast, int, list[str]]:
    change, behind, before = KINDS[kind]
    tokenizer = speller(None)
    change(tokenizer)
    return tokenizer, behind, before


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_token_stands_behind_a_prompt(kind: str, tmp_path: Path) -> None:
    """The model begins another text after an end token that the tokenizer appends to each prompt, or a prompt loses its last word where
    it appends none; the end of a completion is learnt twice, or what begins a text once more."""
    tokenizer, behind, before = changed(kind)
    assert appended(tokenizer) == behind
    (ids,) = tokenize_prompts(tokenizer, ["the film was:"], special=True)
    plain = tokenizer("the film was:", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*before, *tokenizer.convert_ids_to_tokens(plain)]
    assert tokenize_prompts(tokenizer, ["the film was:"], special=False) == [plain]
    assert tokenize_prompts(tokenizer, [], special=True) == []
    item = CausalLM().encode(tokenizer, ROWS, 64)[0]
    learnt = item["labels"][item["labels"] != IGNORE]
    assert (
        tokenizer.decode(item["input_ids"])
        == f"{''.join(before)}{ROWS[0]['prompt']}{ROWS[0]['completion']}<|end|>"
    )
    assert tokenizer.decode(learnt) == f"{ROWS[0]['completion']}<|end|>"

    places = tokenizer("the film was:", return_offsets_mapping=True)["offset_mapping"]
    places = places[len(before) : len(places) - behind]
    append_nothing(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = of.AutoTokenizer.from_pretrained(tmp_path)
    native = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again("the film was:")["input_ids"] == native.encode("the film was:").ids == ids
    offsets = again("the film was:", return_offsets_mapping=True)["offset_mapping"]
    assert offsets[len(before) :] == places


def test_a_llama_that_adds_an_end_token(tmp_path: Path) -> None:
    """add_eos_token of tokenizer_config.json lets a loaded tokenizer append the end token again."""
    pieces = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "▁", *"thefilmwas:"])}
    made = of.LlamaTokenizer(vocab=pieces, merges=[], add_eos_token=True)
    made.save_pretrained(tmp_path)
    tokenizer = of.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("the")["input_ids"][-1] == tokenizer.eos_token_id
    expected = tokenizer("the")["input_ids"][:-1]
    append_nothing(tokenizer)
    tokenizer.save_pretrained(tmp_path / "student")
    again = of.AutoTokenizer.from_pretrained(tmp_path / "student")
    assert again("the")["input_ids"] == tokenizer("the")["input_ids"] == expected


@pytest.mark.parametrize("kind", ["end", "beginning and end", "as RoBERTa's"])
def test_the_same_weights_write_the_same_text_everywhere(kind: str, tmp_path: Path) -> None:
    """Rollouts, the report, artifacts and the scripts of an export tokenize a prompt each in its own way, and show texts of different models."""
    tokenizer, _, _ = changed(kind)
    task, model = CausalLM(), decoder(tokenizer, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3  # so that a text depends on its prompt
    model.generation_config.eos_token_id = None
    few = ROWS.select(range(4))
    options = {"max_new_tokens": 6, "batch_size": 4}
    expected = task.write(model, tokenizer, few, 64, **options)
    assert len(set(expected)) > 1
    ids = Split(task, few, tokenizer, 64).prompt_ids
    for folder in ("as it was", "as it is saved"):
        path = tmp_path / folder
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        runtime = TorchCausalLM(MeasureSpec("torch", str(path), str(path), 64, task.auto))
        assert [runtime.tokenize(row["prompt"]) for row in few] == ids
        assert task.write(model, tokenizer, few, 64, **options) == expected
        task.prepare_for_saving(model, tokenizer, 64)
    write = of.pipeline("text-generation", str(path))
    how = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    assert [write(row["prompt"], **how)[0]["generated_text"] for row in few] == expected

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from support.commands import naming, require_words
from support.tiny import CHAT, decoder, exchanges, speller
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kdcli import signals as signal
from kdcli.config.dataset import Dataset
from kdcli.errors import DataError
from kdcli.generation import Reply, continued
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.signals import Signal
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.rows import IGNORE
from kdcli.training.distiller import Distiller

PLAIN = (
    "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PICKY = (
    "{% for turn in messages if not turn['content'] %}{{ raise_exception('says nothing') }}{% endfor %}"
    + CHAT
)


REFERENCES = ["it was good, the film", "it was bad, the book", "it was sad, the day", "it was fine, the song"]


@pytest.mark.parametrize(
    ("texts", "perplexity", "words"),
    [
        (["", "", "", "it was"], 1.1, ("perplexity", "1.10", "3 of 4 texts", "empty")),
        (["xx yy"] * 4, 1.1, ("perplexity", "1.10", "ROUGE-L", "0.0 of 100")),
        (REFERENCES, 500.0, ("perplexity", "500", "ROUGE-L", "100.0 of 100")),
        (["it was"] * 4, 500.0, ("perplexity", "500", "ROUGE-L", "100.0 of 100")),
        (["it was so"] * 4, 1.1, ()),
        (["", "", "", "it was"], 20.0, ()),
        (["xx yy"] * 4, 500.0, ()),
    ],
)  # fmt: skip
def test_scores_that_contradict_each_other(
    texts: list[str], perplexity: float, words: tuple[str, ...]
) -> None:
    """A teacher that writes in another way than it is scored; or a good one, whose completions are just other ones, is refused."""
    pairs = zip("abcd", REFERENCES, strict=True)
    rows = datasets.Dataset.from_list(
        [{"id": key, "prompt": f"{key}:", "completion": answer} for key, answer in pairs]
    )
    replies = [Reply(text, text in REFERENCES) for text in texts]
    findings = list(
        CausalLM().teacher_findings(rows, lambda some: replies, lambda some: -float(np.log(perplexity)))
    )
    assert len(findings) == bool(words)
    require_words("".join(findings), *words)
    assert all("eos_token_id" in finding for finding in findings)
    assert not list(CausalLM().teacher_findings(rows, lambda some: [], lambda some: 0.0))


@pytest.mark.parametrize("tied", [True, False])
def test_chunks_are_the_whole(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk left out or counted twice, a label off by one, or a head whose gradient is lost trains something else."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        tie_word_embeddings=tied,
    )  # fmt: skip
    student, teacher = LlamaForCausalLM(config), LlamaForCausalLM(config).requires_grad_(False)
    ids = torch.randint(97, (3, 40))
    labels = ids.clone()
    labels[:, :10] = -100
    task = CausalLM()
    pick, flat = task.positions(labels)
    assert torch.equal(flat, ids[:, 10:].flatten())
    module = Distiller(
        student, task, {"soft": ForwardKL(2.0), "hard": HardLabel()}, {"soft": 1.0, "hard": 0.5}
    )
    monkeypatch.setattr(signal, "CHUNK", 97 * 20)
    loss = module(labels=labels, teacher=task.signal(teacher, {"input_ids": ids}, pick), input_ids=ids)[
        "loss"
    ]
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    ours, theirs = (model(input_ids=ids).logits[:, 9:-1].flatten(0, 1) for model in (student, teacher))
    whole = ForwardKL(2.0)(Signal(ours), Signal(theirs), flat).mean() + 0.5 * cross_entropy(ours, flat)
    whole.backward()
    assert torch.allclose(loss, whole, atol=1e-5)
    for name, parameter in student.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


@pytest.mark.parametrize(
    ("template", "text", "ends", "expected"),
    [
        (None, " good", True, " good<|end|>"),
        (None, " good", False, " good"),
        (None, "", True, "<|end|>"),
        (None, "", False, ""),
        (CHAT, "good", True, "good<|end|>"),
        (CHAT, "good", False, "good"),
        (PICKY, "", True, "<|end|>"),
        (CHAT, "", False, ""),
        (PLAIN, "good", True, " good"),
        (PLAIN, "good", False, " good"),
        (PLAIN, "", True, ""),
    ],
)
def test_what_counts_of_a_students_answer(template: str | None, text: str, ends: bool, expected: str) -> None:
    """An answer that was cut off, whose end is learnt all the same; one that says nothing, which kills the run."""
    task, tokenizer = CausalLM(chat=template is not None), speller(template)
    rows = [{"id": "a", "prompt": "the film:", "completion": text, "ends": ends}]
    encoded = task.encode(tokenizer, datasets.Dataset.from_list(rows), 64)
    labels = encoded.columns["labels"]
    assert tokenizer.decode(labels[labels != IGNORE]) == expected
    assert task.targets(encoded)[1].tolist() == [int((labels != IGNORE).sum())]


@pytest.mark.parametrize("chat", [True, False])
def test_what_is_too_long_is_dropped_whole(chat: bool) -> None:
    """A row of just as many tokens is dropped too, one of a token more is cut off, or a row is judged by its words alone."""
    task, tokenizer = CausalLM(chat=chat), speller()
    rows = [{"id": str(n), "prompt": "the film:", "completion": " good" * n} for n in range(1, 12)]
    table = datasets.Dataset.from_list(rows)
    lengths = np.diff(task.encode(tokenizer, table, 10**6).offsets)
    most = int(lengths[5])
    assert len(task.prepare(table, tokenizer, most)) == 11
    task.truncation = "drop"
    kept = task.prepare(table, tokenizer, most)
    assert kept["id"] == [row["id"] for row, length in zip(rows, lengths, strict=True) if length <= most]
    assert task.dropped == 11 - len(kept) == 5
    with pytest.raises(DataError, match=naming("all 11 rows", "dataset.max_length = 3")):
        task.prepare(table, tokenizer, 3)
    task.truncation = "refuse"
    words = ("5 of 11", f"dataset.max_length = {most}", "row 7", "dataset.truncation=cut")
    with pytest.raises(DataError, match=naming(*words)):
        task.prepare(table, tokenizer, most)
    assert len(task.prepare(table, tokenizer, int(lengths.max()))) == 11


@pytest.mark.parametrize("chat", [True, False])
def test_a_turn_ends_where_the_template_closes_it(chat: bool, tmp_path: Path) -> None:
    """A tokenizer as Gemma's, whose end of text is another token: the student writes on to the limit, here and elsewhere."""
    tokenizer = speller()
    tokenizer.add_special_tokens({"eos_token": "<eos>", "pad_token": "<eos>"})
    task, model = CausalLM(chat=chat), decoder(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # writes the first token: <|end|>
    row = {"id": "a", "prompt": "the film:", "completion": " good"}
    options = {"max_new_tokens": 4, "batch_size": 1}
    for _ in ("as it was initialized", "as it is saved"):
        assert task.replies(model, tokenizer, datasets.Dataset.from_list([row]), 64, **options) == [
            ("", chat)
        ]
        task.prepare_for_saving(model, tokenizer, 64)
    model.save_pretrained(tmp_path)
    ends = GenerationConfig.from_pretrained(tmp_path).eos_token_id
    assert ends == ([end, tokenizer.eos_token_id] if chat else tokenizer.eos_token_id)


def test_an_answer_keeps_the_space_that_it_begins_with() -> None:
    """Llama 2's decoder strips the first space of a text: the student learns other tokens than the teacher wrote."""
    inner = Tokenizer(models.BPE())
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"], show_progress=False)
    inner.train_from_iterator([text for pair in exchanges(200) for text in pair], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")
    given = {"id": "a", "prompt": "the film was:", "completion": " it was good, the film"}
    task = CausalLM()
    encoded = task.encode(tokenizer, datasets.Dataset.from_list([given]), 64)
    ids, labels = encoded.columns["input_ids"], encoded.columns["labels"]
    prompt, answer = ids[labels == IGNORE].tolist(), ids[labels != IGNORE].tolist()
    assert continued(tokenizer, [prompt], [answer]) == [given["completion"]]
    assert continued(tokenizer, [[]], [answer]) == ["it was good, the film"]


ALTERNATING = (
    "{% for turn in messages %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}{% endfor %}"
    + CHAT
)
TALK = [{"role": "user", "content": "the film:"}, {"role": "assistant", "content": "good"}]


def test_conversations_that_the_template_refuses_are_dropped_or_counted() -> None:
    """One conversation that a template refuses stops the run although bad_rows=drop, or its user finds the refused rows one at a time."""
    rows = datasets.Dataset.from_list(
        [{"id": str(index), "messages": TALK[:1] * (index % 3 == 0) + TALK} for index in range(6)]
    )
    tokenizer, task = speller(ALTERNATING), CausalLM(chat=True)
    with pytest.raises(DataError, match=naming("row 0", "must alternate", "2 of 6", "dataset.bad_rows=drop")):
        task.encode(tokenizer, task.prepare(rows, tokenizer, 64), 64)
    dropping = CausalLM.from_config(Dataset(path="x", messages="messages", bad_rows="drop"), [])
    assert dropping.prepare(rows, tokenizer, 64)["id"] == ["1", "2", "4", "5"]
    assert dropping.dataset_summary(Dataset(path="x", messages="messages"), {})["dropped"] == {
        "refused by the chat template": 2
    }
    with pytest.raises(DataError, match=naming("must alternate", "2 of 2")):
        dropping.prepare(rows.select([0, 3]), tokenizer, 64)


def begins_with(token: str) -> PreTrainedTokenizerFast:
    """A tokenizer that writes this token before a text, and a chat template that writes it before a conversation."""
    made = speller("{{ bos_token }}" + CHAT)
    made.add_special_tokens({"bos_token": token})
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, made.bos_token_id)]
    )
    return made


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "<s> the film:", "completion": " good <|end|>"}, "<s>the film: good<|end|>"),
        ({"prompt": "the<|end|>", "completion": " good"}, "<s>the<|end|> good<|end|>"),
        ({"text": "<s>good<|end|>"}, "<s>good<|end|>"),
        (
            {"messages": [{"role": "user", "content": "<s>so:"}, {"role": "assistant", "content": "good<|end|>"}]},
            "<s><|user|>so:<|end|>\n<|assistant|>good<|end|>",
        ),
    ],
)  # fmt: skip
def test_special_tokens_in_the_data_are_not_doubled(
    row: dict[str, object], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The student learns an end token twice, or reads a begin token twice, because the data hold what the tokenizer writes."""
    tokenizer, task = begins_with("<s>"), CausalLM()
    rows = task.prepare(datasets.Dataset.from_list([{"id": "a", **row}]), tokenizer, 64)
    encoded = task.encode(tokenizer, rows, 64)
    assert tokenizer.decode(encoded.columns["input_ids"]) == expected
    changed = "<|end|> good" not in expected
    assert (rows["id"][0] != "a") == changed or "text" in row
    with caplog.at_level("INFO"):
        task.warn_of_truncation(encoded, 64)
    assert ("<|end|> (1 rows)" in caplog.text) == changed
    assert task.prepare(rows, tokenizer, 64)[:] == rows[:]

"""Small real things that tests make: sentences with something to learn, a model from a config."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GOOD = ["good", "great", "lovely", "fine", "superb", "sweet"]
BAD = ["bad", "awful", "poor", "sad", "dire", "sour"]
FILLER = [
    "film",
    "book",
    "song",
    "meal",
    "the",
    "a",
    "this",
    "was",
    "is",
    "very",
    "so",
    "quite",
    "and",
    "day",
    "trip",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert(
    tokenizer, labels: list[str], hidden: int = 32, layers: int = 2, seed: int = 0, dropout: float = 0.0
):
    """A small random BERT classifier."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            pad_token_id=0,
        )
    )


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct sentences with more good words than bad ones, or the other way round; a tenth is labelled wrongly."""
    chance = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label = chance.choice(["bad", "good"])
        words = chance.choices(FILLER, k=chance.randint(2, 10))
        words += chance.choices(GOOD if label == "good" else BAD, k=chance.randint(1, 3))
        chance.shuffle(words)
        rows[" ".join(words)] = label if chance.random() > 0.1 else {"bad": "good", "good": "bad"}[label]
    return list(rows.items())


def write_csv(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


CHAT = (
    "{% for turn in messages %}<|{{ turn['role'] }}|>{{ turn['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def speller(template: str | None = CHAT, size: int = 340):
    """A tokenizer of a language model: byte-level BPE over the words of `exchanges`; its end of text is its padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([text for pair in exchanges(200) for text in pair], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>", chat_template=template
    )


def decoder(tokenizer, layers: int = 2, hidden: int = 32, seed: int = 0):
    """A small random decoder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def exchanges(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct prompts, and answers that can be told from them."""
    return [(f"{text}:", f"it was {label}, the {text.split()[0]}") for text, label in sentences(count, seed)]


def documents(count: int) -> list[str]:
    """Paragraphs of exchanges, each long enough to be a document by itself."""
    lines = [f"{prompt} {answer}.\n" for prompt, answer in exchanges(20 * count, seed=5)]
    return ["".join(lines[start : start + 20]) for start in range(0, len(lines), 20)]


def speaker(folder: Path, steps: int = 70, answer: str = "") -> Path:
    """A language model that was trained for a moment, on exchanges in each form, in a folder.

    Args:
        answer: what it always writes; "": the answer of each exchange.
    """
    import torch

    tokenizer = speller()
    model = decoder(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    texts = []
    for prompt, reference in exchanges(600, seed=7):
        completion = answer or reference
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        texts += [
            f"{prompt}{completion}<|end|>",
            tokenizer.apply_chat_template(turns, tokenize=False),
            f"{prompt} {completion}.\n{prompt} {completion}.\n",
        ]
    for start in [number * 24 % 1800 for number in range(steps)]:
        batch = tokenizer(texts[start : start + 24], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talk(folder: Path, form: str, count: int = 120) -> list[str]:
    """Exchanges in a file of the folder, and the overrides that name it; form: pairs, messages or text."""
    rows = exchanges(count)
    if form == "text":
        path = folder / "text.txt"
        path.write_text("\n".join(documents(count // 5)))
        sizes = ["dataset.validation_size=3", "dataset.test_size=3", "dataset.max_length=64"]
        return ["dataset=text", f"dataset.path={path}", *sizes]
    if form == "pairs":
        path = write_jsonl(folder / "pairs.jsonl", [{"prompt": p, "completion": a} for p, a in rows])
        return [
            "dataset=jsonl",
            f"dataset.path={path}",
            "dataset.prompt=prompt",
            "dataset.completion=completion",
        ]
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, answer in rows
    ]
    turns[::3] = [
        [*turn, {"role": "user", "content": "so:"}, {"role": "assistant", "content": "so it was"}]
        for turn in turns[::3]
    ]
    path = write_jsonl(folder / "messages.jsonl", [{"messages": turn} for turn in turns])
    return ["dataset=jsonl", f"dataset.path={path}", "dataset.messages=messages"]


def language_model_options(teacher: Path) -> list[str]:
    """Overrides of a language model's run of a second: the teacher, a student of one of its layers, fp32."""
    return [
        "teacher=local",
        f"teacher.path={teacher}",
        "teacher.batch_size=16",
        "teacher.trainer.precision=fp32",
        "student=layers",
        "student.num_hidden_layers=1",
        "loss=forward_kl",
        "dataset.max_length=64",
        "dataset.validation_size=16",
        "dataset.test_size=16",
        "trainer.precision=fp32",
        "trainer.batch_size=8",
        "trainer.learning_rate=0.001",
        "trainer.epochs=2",
        "trainer.logging_steps=5",
        "measure.latency_runs=2",
        "measure.throughput_seconds=0.05",
        "measure.generations=6",
        "measure.new_tokens=8",
    ]


def start(folder: Path, options: list[str]) -> subprocess.Popen[str]:
    """`kdcli distill` in a process of its own."""
    command = [sys.executable, "-m", "kdcli", "distill", *options, f"hydra.run.dir={folder}"]
    return subprocess.Popen(
        command, env=os.environ.copy(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; it must while the process still runs."""
    until = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)


LEXICON = dict(
    zip(
        [
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "red",
            "blue",
            "green",
            "dog",
            "cat",
            "house",
            "tree",
        ],
        [
            "uno",
            "dos",
            "tres",
            "cuatro",
            "cinco",
            "seis",
            "siete",
            "rojo",
            "azul",
            "verde",
            "perro",
            "gato",
            "casa",
            "árbol",
        ],
        strict=True,
    )
)


def pairs(count: int, seed: int = 0, longest: int = 8) -> list[tuple[str, str]]:
    """Different sentences, each with its translation word by word: a target is a function of its source."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        words = [draw.choice(list(LEXICON)) for _ in range(draw.randint(2, longest))]
        found[" ".join(words)] = translation(words)
    return list(found.items())


def translation(words: list[str]) -> str:
    return " ".join(LEXICON[word] for word in words)


def write_pairs(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A csv file with the columns en and es."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["en", "es"])
        writer.writerows(rows)
    return path


def translator(folder: Path, longest: int = 4) -> Path:
    """A small Marian that has learnt most of `pairs`: trained for a moment."""
    import datasets
    import torch

    from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary
    from kdcli.tasks.seq2seq.task import Seq2Seq

    rows = datasets.Dataset.from_list(
        [
            {"id": str(number), "source": source, "target": target}
            for number, (source, target) in enumerate(pairs(600, seed=5, longest=longest))
        ]
    )
    tokenizer, task = learn_vocabulary(rows, 330), Seq2Seq()
    torch.manual_seed(0)
    model = EncoderDecoder(32, 1, 1, 2, 64, dropout=0.0).over(tokenizer).train()
    encoded = task.encode(tokenizer, rows, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for start in [*range(0, 600 - 31, 32)] * 20:
        batch = task.collate([encoded[row] for row in range(start, start + 32)], tokenizer)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def into_hub(hub: Path, kind: str, name: str, files: Path, revision: str = "main") -> str:
    """A repository in a hub cache as huggingface_hub lays it out: blobs by hash, a snapshot of links, a ref."""
    repository = hub / f"{kind}--{name.replace('/', '--')}"
    commit = hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()
    for file in sorted(path for path in files.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = repository / "snapshots" / commit / file.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (ref := repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    return commit


def run_snippet(file: Path, *words: str) -> list[str]:
    """The lines that an artifact's run_….py prints, in a process that finds no kdcli."""
    code = (
        f"import sys, runpy; sys.modules['kdcli'] = None; sys.argv = {[str(file), *words]!r}; "
        f"sys.path.insert(0, {str(file.parent)!r}); runpy.run_path({str(file)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def texts_of(run: Path, split: str = "test") -> list[str]:
    """The texts of a finished run's split, in the order of its predictions."""
    from kdcli.config.check import check
    from kdcli.config.schema import Distill
    from kdcli.data.dataset import load
    from kdcli.rundir import saved_config

    return list(load(check(Distill, saved_config(run)).dataset)[split]["text"])


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """As long as it lasts, no file of this process and of those that it starts grows beyond so many bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

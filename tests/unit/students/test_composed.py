"""Students that are initialised in several steps, through the real command."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import require_words
from support.tiny import BAD, FILLER, GOOD, SPECIAL, bert
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from kdcli.launch.run import launch
from kdcli.models.checkpoint import Checkpoint, load_tokenizer

UNUSED = [f"{word}ish" for word in GOOD + BAD]
HALVED = '''
import copy

from kdcli.students.pruning.base import PruningInitializer


class Halved(PruningInitializer):
    """Half of each feed-forward layer."""

    def cut(self, model, tokenizer, task, rows):
        config = copy.deepcopy(model.config)
        half = config.intermediate_size = config.intermediate_size // 2
        weights = model.state_dict()
        for name, weight in weights.items():
            if ".intermediate." in name:
                weights[name] = weight[:half]
            elif name.endswith(".output.dense.weight") and "attention" not in name:
                weights[name] = weight[:, :half]
        smaller = type(model)(config)
        smaller.load_state_dict(weights)
        return smaller.eval(), tokenizer
'''


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier over words, words that no sentence holds, and letters."""
    letters = string.ascii_lowercase
    tokens = [*SPECIAL, *UNUSED, *GOOD, *BAD, *FILLER, *letters, *(f"##{one}" for one in letters)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = BertTokenizerFast(tokenizer_object=inner)
    folder = tmp_path_factory.mktemp("models") / "speaking"
    bert(tokenizer, ["bad", "good"], layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Initialize = Callable[..., Path]


@pytest.fixture
def initialize(
    small: list[str], speaking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Initialize:
    """Runs `kdcli distill` with such steps; the learning rate is so low that the student does not change."""
    monkeypatch.chdir(tmp_path)
    plain = [word for word in small if not word.startswith("student.")]
    short = ["control=false", "measure=null", "trainer.max_steps=1", "trainer.learning_rate=1e-9"]

    def run(*options: str, expect: int = 0) -> Path:
        words = [*plain, *short, f"teacher.path={speaking}", "hydra.run.dir=run", *options]
        assert launch("distill", words) == expect
        return tmp_path / "run"

    return run


def rows_of(folder: Path) -> dict[str, torch.Tensor]:
    """Each token's row of the embeddings, as transformers alone loads them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    words = model.get_input_embeddings().weight.detach()
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert len(words) == len(vocabulary) == model.config.vocab_size
    return {token: words[number] for token, number in vocabulary.items()}


def config_of(run: Path) -> dict[str, object]:
    return json.loads((run / "student" / "config.json").read_text())


def test_layers_then_vocabulary(initialize: Initialize, speaking: Path) -> None:
    """A second step that undoes the first, or gives a token the row of another."""
    steps = ["student.initializers=[layers,vocabulary]", "student.steps.layers.num_hidden_layers=2"]
    run = initialize("student=composed", *steps)
    assert config_of(run)["num_hidden_layers"] == 2
    ours, theirs = rows_of(run / "student"), rows_of(speaking)
    assert theirs.keys() - ours.keys() == set(UNUSED)
    assert all(torch.allclose(ours[token], theirs[token], atol=1e-6) for token in ours)
    loaded = load_tokenizer(Checkpoint(run / "student", "it"))
    assert "##".join(loaded.tokenize("goodish")) == "good####i####s####h"


def test_tiny_trimmed(initialize: Initialize, speaking: Path) -> None:
    """A student of a size of its own that still carries every token of the teacher."""
    shape = [
        f"student.steps.from_config.{name}"
        for name in ("hidden_size=16", "num_hidden_layers=1", "intermediate_size=24")
    ]
    run = initialize("student=tiny-trimmed", *shape)
    assert (config_of(run)["hidden_size"], config_of(run)["num_hidden_layers"]) == (16, 1)
    assert rows_of(speaking).keys() - rows_of(run / "student").keys() == set(UNUSED)


def test_one_step_by_itself(initialize: Initialize, speaking: Path) -> None:
    """An initializer that works as a later step only."""
    run = initialize("student=vocabulary")
    assert config_of(run)["num_hidden_layers"] == 3
    assert rows_of(speaking).keys() - rows_of(run / "student").keys() == set(UNUSED)


def test_a_step_of_ones_own(initialize: Initialize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of which the middle one is lost; a class of one's own that cannot be a step."""
    (tmp_path / "halved.py").write_text(HALVED)
    monkeypatch.syspath_prepend(tmp_path)
    run = initialize(
        "student=composed",
        "student.initializers=[layers,mine,vocabulary]",
        "student.steps.layers.num_hidden_layers=1",
        "+student.steps.mine._target_=halved.Halved",
    )
    found = config_of(run)
    assert (found["num_hidden_layers"], found["intermediate_size"]) == (1, 32)
    assert not set(UNUSED) & rows_of(run / "student").keys()


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("[layers,from_config,vocabulary]", ["from_config", "first"]),
        ("[layers,vocabluary]", ["'vocabluary'", "vocabulary"]),
        ("[]", ["student.initializers", "empty"]),
    ],
)
def test_steps_that_cannot_be(
    initialize: Initialize, capsys: pytest.CaptureFixture[str], steps: str, words: list[str], tmp_path: Path
) -> None:
    """A run whose student is not the one that was asked for, or that fails after the teacher was tuned."""
    run = initialize("student=composed", f"student.initializers={steps}", expect=2)
    require_words(capsys.readouterr().err, *words)
    assert not run.exists()

"""Models without a neural network: what they learn, that they are sums to one, and what they refuse to fail on."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from support.tiny import exchanges, sentences, speller

from kdcli.config.schema import Measure
from kdcli.evaluation.models import Evaluator
from kdcli.evaluation.trivial import score_trivial
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.causal_lm.trivial import BigramModel
from kdcli.tasks.classification import trivial
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.encoded import Encoded
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.seq2seq.task import Seq2Seq
from kdcli.tasks.token_classification.task import TokenClassification
from kdcli.tasks.trivial import TrivialModel


def texts(rows: list[tuple[str, int]], pair: str | None = None) -> datasets.Dataset:
    own = {} if pair is None else {"text_pair": pair}
    return datasets.Dataset.from_list(
        [{"id": str(i), "text": text, "label": label} | own for i, (text, label) in enumerate(rows)]
    )


def moods(count: int, seed: int = 0) -> datasets.Dataset:
    names = ["bad", "good"]
    return texts([(text, names.index(label)) for text, label in sentences(count, seed=seed)])


def fitted(task: Classification, rows: datasets.Dataset, tokenizer: object, seed: int = 0) -> TrivialModel:
    model = task.trivial(tokenizer, seed)  # type: ignore[arg-type]
    assert model is not None
    model.fit(rows, task.encode_split(tokenizer, rows, 32))  # type: ignore[arg-type]
    return model


def evaluated(task: object, tokenizer: object, train: datasets.Dataset, test: datasets.Dataset) -> Evaluator:
    with Evaluator(task, test, 32, Measure()) as evaluator:  # type: ignore[arg-type]
        score_trivial(evaluator, tokenizer, train, seed=0)  # type: ignore[arg-type]
    return evaluator


def test_tfidf_learns_words_and_is_scored_as_the_others_are(tokenizer: object) -> None:
    """A baseline that is scored by other code, or on other rows, is compared with nothing."""
    task = Classification(["bad", "good"])
    entry = evaluated(task, tokenizer, moods(200), moods(100, seed=7)).models["trivial"]
    assert entry["score"] > 0.8
    low, high = entry["scores"]["accuracy_ci95"]
    assert low <= entry["score"] <= high
    assert sum(map(sum, entry["confusion"])) == sum(entry["calibration"]["count"]) == 100
    assert entry["latency_ms"]["p50"] > 0
    assert entry["throughput_per_s"] > 0
    assert entry["peak_memory_bytes"] is None
    assert entry["bytes"] > 4 * entry["parameters"] > 0


def test_the_same_rows_give_the_same_tfidf(tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline that differs from run to run makes two reports of one run differ; of many rows it takes a sample."""
    monkeypatch.setattr(trivial, "MOST_ROWS", 120)
    task, rows = Classification(["bad", "good"]), moods(200)
    answers = [fitted(task, rows, tokenizer, seed).respond(["a good film"]) for seed in (0, 0, 1)]
    assert np.array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])


@pytest.mark.parametrize(
    "rows",
    [
        [("good", 1), ("better", 1)],
        [("!", 0), ("🙂", 1), ("?", 2)],
        [("好", 0), ("坏", 1)],
        [("good film", 0), ("bad film", 2), ("good good", 0)],
    ],
)
def test_odd_training_rows_give_probabilities(tokenizer: object, rows: list[tuple[str, int]]) -> None:
    """One class, no words, or a class that only test rows have must not end a run after its training."""
    task = Classification(["a", "b", "c"])
    logits = fitted(task, texts(rows), tokenizer).respond(["good film", "", "坏"])
    assert logits.shape == (3, 3)
    assert np.isfinite(logits).all()
    assert set(logits.argmax(1)) <= {label for _, label in rows}


def test_words_of_which_none_occurs_twice_leave_the_characters(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script without spaces has one word a text: scikit-learn refuses an empty vocabulary."""
    monkeypatch.setattr(trivial, "PRUNED_FROM", 2)
    rows = texts([(f"{'好坏'[i % 2] * 4}{chr(0x4E00 + i)}", i % 2) for i in range(20)])
    logits = fitted(Classification(["a", "b"]), rows, tokenizer).respond(["好好好好", "坏坏坏坏"])
    assert logits.argmax(1).tolist() == [0, 1]


def test_long_texts_have_words_alone(tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Character n-grams of a thousand documents take minutes."""
    rows, task = moods(100), Classification(["bad", "good"])
    both = fitted(task, rows, tokenizer).parameters
    monkeypatch.setattr(trivial, "MOST_CHARACTERS", 10)
    assert fitted(task, rows, tokenizer).parameters < both


def test_both_texts_of_a_pair_are_read(tokenizer: object) -> None:
    """A baseline of the first text alone is weaker than it is said to be."""
    task = Classification(["a", "b"])
    rows = datasets.concatenate_datasets(
        [texts([("same", label)] * 5, pair) for label, pair in enumerate(("bad", "good"))]
    )
    model = task.trivial(tokenizer, 0)  # type: ignore[arg-type]
    assert model is not None
    assert model.inputs(rows) == ["same bad"] * 5 + ["same good"] * 5


def tagged(*rows: tuple[list[str], list[int]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"id": str(i), "words": words, "label": label} for i, (words, label) in enumerate(rows)]
    )


def test_a_word_has_its_most_frequent_tag(tokenizer: object) -> None:
    """The most frequent tag of all must not win over that of the word, nor count words without a gold tag."""
    task = TokenClassification(["B-PER", "O"])
    train = tagged((["good", "good", "bad"], [0, 0, 1]), (["good", "bad", "bad"], [1, 1, IGNORE]))
    train = datasets.concatenate_datasets([train, *[tagged((["film"] * 9, [1] * 9))] * 3])
    test = tagged((["good", "bad", "film", "new"], [0, 1, 1, 1]), (["good"], [1]))
    evaluator = evaluated(task, tokenizer, train, test)
    assert evaluator.predictions["trivial"]["logits"].argmax(1).tolist() == [0, 1, 1, 1, 0]
    assert evaluator.models["trivial"]["scores"]["precision"] == 0.5
    assert evaluator.models["trivial"]["throughput_per_s"] > 0


def rows_of_tokens(*rows: list[int]) -> Encoded:
    ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return Encoded({"input_ids": ids, "labels": ids.copy()}, np.cumsum([0, *map(len, rows)]))


def test_bigrams_are_probabilities() -> None:
    """Probabilities that do not sum to one, or are zero, give a perplexity that means nothing."""
    model = BigramModel(6)
    model.fit(datasets.Dataset.from_list([]), rows_of_tokens([0, 1, 2, 1, 2, 3], [0, 1, 2, 2, 1]))
    for before in range(6):
        test = rows_of_tokens(*([before, token] for token in range(6)))
        predicted = model.predict(datasets.Dataset.from_list([]), test)
        probability = np.exp(predicted["log_prob"].astype(np.float64))
        assert probability.sum() == pytest.approx(1, abs=1e-6)
        assert (probability > 0).all()
        top = predicted["top"]
        assert len(set(top.tolist())) == 1
        assert probability[top[0]] == pytest.approx(probability.max())
    assert model.predict(datasets.Dataset.from_list([]), rows_of_tokens([1, 2]))["top"].tolist() == [2]


def test_bigrams_are_scored_on_the_students_tokens() -> None:
    """A language model must be compared at the positions that count, with a model that has seen the training rows."""
    tokenizer, task = speller(), CausalLM(chat=True)
    rows = [
        {"id": str(i), "prompt": prompt, "completion": completion}
        for i, (prompt, completion) in enumerate(exchanges(60))
    ]
    train, test = datasets.Dataset.from_list(rows[:40]), datasets.Dataset.from_list(rows[40:])
    with Evaluator(task, test, 64, None) as evaluator:
        score_trivial(evaluator, tokenizer, train, seed=0)
    entry = evaluator.models["trivial"]
    labels, counts = task.targets(task.encode(tokenizer, test, 64))
    assert np.array_equal(evaluator.predictions["trivial"].labels, labels)
    assert np.array_equal(evaluator.predictions["trivial"].counts, counts)
    assert entry["score"] > task.chance(evaluator.predictions["trivial"], len(tokenizer)) + 1
    assert entry["throughput_per_s"] is None


def test_a_copy_is_scored_as_a_translation() -> None:
    """BLEU of a translator that learns nothing must be seen to be no better than a copy."""
    task, rows = Seq2Seq(), [("a b c d e", "a b c d f"), ("g h i j k", "l m n o p")]
    model = task.trivial(speller(), 0)
    assert model is not None
    table = datasets.Dataset.from_list([{"id": s, "source": s, "target": t} for s, t in rows])
    assert model.texts(table) == [source for source, _ in rows]
    with Evaluator(task, table, 64, None) as evaluator:
        score_trivial(evaluator, speller(), table, seed=0)
    entry = evaluator.models["trivial"]
    assert 0 < entry["score"] < 100
    assert entry["scores"]["copied"] == 1
    assert entry["parameters"] == entry["bytes"] == 0


def test_no_gold_labels_no_baseline(tokenizer: object) -> None:
    """Rows that a remote teacher alone labels have nothing to train a baseline on."""
    rows = moods(20)
    assert not evaluated(Classification(["bad", "good"]), tokenizer, rows.select([]), rows).models

"""What users get wrong with language models, through the real command: exit code 2, one message, nothing left behind; and
a store that was written for something else, which is never read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.commands import ColdCache, naming, refusal, require_words
from support.tiny import (
    CHAT,
    decoder,
    documents,
    exchanges,
    language_model_options,
    speaker,
    speller,
    talk,
    write_jsonl,
)
from transformers import OPTConfig, OPTForCausalLM

from kdcli.errors import KDError
from kdcli.launch.run import launch
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.teachers.local import LocalTeacher

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaker(tmp_path_factory.mktemp("models") / "speaker", steps=4)


@pytest.fixture
def refused(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs `kdcli distill` with bad input; returns its message after the checks that hold for all."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*overrides: str) -> str:
        own = any(word.startswith("student=") for word in overrides)
        base = [word for word in language_model_options(teacher) if not (own and word.startswith("student"))]
        message = refusal(capsys, "distill", [*base, "measure=null", *overrides])
        assert {str(path.relative_to(here)) for path in here.rglob("*")} <= {"runs", "runs/distill"}
        return message

    return run


def pairs(folder: Path, *more: dict[str, Any]) -> list[str]:
    """Exchanges and some rows more, in a file, and the overrides that name it."""
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in exchanges(80)]
    path = write_jsonl(folder / "rows.jsonl", [*rows, *more])
    return ["dataset=jsonl", f"dataset.path={path}", "dataset.prompt=prompt", "dataset.completion=completion"]


def copy(teacher: Path, folder: Path, template: str | None) -> Path:
    """The teacher with another chat template."""
    shutil.copytree(teacher, folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("model_type", ["bert", "roberta", "vit"])
def test_a_student_that_sees_what_it_shall_predict(refused: Refused, tmp_path: Path, model_type: str) -> None:
    """transformers makes a BERT with a head for the next token, which reads that token: nothing is learnt."""
    message = refused(*pairs(tmp_path), "student=tiny", f"student.model_type={model_type}")
    require_words(message, "student", model_type, "causal_lm", "student=smollm2-30m", "smollm2-60m")


# ---- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student=layers", "student.num_hidden_layers=9"], ["student.num_hidden_layers", "9", "2"]),
        (["student=pruned", "student.hidden_size=64"], ["student.hidden_size", "64", "32"]),
        (["student=vocabulary"], ["predicts tokens", "trimmed"]),
        (["student=composed", "student.initializers=[vocabulary]"], ["predicts tokens", "trimmed"]),
        (["student=layers", "student.num_hidden_layers=1", "OPT"], ["structure", "opt"]),
    ],
    ids=["layers", "pruned", "vocabulary", "composed", "opt"],
)  # fmt: skip
def test_a_student_that_cannot_be_initialized(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], words: list[str]
) -> None:
    """Found after hours of the teacher's tuning, and of its answers."""
    base = [word for word in language_model_options(teacher) if not word.startswith("student")]
    if overrides[-1] == "OPT":
        overrides[-1] = f"teacher.path={tmp_path / 'opt'}"
        config = OPTConfig(vocab_size=340, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=8,
                           word_embed_proj_dim=8, pad_token_id=0)  # fmt: skip
        OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
        speller().save_pretrained(tmp_path / "opt")
    run = f"hydra.run.dir={tmp_path / 'run'}"
    assert launch("distill", [*base, *talk(tmp_path, "pairs"), "teacher.tune=true", *overrides, run]) == 2
    err = capsys.readouterr().err
    require_words(err, *words)
    assert "[1/" not in err


@pytest.mark.parametrize("completion", ["", " \n", None])
def test_an_empty_completion(refused: Refused, tmp_path: Path, completion: str | None) -> None:
    """A row without an answer teaches the model to say nothing."""
    message = refused(*pairs(tmp_path, {"prompt": "the film:", "completion": completion}))
    require_words(message, "rows.jsonl", "line 81", "completion")


def test_an_answer_that_says_nothing(refused: Refused, tmp_path: Path) -> None:
    """A conversation whose assistant is silent."""
    rows = [
        {"messages": [{"role": "user", "content": "the film:"}, {"role": "assistant", "content": content}]}
        for content in ("good", "")
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    message = refused("dataset=jsonl", f"dataset.path={path}", "dataset.messages=messages")
    require_words(message, "rows.jsonl", "line 2", "message 2", "empty")


@pytest.mark.parametrize("chat", ["false", "true"])
def test_a_prompt_that_fills_the_context(refused: Refused, tmp_path: Path, chat: str) -> None:
    """Its answer is cut off: the row has nothing that is learnt, and a batch of such rows a loss that is no number. Or such rows are
    told of one by one, by the words that the template begins them all with."""
    long = {"prompt": "the film was " * 30, "completion": "good"}
    message = refused(*pairs(tmp_path, long), f"dataset.chat={chat}")
    require_words(message, "the film was the film was", "completion", "dataset.max_length", "64")
    require_words(message, "1 of", "dataset.truncation=drop")


@pytest.mark.parametrize("length", [1, 2])
def test_no_token_counts(refused: Refused, tmp_path: Path, length: int) -> None:
    """Plain text in rows of one token, before which nothing stands: a perplexity of no token at all."""
    message = refused(*talk(tmp_path, "text"), f"dataset.max_length={length}")
    require_words(message, "dataset.max_length", f"{length}", "text", "3 tokens")


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("rollout.max_new_tokens", ["rollout=teacher", "rollout.max_new_tokens=128"]),
        ("measure.new_tokens", ["measure={new_tokens: 128}"]),
    ],
)
def test_more_is_to_be_written_than_there_are_positions(
    refused: Refused, tmp_path: Path, key: str, overrides: list[str]
) -> None:
    """A model that writes past its last position, in the evaluation, when all is trained."""
    require_words(refused(*pairs(tmp_path), *overrides), key, "128", "llama", f"{key} < 128")


def test_labelled(refused: Refused, tmp_path: Path) -> None:
    """An option for labels that silently does nothing to completions."""
    require_words(refused(*pairs(tmp_path), "dataset.labelled=20"), "labelled", "causal_lm", "limit")


def test_answers_that_are_cut_off_are_told_of(
    teacher: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Most answers of a real chat are longer than 128 tokens, and a student that never saw one end writes on and on."""
    long = [{"prompt": f"so {number}:", "completion": "it was good, " * 40} for number in range(3)]
    words = [*pairs(tmp_path, *long), "trainer.batch_size=999", f"hydra.run.dir={tmp_path / 'run'}"]
    assert (
        launch(
            "distill",
            [*language_model_options(teacher), *words, "dataset.test_size=4", "dataset.validation_size=4"],
        )
        == 2
    )
    require_words(capsys.readouterr().err, "INFO", "of 75 training rows", "dataset.max_length", "64 tokens")


def test_what_is_too_long_can_be_left_out(refused: Refused, tmp_path: Path) -> None:
    """One prompt that fills the context stops the run, and its user has to count tokens by himself."""
    long = [{"prompt": f"{n} was " * 40, "completion": "good"} for n in range(30)]
    long += [{"prompt": f"so {n}:", "completion": "good, " * 90} for n in range(30)]
    words = [*pairs(tmp_path, *long), "dataset.truncation=drop", "trainer.batch_size=999"]
    message = refused(*words, "dataset.test_size=10", "dataset.validation_size=10")
    require_words(message, "trainer.batch_size", "999")
    kept = int(re.findall(r"(\d+) rows", message)[0])
    assert 60 <= kept <= 80, (
        "of 120, sixty of which are too long but for those that went into validation and test"
    )
    message = refused(*words, "dataset.max_length=8", "rollout.max_new_tokens=2", "measure=null")
    require_words(message, "rows", "dataset.max_length", "8 tokens")


# ---- templates ----------------------------------------------------------------------------------------


def test_no_chat_template(refused: Refused, teacher: Path, tmp_path: Path) -> None:
    """A traceback of jinja2, or a conversation that is written in a way which the model never saw."""
    plain = copy(teacher, tmp_path / "plain", None)
    message = refused(*talk(tmp_path, "messages"), f"teacher.path={plain}")
    require_words(message, "no chat template", "chat_template.jinja")


SAME = "{% for turn in messages %}{{ turn['content'] }}<|end|>\n{% endfor %}"
SPEECHLESS = "{{ raise_exception('no conversations here') }}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (SAME, ["alike"]),
        (
            CHAT.replace("{% if add_generation_prompt %}<|assistant|>{% endif %}", "<|user|>"),
            ["generation prompt", "repair"],
        ),
        (SPEECHLESS, ["refuses", "user", "assistant", "no conversations here"]),
        ("{% for turn in messages %}", ["refuses", "user", "assistant"]),
    ],
    ids=["same", "another beginning", "refuses", "no jinja"],
)
def test_a_template_that_cannot_be_used(
    refused: Refused, teacher: Path, tmp_path: Path, template: str, words: list[str]
) -> None:
    """Roles that are written alike, or an answer that cannot be told from its prompt: the model learns the questions."""
    odd = copy(teacher, tmp_path / "odd", template)
    require_words(refused(*talk(tmp_path, "messages"), f"teacher.path={odd}"), "template", *words)


def test_a_turn_that_the_template_does_not_take(refused: Refused, teacher: Path, tmp_path: Path) -> None:
    """One conversation among thousands begins with a system's turn, which Gemma's template refuses, and nobody says which."""
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}" + CHAT
    turns = [{"role": "user", "content": "so:"}, {"role": "assistant", "content": "so it was"}]
    odd = [{"role": "system", "content": "Be brief."}, *turns]
    rows = [{"messages": [{"role": "user", "content": prompt}, turns[1]]} for prompt, _ in exchanges(80)]
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, {"messages": odd}])
    words = ["dataset=jsonl", f"dataset.path={path}", "dataset.messages=messages"]
    message = refused(*words, f"teacher.path={copy(teacher, tmp_path / 'odd', template)}")
    require_words(message, "row", "'Be brief.'", "template", "system", "user", "No system", "remove")


def test_one_long_document(refused: Refused, tmp_path: Path) -> None:
    """A smaller test split is advised where there is one row: no size is small enough."""
    (tmp_path / "long.txt").write_text(" ".join(documents(8)).replace("\n", " "))
    message = refused("dataset=text", f"dataset.path={tmp_path / 'long.txt'}")
    require_words(message, "1", "dataset.validation=", "dataset.test=", "blank")


# ---- models -------------------------------------------------------------------------------------------


def test_a_gguf_of_an_unknown_kind(refused: Refused, tmp_path: Path) -> None:
    """A model that llama.cpp knows and transformers does not."""
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "nonsense")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    require_words(refused(*pairs(tmp_path), f"teacher.path={path}"), "kind of model", "nonsense")


def test_a_file_that_is_no_gguf(refused: Refused, tmp_path: Path) -> None:
    """A download page saved under the model's name."""
    path = tmp_path / "model.gguf"
    path.write_text("<!doctype html>")
    require_words(refused(*pairs(tmp_path), f"teacher.path={path}"), str(path), "GGUF")


def changed(how: Callable[[dict[str, Any]], None]) -> Any:
    """The tokenizer after a change of its file."""
    tokenizer = speller()
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    how(inner)
    again = tokenizer.backend_tokenizer.from_str(json.dumps(inner))
    return type(tokenizer)(tokenizer_object=again, eos_token="<|end|>", pad_token="<|end|>")


def a_student(folder: Path, tokenizer: Any) -> str:
    decoder(tokenizer, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"student.path={folder}"


def test_another_vocabulary(refused: Refused, tmp_path: Path) -> None:
    """The divergence between the probabilities of different tokens is a number, and falls."""

    def swap(inner: dict[str, Any]) -> None:
        vocabulary = inner["model"]["vocab"]
        one, other = [token for token in vocabulary if token.isalpha() and len(token) > 2][:2]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    message = refused(*pairs(tmp_path), "student=local", a_student(tmp_path / "student", changed(swap)))
    require_words(message, "different vocabularies", "student", "teacher's family")


def test_the_same_vocabulary_cut_in_another_way(refused: Refused, tmp_path: Path) -> None:
    """The same ids for the same tokens, and other tokens of the same text: the teacher judges others than the student says."""

    def cut(inner: dict[str, Any]) -> None:
        inner["model"]["merges"] = inner["model"]["merges"][:20]

    message = refused(*pairs(tmp_path), "student=local", a_student(tmp_path / "student", changed(cut)))
    require_words(message, "teacher", "student", "different tokens")


def test_a_student_with_another_template(refused: Refused, tmp_path: Path) -> None:
    """An answer that ends in another token for the student: its teacher judges another number of tokens."""
    other = speller(CHAT.replace("<|end|>\n", "\n<|end|>"))
    message = refused(*talk(tmp_path, "messages"), "student=local", a_student(tmp_path / "student", other))
    require_words(message, "teacher", "student", "different tokens", "chat templates")


def test_a_model_that_reads_across_documents(refused: Refused, tmp_path: Path) -> None:
    """OPT, MPT, Falcon or Mamba pay no heed to position_ids: each document is judged as the continuation of a stranger."""
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer, folder = speller(), tmp_path / "opt"
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    OPTForCausalLM(
        OPTConfig(vocab_size=340, num_attention_heads=2, max_position_embeddings=128, **shape, **ends)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = ["student=local", f"student.path={folder}"]
    message = refused(*talk(tmp_path, "text"), f"teacher.path={folder}", *own)
    require_words(message, "opt", "OPTForCausalLM", "documents")
    assert CausalLM().load(folder)[1] is False  # for other data it will do


def test_two_temperatures_and_a_store(refused: Refused, tmp_path: Path) -> None:
    """The mass outside the top k at the second temperature is made up."""
    more = "+loss.more={_target_: kdcli.losses.reverse_kl.ReverseKL, temperature: 3}"
    message = refused(*pairs(tmp_path), more, "loss.soft_label.temperature=2")
    require_words(message, "[2.0, 3.0]", "teacher.cache=false")


# ---- what is stored -----------------------------------------------------------------------------------


def test_a_store_of_something_else_is_not_read(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache
) -> None:
    """A store that is found by less than all that decides the answers gives the student another teacher's."""
    monkeypatch.chdir(tmp_path)
    cold_cache("cache")
    asked: list[int] = []
    rows = LocalTeacher.outputs

    def counted(self: LocalTeacher, examples: Any, *more: Any) -> Any:
        asked.append(len(examples))
        return rows(self, examples, *more)

    def stop(*_: Any) -> None:
        raise KDError("the signals are there")

    monkeypatch.setattr(LocalTeacher, "outputs", counted)
    monkeypatch.setattr("kdcli.pipeline.student.initialize_student", stop)

    def answers(*overrides: str) -> int:
        """How many rows a run asks the teacher about."""
        asked.clear()
        assert (
            launch("distill", [*language_model_options(teacher), "measure=null", *overrides])
            == KDError.exit_code
        )
        return sum(asked)

    data = pairs(tmp_path)
    checked = 16  # rows of the validation split, on which the pre-flight compares the teacher's scores
    assert answers(*data) == 80 + checked
    assert answers(*data) == 0
    other = speaker(tmp_path / "other", steps=1)
    template = copy(teacher, tmp_path / "template", CHAT.replace("<|end|>\n", "<|end|>"))
    for changed in (
        [f"teacher.path={other}"],
        [f"teacher.path={template}"],
        ["dataset.max_length=60"],
        ["dataset.chat=true"],
        ["teacher.trainer.precision=bf16"],
    ):
        assert answers(*data, *changed) == 80 + checked, changed
    for changed in (["teacher.top_k=63"], ["loss.soft_label.temperature=2"]):
        assert answers(*data, *changed) == 80, changed
    assert answers(*data, "seed=1", "loss.soft_label.weight=2", "trainer.learning_rate=0.01") == 0
    assert answers(*pairs(tmp_path, {"prompt": "so:", "completion": "it was"})) > 0


def test_packed_rows_are_known_by_all_their_documents() -> None:
    """A row that is known by its first document alone: when the second one changes, the answers to the old text teach the
    new one, or there are too few of them."""
    task, tokenizer = CausalLM(), speller()
    texts = [text[:60] for text in documents(8)]
    lists = [
        texts[:-1],
        *([text + " so" * (at == place) for at, text in enumerate(texts)] for place in range(8)),
    ]
    known: dict[str, tuple[Any, ...]] = {}
    for some in lists:
        rows = [{"id": f"{place}", "text": text} for place, text in enumerate(some)]
        for row in task.prepare(datasets.Dataset.from_list(rows), tokenizer, 64):
            holds = (*row["texts"], *row["ends"])
            assert known.setdefault(row["id"], holds) == holds
    assert len(known) > len(lists)


def test_scores_of_a_teacher_that_contradict_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher of perplexity 1 whose end token is the first token of each completion writes nothing: an hour later the report shows it."""
    monkeypatch.chdir(tmp_path)
    path = speaker(tmp_path / "teacher", answer="<|system|>it was")
    config = json.loads((path / "generation_config.json").read_text())
    first = speller().convert_tokens_to_ids("<|system|>")
    (path / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [0, first]}))
    answers = [{"prompt": prompt, "completion": "<|system|>it was"} for prompt, _ in exchanges(80)]
    data = ["dataset=jsonl", f"dataset.path={write_jsonl(tmp_path / 'rows.jsonl', answers)}"]
    columns = ["dataset.prompt=prompt", "dataset.completion=completion", "measure=null"]
    for _ in range(2):  # the second run reads from the cache what the first one computed
        message = refusal(capsys, "distill", [*language_model_options(path), *data, *columns])
        require_words(message, "perplexity", "empty", "ROUGE-L", "eos_token_id", "generation_config.json")


def test_a_student_that_ends_texts_otherwise(refused: Refused, tmp_path: Path) -> None:
    """The student learns to end its texts by the teacher's token, and writes on to the limit wherever its own is looked for."""
    other = speller()
    other.eos_token = other.pad_token = "<|system|>"
    message = refused(*pairs(tmp_path), "student=local", a_student(tmp_path / "student", other))
    require_words(message, "teacher", "token 0", "student", "token 3", "eos_token", "tokenizer_config.json")


def test_calls_that_a_template_does_not_write(refused: Refused, tmp_path: Path) -> None:
    """ "I look." is learned without the look."""
    call = {"type": "function", "function": {"name": "look", "arguments": '{"of": "song"}'}}
    answer = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    rows = [{"messages": [{"role": "user", "content": prompt}, answer]} for prompt, _ in exchanges(80)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    message = refused("dataset=jsonl", f"dataset.path={path}", "dataset.messages=messages")
    require_words(message, "chat template", "tool_calls", "model", "remove")


def test_how_many_turns_count_is_told(
    teacher: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Answers of weight 0, or lists of TRL, whose turns nobody counts; or the template of the model is not that of a chat any more."""
    rows = [
        {
            "prompt": [{"from": "human", "value": prompt}, {"from": "gpt", "value": "so"}, {"role": "user", "content": "and?"}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        }
        for prompt, answer in exchanges(80)
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    names = [
        "dataset=jsonl",
        f"dataset.path={path}",
        "dataset.prompt=prompt",
        "dataset.completion=completion",
    ]
    words = [*names, "trainer.batch_size=999", f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("distill", [*language_model_options(teacher), *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("INFO training rows: ")]
    assert any(naming("48 of 96 turns", "48 have the weight 0").search(line) for line in lines), lines

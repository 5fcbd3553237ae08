"""Translation: what a model reads, which of its tokens count, what it writes, and how that is scored."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support.commands import naming, require_words
from support.tiny import pairs
from support.translators import CODES, lay_out

from kdcli.config.rollout import Rollout
from kdcli.errors import ConfigError, DataError
from kdcli.evaluation.compare import gain, gain_over_seeds, resampled
from kdcli.generation import Reply, decoded, translate
from kdcli.models.checkpoint import Checkpoint
from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary
from kdcli.tasks.base import Predictions
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.seq2seq.task import Seq2Seq
from kdcli.teachers.local import LocalTeacher


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [
            {"id": str(number), "source": source, "target": target}
            for number, (source, target) in enumerate(pairs(60))
        ]
    )


@pytest.fixture(scope="module")
def words(rows):
    return learn_vocabulary(rows, 300)


def beginning(words):
    """The same words, and texts begin with <s>, as those of BART do."""
    from tokenizers.processors import TemplateProcessing

    words = deepcopy(words)
    words.add_special_tokens({"bos_token": "<s>"})
    ends = [(token, words.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return words


def made(kind: str, words):
    """A small random model of an architecture, and its tokenizer."""
    import transformers

    torch.manual_seed(3)
    shape = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    shape |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    shape |= {"forced_eos_token_id": words.eos_token_id}
    tokens = {
        "vocab_size": len(words),
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
    }
    tokens["decoder_start_token_id"] = words.pad_token_id
    if kind == "Marian":
        return EncoderDecoder(32, 2, 1, 2, 64).over(words).eval(), words
    if kind == "Bart of the hub":
        words, kind = beginning(words), "Bart"
        tokens |= {"vocab_size": len(words), "bos_token_id": words.bos_token_id}
        tokens |= {"decoder_start_token_id": words.eos_token_id}
    if "T5" in kind:
        shape = {
            "d_model": 32,
            "d_ff": 64,
            "num_layers": 2,
            "num_decoder_layers": 1,
            "num_heads": 2,
            "d_kv": 16,
        }
        shape["tie_word_embeddings"] = kind == "T5"
        kind = kind.split()[0]
    config = getattr(transformers, f"{kind}Config")(**tokens, **shape)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    if words.bos_token_id is not None:
        model.generation_config.forced_bos_token_id = words.bos_token_id
        model.generation_config.forced_eos_token_id = words.eos_token_id
    return model, words


KINDS = ["Marian", "T5", "T5 untied", "MT5", "Bart", "Bart of the hub", "M2M100"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_the_target_counts_as_the_model_itself_says(kind: str, rows, words) -> None:
    """The first target token goes uncounted, since the decoder's start token is the pad token; or the target is not shifted."""
    (model, words), task = made(kind, words), Seq2Seq()
    if hasattr(model, "final_logits_bias"):  # a checkpoint's own is not 0 everywhere
        model.final_logits_bias.copy_(torch.randn(1, len(words)))
    encoded = task.encode(words, rows, 64)
    said = task.predict(model, words, encoded)
    sources, targets = (
        words(list(rows[side][:7]), return_tensors="pt", padding=True) for side in ("source", "target")
    )
    labels = targets.input_ids.masked_fill(targets.attention_mask == 0, IGNORE)
    given = 1 if kind == "Bart of the hub" else 0
    with torch.no_grad():
        logits = model(sources.input_ids, attention_mask=sources.attention_mask, labels=labels).logits
    loss = torch.nn.functional.cross_entropy(logits[:, given:].transpose(1, 2), labels[:, given:])
    assert said.counts[:7].tolist() == (targets.attention_mask.sum(1) - given).tolist()
    own = said["log_prob"][: said.counts[:7].sum()]
    assert float(-own.mean()) == pytest.approx(float(loss), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_nothing(kind: str, rows, words) -> None:
    """A row's score, or its translation, depends on what it is batched with."""
    (model, words), task = made(kind, words), Seq2Seq()
    encoded = task.encode(words, rows, 64)
    together, alone = Seq2Seq(), Seq2Seq()
    alone.batch = 1
    one, other = (each.predict(model, words, encoded) for each in (together, alone))
    np.testing.assert_allclose(one["log_prob"], other["log_prob"], atol=2e-5)
    sources = [encoded[row]["input_ids"].tolist() for row in range(9)]
    how = {"max_new_tokens": 12, "num_beams": 2}
    assert translate(model, words, sources, [], batch_size=9, **how) == translate(
        model, words, sources, [], batch_size=1, **how
    )


def test_what_is_drawn_depends_on_the_seed_of_a_row_alone(rows, words) -> None:
    """Answers of on-policy distillation change with the batch, so that a resumed run differs."""
    model, _ = made("Marian", words)
    sources = words(rows["source"][:6])["input_ids"]
    how = {"max_new_tokens": 8, "temperature": 1.0, "candidates": 2}
    seeds = list(range(6))
    whole = translate(model, words, sources, [], batch_size=6, seeds=seeds, **how)
    assert whole == translate(model, words, sources, [], batch_size=4, seeds=seeds, **how)
    assert whole[2:4] == translate(model, words, sources[1:2], [], batch_size=4, seeds=seeds[1:2], **how)
    assert whole[0] != whole[1]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_what_transformers_writes(kind: str, rows, words) -> None:
    """Our own stop rules or start tokens make another text than the model's `generate`."""
    model, words = made(kind, words)
    ids = words(rows["source"][:1], return_tensors="pt").input_ids
    given = Seq2Seq().given(words)
    (ours,) = translate(model, words, ids.tolist(), given, max_new_tokens=12, batch_size=4)
    how = {"do_sample": False, "num_beams": 1, "suppress_tokens": [words.pad_token_id]}
    own = model.generate(ids, max_new_tokens=14, **how)[0, 1:].tolist()
    assert [*given, *ours] == own[: len(given) + len(ours)]
    assert given == ([words.bos_token_id] if kind == "Bart of the hub" else [])


def test_candidates_of_a_search(rows, words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source is learnt with its neighbour's translation once rows are sorted by length, or with the likeliest where the nearest to
    the reference was asked for; batches of any lengths, most of which is padding."""
    model, _ = made("Marian", words)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:
                weight += 0.3 * torch.randn_like(weight)  # so that a text depends on its source
    sources, real = words(list(rows["source"]))["input_ids"][:7], model.generate
    lengths = [len(ids) for ids in sources]
    assert lengths != sorted(lengths, reverse=True)
    batches: list[list[int]] = []

    def spy(**given: Any) -> Any:
        batches.append(given["attention_mask"].sum(1).tolist())
        return real(**given)

    monkeypatch.setattr(model, "generate", spy)
    how = {"num_beams": 4, "max_new_tokens": 8}
    found = translate(model, words, sources, [], batch_size=3, candidates=4, **how)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [length for batch in batches for length in batch] == sorted(lengths, reverse=True)
    for place, ids in enumerate(sources):
        own = real(torch.tensor([ids]), num_return_sequences=4, suppress_tokens=[words.pad_token_id], **how)
        four = found[4 * place : 4 * place + 4]
        assert len(set(map(tuple, four))) == 4
        assert four == [line[1 : 1 + len(ours)].tolist() for line, ours in zip(own, four, strict=True)]
    assert len(set(map(tuple, found))) > 14, "texts that say nothing about their sources"
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    teacher = LocalTeacher()
    teacher.open(Checkpoint(tmp_path, "teacher"), Seq2Seq(), 64, "fp32")
    texts = decoded(words, found)
    wanted = [texts[4 * place + place % 4] for place in range(7)]
    search = Rollout(source="teacher", sampling_temperature=0.0, candidates=4, batch_size=3, **how)
    some = [dict(row, target=text) for row, text in zip(rows, wanted, strict=False)]
    assert teacher.write(some, search, 0) == wanted
    some[3]["target"] = None  # only the teacher translates it
    assert teacher.write(some, search, 0)[3] == texts[12]


def test_what_is_given_is_not_counted(rows, words) -> None:
    """A language code, which is forced at the beginning of every text, is counted as if it were predicted."""
    words.add_special_tokens({"bos_token": "<de>"})
    from tokenizers.processors import TemplateProcessing

    backend = words.backend_tokenizer
    before = backend.post_processor
    code = words.convert_tokens_to_ids("<de>")
    try:
        backend.post_processor = TemplateProcessing(
            single="<de> $A </s>", special_tokens=[("</s>", words.eos_token_id), ("<de>", code)]
        )
        task = Seq2Seq()
        assert task.given(words) == [code]
        encoded = task.encode(words, rows, 64)
        item = encoded[0]
        assert item["target"][0] == code
        assert item["labels"][0] == IGNORE
        assert (item["labels"][1:] == item["target"][1:]).all()
        model = EncoderDecoder(32, 1, 1, 2, 64).over(words).eval()
        (ours,) = translate(
            model, words, [item["input_ids"].tolist()], [code], max_new_tokens=5, batch_size=1
        )
        own = model.generate(
            torch.tensor([item["input_ids"].tolist()]),
            max_new_tokens=6,
            forced_bos_token_id=code,
            num_beams=1,
        )
        assert own[0, 1] == code
        assert ours == own[0, 2 : 2 + len(ours)].tolist()
    finally:
        backend.post_processor = before


class Codes:
    """What tokenizers of several languages have."""

    src_lang, tgt_lang = "eng_Latn", "fra_Latn"
    init_kwargs: dict[str, str] = {}  # noqa: RUF012
    all_special_tokens = ("</s>", "eng_Latn", "fra_Latn", "deu_Latn")


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        ((None, "deu_Latn"), ("dataset.source_language", "not set", "deu_Latn, eng_Latn, fra_Latn")),
        (
            ("eng_Latn", "deu_Latin"),
            ("dataset.target_language = deu_Latin", "deu_Latn?"),
        ),
    ],
)
def test_a_language_that_the_model_does_not_know(languages, words: tuple[str, ...]) -> None:
    """A wrong code becomes the unknown token, and the model writes some other language."""
    with pytest.raises(ConfigError) as caught:
        Seq2Seq(languages)._set_languages(Codes())  # type: ignore[arg-type]
    require_words(caught.value.message, *words)


def test_languages_are_set() -> None:
    """The tokenizer keeps the languages of its checkpoint."""
    codes = Codes()
    Seq2Seq(("eng_Latn", "deu_Latn"))._set_languages(codes)  # type: ignore[arg-type]
    assert (codes.src_lang, codes.tgt_lang) == ("eng_Latn", "deu_Latn")


@pytest.mark.parametrize(
    ("name", "languages"),
    [("Nllb", ("eng_Latn", "spa_Latn")), ("MBart50", ("en_XX", "es_XX")), ("M2M100", ("en", "es"))],
)
def test_tokenizers_of_several_languages(name: str, languages: tuple[str, str], rows, tmp_path: Path) -> None:
    """The source is marked as another language than it is, the target's code is predicted, or a saved student writes in a
    language of its own choice."""
    import transformers

    if name == "M2M100":  # its codes are tokens of another form, __es__
        tokenizer = lay_out(tmp_path / "made", name)
    else:
        letters = sorted({letter for pair in pairs(60) for text in pair for letter in text} - {" "})
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters]
        numbered = {token: number for number, token in enumerate(tokens)}
        made: Any = numbered if name == "Nllb" else [(token, 0.0) for token in tokens]
        tokenizer = getattr(transformers, f"{name}Tokenizer")(vocab=made)
    task = Seq2Seq(languages)
    codes = languages if name != "M2M100" else ("__en__", "__es__")
    source, target = (tokenizer.convert_tokens_to_ids(code) for code in codes)
    assert task.given(tokenizer) == [target]
    item = task.encode(tokenizer, rows, 200)[0]
    assert (item["input_ids"][0], item["target"][0]) == (source, target)
    assert (item["labels"][0], item["labels"][1]) == (IGNORE, item["target"][1])
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = transformers.M2M100Config(vocab_size=len(tokenizer), d_model=16, decoder_start_token_id=2,
                                       encoder_attention_heads=2, decoder_attention_heads=2, **shape)  # fmt: skip
    torch.manual_seed(1)
    model = transformers.M2M100ForConditionalGeneration(config).eval()
    task.prepare_for_saving(model, tokenizer, 12)
    (text,) = task.write(model, tokenizer, rows.select([0]), 13)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    student = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    said = student.generate(**again(rows["source"][0], return_tensors="pt"), num_beams=1, do_sample=False)
    assert said[0, 1] == target
    assert again.decode(said[0], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() == text


def test_two_sentencepiece_models(rows, tmp_path: Path) -> None:
    """A target that is cut into pieces by what was learnt from sources (and, where those are unknown, is no text any more); a
    language that the prefix names, and that the model reads as letters."""
    import sentencepiece

    tokenizer = lay_out(tmp_path, "Marian")
    task = Seq2Seq(prefix=f"{CODES[0]} ")
    encoded = task.encode(tokenizer, rows, 200)
    inner = {side: sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"{side}.spm")) for side in ("source", "target")}  # fmt: skip
    for row, item in zip(rows, map(encoded.__getitem__, range(len(rows))), strict=True):
        read, written = (
            tokenizer.convert_ids_to_tokens(item[name].tolist()) for name in ("input_ids", "target")
        )
        assert read == [CODES[0], *inner["source"].encode(row["source"], out_type=str), "</s>"]
        assert written == [*inner["target"].encode(row["target"], out_type=str), "</s>"]
        assert decoded(tokenizer, [item["target"].tolist()]) == [row["target"]]
        assert len(written) < 1 + len(inner["source"].encode(row["target"], out_type=str))


def test_long_pairs_are_refused_or_dropped_whole(rows, words) -> None:
    """A cut target teaches to stop in the middle of a sentence; or a source loses its target."""
    longest = max(len(ids) for ids in words(list(rows["source"]))["input_ids"])
    words_of_it = ("pairs", f"dataset.max_length = {longest - 1}", "dataset.truncation=drop")
    with pytest.raises(DataError, match=naming(*words_of_it)):
        Seq2Seq().prepare(rows, words, longest - 1)
    task = Seq2Seq(truncation="drop")
    kept = task.prepare(rows, words, longest - 1)
    assert task.dropped == len(rows) - len(kept) > 0
    assert set(zip(kept["source"], kept["target"], strict=True)) < set(pairs(60))


def test_prefix(rows, words) -> None:
    """T5 is not told what to do."""
    task = Seq2Seq(prefix="translate: ")
    assert task.inputs(rows, words)[0] == ["translate: " + rows["source"][0]]
    ids = task.encode(words, rows, 64)[0]["input_ids"]
    assert words.decode(ids, skip_special_tokens=True).strip() == "translate: " + rows["source"][0]


def said(texts: list[str], references: list[str]) -> Predictions:
    empty = np.empty(0)
    return Predictions({}, empty, np.ones(len(texts)), texts, [("x", reference) for reference in references])


def test_bleu_of_sums_is_corpus_bleu() -> None:
    """The bootstrap resamples something else than sacrebleu's BLEU."""
    import sacrebleu

    references = [target for _, target in pairs(40, longest=12)]
    texts = [" ".join(text.split()[:-1]) if number % 3 else text for number, text in enumerate(references)]
    task = Seq2Seq()
    own = task.score_from_statistics(task.sufficient_statistics(said(texts, references)).sum(0))
    assert own == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert task.scores(said(texts, references))["bleu"] == pytest.approx(own)


def test_paired_bootstrap() -> None:
    """An interval that holds 0 for a clear gain, or a p-value of the wrong side."""
    references = [target for _, target in pairs(80, longest=12)]
    worse = [" ".join(text.split()[1:]) if number % 2 else text for number, text in enumerate(references)]
    task = Seq2Seq()
    found = gain(task, said(references, references), said(worse, references))
    assert found["gain_ci95"][0] > 0
    assert found["gain_p"] < 0.01
    assert found["gain_ci95"][0] < found["gain_over_control"] < found["gain_ci95"][1]
    back = gain(task, said(worse, references), said(references, references))
    assert back["gain_p"] < 0.01
    assert back["gain_ci95"][1] < 0
    same = gain(task, said(worse, references), said(worse, references))
    assert same["gain_ci95"] == [0, 0]
    assert same["gain_p"] == 1
    assert resampled(task, said(references, references))[0] == pytest.approx(100)


@pytest.mark.parametrize("most", [10, 300_000])
def test_resamples_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A hundred thousand rows whose interval needs gigabytes; or resamples that are drawn twice, or lost, from block to block."""
    references = [target for _, target in pairs(40, longest=12)]
    texts = [" ".join(text.split()[number % 3 :]) for number, text in enumerate(references)]
    expected = resampled(Seq2Seq(), said(texts, references))
    monkeypatch.setattr("kdcli.evaluation.compare.BLOCK", most)
    np.testing.assert_array_equal(resampled(Seq2Seq(), said(texts, references)), expected)


def test_seeds_of_a_metric_that_is_no_mean() -> None:
    """The interval over seeds ignores the rows, or the seeds; a loss of one seed makes the gain uncertain."""
    references = [target for _, target in pairs(80, longest=12)]

    def cut(every: int, first: int) -> Predictions:
        return said(
            [
                " ".join(text.split()[1:]) if number % every == first else text
                for number, text in enumerate(references)
            ],
            references,
        )

    task, control = Seq2Seq(), cut(2, 0)
    one, other, equal = cut(6, 0), cut(7, 0), cut(2, 1)
    agreeing = gain_over_seeds(task, [one, other, cut(5, 1)], [control] * 3)
    assert agreeing["gain_ci95"][0] > 0
    assert agreeing["gain_p"] < 0.05
    spread = gain_over_seeds(task, [one, equal, cut(1, 0)], [control] * 3)
    assert spread["gain_ci95"][0] < 0 < spread["gain_ci95"][1]
    assert spread["smallest_gain"] > agreeing["smallest_gain"]


def test_a_translator_must_beat_copies() -> None:
    """A model that copies its source is compared with nothing, where source and target share many words."""
    predictions = Predictions(
        {}, np.empty(0), np.ones(2), ["a b c d", "x"], [("a b c d e", "a b c d"), ("q", "x")]
    )
    baseline = Seq2Seq().chance_predictions(predictions)
    assert baseline is not None
    assert list(baseline.texts) == ["a b c d e", "q"]


def test_copies_are_counted() -> None:
    """A model that copies its source passes for one that translates; texts whose reference is their source are no copies."""
    task = Seq2Seq()
    found = task.text_scores(["a B", "c", "e"], [("A b", "z"), ("c", "c"), ("d", "d")])
    assert found["copied"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("texts", "perplexity", "words"),
    [
        (["", "", ""], 1.0, ("perplexity", "1.00", "3 of 3 texts", "empty")),
        (["xx", "yy", "zz"], 1.2, ("chrF", "0.0 of 100")),
        (["uno dos", "tres", "casa"], 500.0, ("perplexity", "500")),
        (["uno dos", "tres", "casa"], 1.1, ()),
        (["xx", "", ""], 90.0, ()),
    ],
)  # fmt: skip
def test_scores_that_contradict_each_other(
    texts: list[str], perplexity: float, words: tuple[str, ...]
) -> None:
    """A teacher that is read in another way than it was trained teaches empty texts, with a perplexity of 1."""
    targets = ["uno dos", "tres", "casa"]
    rows = datasets.Dataset.from_list(
        [{"id": target, "source": f"{target} en", "target": target} for target in targets]
    )
    findings = list(
        Seq2Seq().teacher_findings(
            rows, lambda some: [Reply(text, True) for text in texts], lambda some: -float(np.log(perplexity))
        )
    )
    assert len(findings) == bool(words)
    require_words("".join(findings), *words)
    assert all("dataset.target_language" in finding for finding in findings)


def test_nearest_candidate() -> None:
    """Sequence-level interpolation takes the teacher's first instead of what is nearest to the reference."""
    task = Seq2Seq()
    assert task.nearest(["uno dos", "uno dos tres", "casa"], "uno dos tres cuatro") == "uno dos tres"


def test_no_character_is_unknown(words) -> None:
    """A vocabulary learnt from a few rows loses what they do not hold."""
    text = "Ωmega 日本語 – “quoted” \U0001f600"
    assert words.decode(words(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert words.unk_token_id not in words(text)["input_ids"]


def test_a_new_model_is_a_plain_one(words, tmp_path: Path) -> None:
    """The student needs kdcli to be loaded, or starts from another token than it was trained with."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = EncoderDecoder(32, 2, 1, 2, 64).over(words)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert again.config.decoder_start_token_id == words.pad_token_id
    assert again.lm_head.weight.data_ptr() == again.model.encoder.embed_tokens.weight.data_ptr()
    assert AutoTokenizer.from_pretrained(tmp_path)("one two")["input_ids"] == words("one two")["input_ids"]


def test_too_small_a_vocabulary(rows) -> None:
    """A vocabulary without all bytes has unknown characters again."""
    with pytest.raises(ConfigError, match=naming("259 tokens")):
        learn_vocabulary(rows, 100)

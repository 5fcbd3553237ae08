"""Vocabularies that are trimmed to the data."""

from __future__ import annotations

import json
import string
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from support.commands import naming
from support.tiny import BAD, FILLER, GOOD, SPECIAL, bert, decoder, exchanges, sentences, speller
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    ByT5Tokenizer,
    ElectraConfig,
    ElectraForMaskedLM,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from kdcli.errors import ConfigError, ModelError
from kdcli.models.checkpoint import Checkpoint, load_tokenizer
from kdcli.students.pruning.vocabulary import Vocabulary, trim_embeddings
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification

TASK = Classification(["bad", "good"])
ROWS = [(text, label) for text, label in sentences(120) if "trip" not in text and "sour" not in text]
STRANGE = ["a sour trip", "the trips, so quizzical", "quite ümlauted", "tripsour 12", "filmy"]


def dataset(texts: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "label": [0] * len(texts)})


def wordpiece() -> BertTokenizerFast:
    """Words, pieces and letters, but no q; the special tokens stand apart, as BERT's do."""
    letters = string.ascii_lowercase.replace("q", "") + string.digits + ",[]"
    words = [*GOOD, *BAD, *FILLER, "##s", "##ing", "sours"]
    tokens = ["[PAD]", "[unused0]", "trips", *SPECIAL[1:], *words, *letters, *(f"##{one}" for one in letters)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return BertTokenizerFast(tokenizer_object=inner)


def bpe() -> RobertaTokenizer:
    """Byte-level BPE. A token that the rows do not use stands before the padding token, from which positions count."""
    inner = json.loads(speller(size=420).backend_tokenizer.to_str())["model"]
    learnt = [token for token in inner["vocab"] if not token.startswith("<|")]
    special = ["<s>", "Ġtrip", "<pad>", "</s>", "<unk>", "<mask>"]
    assert "Ġtrip" in learnt
    tokens = special + [token for token in learnt if token not in special]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return RobertaTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in inner["merges"]])


def unigram() -> XLMRobertaTokenizer:
    """A token that the rows do not use stands before the unknown token, whose number the class writes down."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False)
    ends = ["", "s", "ing", "y", "er", "ed", "less", "ness"]
    inner.train_from_iterator([word + end for word in GOOD + BAD + FILLER for end in ends], trainer)
    learnt = [tuple(entry) for entry in json.loads(inner.to_str())["model"]["vocab"]]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("▁sourtrip", -3.0), ("<unk>", 0.0), ("</s>", 0.0)]
    return XLMRobertaTokenizer(vocab=special + learnt)


def classifier(tokenizer) -> torch.nn.Module:
    if isinstance(tokenizer, BertTokenizerFast):
        return bert(tokenizer, TASK.labels).eval()
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = RobertaConfig(
        vocab_size=len(tokenizer) + 7,  # rows that only fill up
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
        type_vocab_size=1,
        **ids,
    )
    return RobertaForSequenceClassification(TASK.configure(config)).eval()


MAKE = {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}


@pytest.fixture(params=MAKE)
def before(request: pytest.FixtureRequest):
    """A classifier and its tokenizer, of each kind."""
    tokenizer = MAKE[request.param]()
    return classifier(tokenizer), tokenizer


def pieces(tokenizer, texts: list[str]) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]


def logits(model, tokenizer, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(texts, return_tensors="pt", padding=True)).logits


def test_training_rows_are_answered_as_before(before) -> None:
    """A row of the embeddings under another token's number, a merge that is lost, or positions that shift."""
    model, tokenizer = before
    texts = [text for text, _ in ROWS]
    theirs, answers = pieces(tokenizer, texts), logits(model, tokenizer, texts)
    student, own = Vocabulary().cut(model, tokenizer, TASK, dataset(texts))
    assert len(own) < len(tokenizer)
    assert student.get_input_embeddings().weight.shape == (len(own), 32)
    assert pieces(own, texts) == theirs
    assert torch.equal(logits(student, own, texts), answers)
    assert own.batch_decode(own(texts)["input_ids"]) == tokenizer.batch_decode(tokenizer(texts)["input_ids"])
    assert own("a", "film")["input_ids"] == own.convert_tokens_to_ids(pieces(tokenizer, [["a", "film"]])[0])
    order = [tokenizer.convert_tokens_to_ids(token) for token in own.convert_ids_to_tokens(range(len(own)))]
    assert order == sorted(order)
    assert "▁sour" not in own.get_vocab()
    assert not {"trip", "sour", "trips", "sours", "[unused0]", "Ġsour"} & own.get_vocab().keys()


def test_new_words_are_spelled(before) -> None:
    """A student that reads "unknown" where the teacher reads a word."""
    model, tokenizer = before
    _, own = Vocabulary().cut(model, tokenizer, TASK, dataset([text for text, _ in ROWS]))
    texts = STRANGE + [text for text, _ in sentences(300, seed=9)]
    theirs, ours = (
        Counter(token for row in pieces(each, texts) for token in row)[tokenizer.unk_token]
        for each in (tokenizer, own)
    )
    assert ours == theirs
    assert pieces(own, texts) != pieces(tokenizer, texts)
    both = (each.batch_decode(each(texts)["input_ids"]) for each in (own, tokenizer))
    assert [one.replace(" ", "") for one in next(both)] == [one.replace(" ", "") for one in next(both)]


def test_the_saved_student_is_a_plain_one(before, tmp_path: Path) -> None:
    """Files of two vocabularies, special tokens with their old numbers, or a student that only kdcli can read."""
    model, tokenizer = before
    texts = [text for text, _ in ROWS]
    student, own = Vocabulary().cut(model, tokenizer, TASK, dataset(texts))
    student.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs) is type(tokenizer)
    assert (
        theirs.get_vocab()
        == own.get_vocab()
        == load_tokenizer(Checkpoint(tmp_path, "it"), loaded).get_vocab()
    )
    assert pieces(theirs, texts + STRANGE) == pieces(own, texts + STRANGE)
    assert torch.equal(logits(loaded, theirs, texts), logits(student, own, texts))
    assert theirs.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.config.vocab_size == len(theirs)
    assert loaded.config.pad_token_id == theirs.pad_token_id
    for name in ("bos", "eos"):
        old = getattr(model.config, f"{name}_token_id")
        new = getattr(loaded.config, f"{name}_token_id")
        assert (old, new) == (None, None) or theirs.convert_ids_to_tokens(
            new
        ) == tokenizer.convert_ids_to_tokens(old)


def test_most_frequent_tokens(before) -> None:
    """A limit that is exceeded, one that drops the common tokens, or tokens that no merge leads to."""
    model, tokenizer = before
    rows = dataset([text for text, _ in ROWS])
    whole = len(Vocabulary().cut(model, tokenizer, TASK, rows)[1])
    limit = whole - 10
    student, own = Vocabulary(max_tokens=limit).cut(model, tokenizer, TASK, rows)
    assert limit - 3 <= len(own) <= limit
    assert student.config.vocab_size == len(own)
    used = Counter(token for row in pieces(tokenizer, list(rows["text"])) for token in row)
    assert all(token in own.get_vocab() for token, _ in used.most_common(10))
    reached = {
        token.value for word in own.get_vocab() for token in own.backend_tokenizer.model.tokenize(word)
    }
    alone = {
        token
        for token in own.get_vocab()
        if [one.value for one in tokenizer.backend_tokenizer.model.tokenize(token)] == [token]
    }
    assert alone <= reached
    _, rare = Vocabulary(min_count=60).cut(model, tokenizer, TASK, rows)
    assert len(rare) < whole
    assert all(token in rare.get_vocab() for token, count in used.items() if count >= 60)
    with pytest.raises(ConfigError, match=naming("student.max_tokens", "5", "kept")):
        Vocabulary(max_tokens=5).cut(model, tokenizer, TASK, rows)


def test_words_that_cannot_be_spelled_stay(tokenizer) -> None:
    """A vocabulary of whole words: each one dropped would be unknown."""
    texts = ["good film", "bad book"]
    _, own = Vocabulary().cut(bert(tokenizer, TASK.labels), tokenizer, TASK, dataset(texts))
    assert own.get_vocab() == tokenizer.get_vocab()


def test_a_row_is_read_to_its_end(before) -> None:
    """Tokens that are dropped because they stand late in long rows."""
    model, tokenizer = before
    text = "a film " * 2000 + "a sour trip"
    theirs = pieces(tokenizer, [text])
    _, own = Vocabulary().cut(model, tokenizer, TASK, dataset([text]))
    assert pieces(own, [text]) == theirs


def unigram_of(*entries: tuple[str, float], **options: bool) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.Unigram([("<pad>", 0.0), ("<unk>", 0.0), *entries], unk_id=1, **options))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def test_what_an_unknown_character_costs_stays() -> None:
    """Unigram reckons it from the lowest score: without that token, training rows get unknown characters."""
    tokenizer = unigram_of(("aa", -1.0), ("a", -20.0), ("ab", -15.0), ("aaaaaaa", -100.0))
    assert pieces(tokenizer, ["aab"]) == [["a", "ab"]]
    _, own = Vocabulary().cut(bert(tokenizer, TASK.labels), tokenizer, TASK, dataset(["aab", "aa"]))
    assert pieces(own, ["aab"]) == [["a", "ab"]]


def test_bytes_stay() -> None:
    """Characters that no row held: they are spelled in bytes, if those are still there."""
    spelled = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    letters = [(letter, -5.0) for letter in [*string.ascii_letters, *string.digits, "<", ">"]]
    tokenizer = unigram_of(*spelled, *letters, ("film", -1.0), ("meal", -1.0), byte_fallback=True)
    _, own = Vocabulary().cut(bert(tokenizer, TASK.labels), tokenizer, TASK, dataset(["film"]))
    assert len(own) == len(tokenizer) - 1
    assert pieces(own, ["é"]) == [["<0xC3>", "<0xA9>"]]


def test_special_tokens_in_every_place_of_the_config() -> None:
    """A config that names a token by its old number, or a token that goes although the config names it."""
    tokenizer = wordpiece()
    model = bert(tokenizer, TASK.labels)
    number = tokenizer.get_vocab()
    model.config.eos_token_id = [number["sours"], number["[SEP]"]]
    model.config.bos_token_id = 10_000
    student, own = Vocabulary().cut(model, tokenizer, TASK, dataset(["a film"]))
    assert own.convert_ids_to_tokens(student.config.eos_token_id) == ["sours", "[SEP]"]
    assert student.config.bos_token_id is None  # there was no such token


@pytest.mark.parametrize("kind", ["template", "bert", "roberta"])
def test_what_the_tokenizer_adds_itself(kind: str) -> None:
    """Padding, or a frame of special tokens, by a number that is now another token's."""
    theirs = PreTrainedTokenizerFast(tokenizer_object=wordpiece().backend_tokenizer)
    inner, number = theirs.backend_tokenizer, theirs.get_vocab()
    first, last = ((token, number[token]) for token in ("sours", "[SEP]"))
    inner.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            {
                "template": processors.TemplateProcessing(
                    single="sours $A [SEP]", special_tokens=[first, last]
                ),
                "bert": processors.BertProcessing(last, first),
                "roberta": processors.RobertaProcessing(last, first),
            }[kind],
        ]
    )
    inner.enable_padding(pad_id=number["[MASK]"], pad_token="[MASK]", length=6)
    _, own = Vocabulary(min_count=9).cut(bert(theirs, TASK.labels), theirs, TASK, dataset(["film"]))
    assert own.convert_tokens_to_ids("[MASK]") != number["[MASK]"]
    assert own.backend_tokenizer.padding["pad_id"] == own.convert_tokens_to_ids("[MASK]")
    assert pieces(own, ["a"]) == [["sours", "a", "[SEP]"]]


@pytest.mark.parametrize(
    "affix", [{"continuing_subword_prefix": "##"}, {"end_of_word_suffix": "</w>"}], ids=str
)
def test_bpe_that_marks_the_parts_of_words(affix: dict[str, str]) -> None:
    """Characters that are dropped in one of their forms, or merges whose result is looked up by a wrong name."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", **affix))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<pad>", "<unk>"], show_progress=False, **affix
    )
    texts = [text for text, _ in sentences(300, seed=5)]
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")
    rows = [text for text, _ in ROWS]
    before = pieces(tokenizer, rows)
    _, own = Vocabulary().cut(bert(tokenizer, TASK.labels), tokenizer, TASK, dataset(rows))
    assert len(own) < len(tokenizer)
    assert pieces(own, rows) == before
    assert any("trip" in word for word in tokenizer.get_vocab().keys() - own.get_vocab().keys())
    assert "<unk>" not in {token for row in pieces(own, texts) for token in row}


def test_an_unknown_token_that_is_not_declared_special() -> None:
    """Text that raises an error in place of an unknown token."""
    letters = "abunk"
    tokens = ["<pad>", "bank", "unk", *letters, *(f"##{one}" for one in letters)]
    inner = Tokenizer(
        models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="unk")
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    _, own = Vocabulary().cut(bert(tokenizer, TASK.labels), tokenizer, TASK, dataset(["ab"]))
    assert "bank" not in own.get_vocab()
    assert pieces(own, ["film"]) == [["unk"]]


def test_a_config_within_the_config() -> None:
    """A model of text and images, of which the part that reads text has a config of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = sizes | {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 50}
    text |= {"pad_token_id": 9, "bos_token_id": 7, "eos_token_id": [1, 8]}
    config = Gemma3Config(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 8})
    model = Gemma3ForSequenceClassification(TASK.configure(config)).eval()
    kept = [1, 3, 7, 8, 9, 40]
    smaller = trim_embeddings(model, kept)
    inner = smaller.config.text_config
    assert (inner.vocab_size, inner.pad_token_id, inner.bos_token_id, inner.eos_token_id) == (6, 4, 2, [0, 3])
    ids = torch.tensor([[2, 5, 1, 4], [2, 1, 1, 0]])
    assert torch.equal(smaller(ids).logits, model(torch.tensor(kept)[ids]).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_output_head(tied: bool) -> None:
    """An output head whose rows are not those of the embeddings."""
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=50,
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
        tie_word_embeddings=tied,
    )
    model = ElectraForMaskedLM(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    kept = [0, 3, 4, 10, 49]
    smaller = trim_embeddings(model, kept)
    assert (smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight) == tied
    ids = torch.tensor([[1, 2, 4, 3]])
    theirs = model(torch.tensor(kept)[ids]).logits[..., kept]
    assert torch.allclose(smaller(ids).logits, theirs, atol=1e-6)


def test_models_that_write_are_refused() -> None:
    """A loss that compares the probabilities of different tokens."""
    tokenizer = speller()
    rows = datasets.Dataset.from_list(
        [{"id": prompt, "prompt": prompt, "completion": answer} for prompt, answer in exchanges(5)]
    )
    with pytest.raises(ConfigError, match=naming("predicts tokens", "student=layers")):
        Vocabulary().cut(decoder(tokenizer), tokenizer, CausalLM(), rows)


def test_tokenizers_that_are_not_understood() -> None:
    """A tokenizer that is saved as it was, beside embeddings that are trimmed."""
    model, rows = bert(wordpiece(), TASK.labels), dataset(["a film"])
    with pytest.raises(ModelError, match=naming("ByT5Tokenizer", "tokenizer.json")):
        Vocabulary().cut(model, ByT5Tokenizer(), TASK, rows)
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1}, unk_token="[UNK]")),
        unk_token="[UNK]",
    )
    with pytest.raises(ModelError, match=naming("WordPiece", "BPE", "Unigram", "WordLevel")):
        Vocabulary().cut(model, words, TASK, rows)

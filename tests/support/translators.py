"""Small random translators of each family, laid out as the hub has them: with their own tokenizers, and what their files say of generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as of
from support.tiny import pairs
from transformers import PreTrainedTokenizerBase
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

PIECES = 50
"""Of a vocabulary: as many as sentencepiece finds in these pairs, at most."""
BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32, "dropout": 0.0,
    "attention_dropout": 0.0, "init_std": 0.15,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}  # fmt: skip
MT5 = T5 | {"feed_forward_proj": "gated-gelu"}
SEARCH: dict[str, Any] = {"num_beams": 4, "no_repeat_ngram_size": 3, "early_stopping": True, "max_length": 20}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Marian": (BART | {"scale_embedding": True, "activation_function": "swish"}, SEARCH),
    "T5": (T5, {}),
    "MT5": (MT5, {}),
    "Bart": (BART, SEARCH | {"min_length": 3}),
    "M2M100": (BART | {"scale_embedding": True}, SEARCH),
    "Nllb": (BART | {"scale_embedding": True}, {"max_length": 20}),
}
CODES = [">>es<<", ">>fr<<"]
"""Of the target languages that Marian's model is told."""


def sentencepieces(folder: Path, name: str, texts: list[str], **special: int) -> list[str]:
    """A sentencepiece model of some texts in a file, and its pieces."""
    import sentencepiece

    size = {"vocab_size": PIECES, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "made"), **size, **special
    )
    (folder / "made.vocab").unlink()
    path = (folder / "made.model").rename(folder / name)
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(number) for number in range(model.get_piece_size())]


def write_tokenizer(folder: Path, family: str) -> None:
    """The files of a family's tokenizer, over the words of `pairs`."""
    sides = [list(side) for side in zip(*pairs(300), strict=True)]
    both = sides[0] + sides[1]
    told: dict[str, Any] = {"tokenizer_class": f"{family}Tokenizer"}
    if family == "Marian":
        tokens = {"</s>": 0, "<unk>": 1}
        for name, texts in zip(("source.spm", "target.spm"), sides, strict=True):
            for piece in sentencepieces(folder, name, texts):
                tokens.setdefault(piece, len(tokens))
        tokens |= {token: number for number, token in enumerate([*CODES, "<pad>"], len(tokens))}
        (folder / "vocab.json").write_text(json.dumps(tokens))
        told |= {"source_lang": "en", "target_lang": "es", "separate_vocabs": False}
    elif family == "M2M100":
        pieces = sentencepieces(folder, "sentencepiece.bpe.model", both)
        own = ["<s>", "<pad>", "</s>", "<unk>"]
        tokens = {piece: number for number, piece in enumerate(dict.fromkeys([*own, *pieces]))}
        (folder / "vocab.json").write_text(json.dumps(tokens))
        codes = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
        told |= {"src_lang": None, "tgt_lang": None, "additional_special_tokens": codes}
    elif family == "MT5":
        sentencepieces(folder, "spiece.model", both, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        told = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}
    elif family == "Nllb":
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "▁", *sorted(set("".join(both)) - {" "})]
        of.NllbTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}).save_pretrained(
            folder
        )
        return
    elif family == "T5":
        pieces = sentencepieces(folder, "spiece.model", both, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        (folder / "spiece.model").unlink()
        of.T5Tokenizer([(piece, -float(number)) for number, piece in enumerate(pieces)]).save_pretrained(
            folder
        )
        return
    else:
        from tokenizers import ByteLevelBPETokenizer

        learnt = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        learnt.train_from_iterator(both, 300, special_tokens=special, show_progress=False)
        learnt.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def lay_out(folder: Path, family: str, **changes: Any) -> PreTrainedTokenizerBase:
    """A random model of a family in a folder, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, said = FAMILIES[family]
    made_of = {"Nllb": "M2M100"}.get(family, family)
    kind = {"M2M100": "m2m_100"}.get(made_of, made_of.lower())
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    write_tokenizer(folder, family)
    tokenizer = of.AutoTokenizer.from_pretrained(folder)
    size = max(tokenizer.get_vocab().values()) + 1
    tokens = {
        "vocab_size": size,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if family == "Marian":
        tokens |= {
            "decoder_vocab_size": size,
            "decoder_start_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        }
    elif family == "MT5":
        tokens["vocab_size"] = size + 12  # as mT5's own
    elif made_of in ("Bart", "M2M100"):
        tokens |= {"decoder_start_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    config = getattr(of, f"{made_of}Config")(**shape | tokens | changes)
    model = of.AutoModelForSeq2SeqLM.from_config(config)
    if family == "MT5":  # what its config says of this is not heeded, as of a checkpoint of the hub
        model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))
    own = model.generation_config
    for key, value in said.items():
        setattr(own, key, value)
    if family == "Bart":
        own.forced_bos_token_id = tokenizer.bos_token_id
    if not family.endswith("T5"):
        own.forced_eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return tokenizer

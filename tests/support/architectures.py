"""A small random model of every architecture that can be cut, and what it says of some tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as of
from torch import Tensor
from transformers import PreTrainedModel

VOCABULARY = 40
PAD, EOS = 0, 3
IDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": 2,
    "use_cache": False,
}
LABELS: dict[str, Any] = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
ENCODER = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 20}
DISTILBERT = {"dim": 24, "n_layers": 4, "n_heads": 4, "hidden_dim": 20}
DECODER = ENCODER | {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": 24, "n_layer": 4, "n_head": 4}
BART = {
    "d_model": 24,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 16,
    "decoder_start_token_id": PAD,
    "forced_eos_token_id": EOS,
}
T5 = {"d_model": 24, "num_layers": 4, "num_heads": 4, "d_kv": 8, "d_ff": 20, "decoder_start_token_id": PAD}


def _made(model: str, config: str, *sizes: dict[str, Any], **more: Any) -> Callable[..., PreTrainedModel]:
    def make(**others: Any) -> PreTrainedModel:
        shape: dict[str, Any] = IDS | LABELS
        for part in (*sizes, more, others):
            shape |= part
        torch.manual_seed(0)
        made = getattr(of, model)(getattr(of, f"{config}Config")(**shape)).eval()
        if model.startswith("T5") and shape.get("tie_word_embeddings") is False:  # weights tell it, no config
            made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach().clone())
        with torch.no_grad():
            for weight in made.parameters():
                if weight.requires_grad:
                    weight += 0.2 * torch.randn_like(weight)
        return made

    return make


FEW = {"max_position_embeddings": 40}
MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": _made("BertForSequenceClassification", "Bert", ENCODER, FEW),
    "bert-tokens": _made("BertForTokenClassification", "Bert", ENCODER, FEW),
    "bert-masked": _made("BertForMaskedLM", "Bert", ENCODER, FEW),
    "roberta": _made("RobertaForSequenceClassification", "Roberta", ENCODER, FEW),
    "roberta-masked": _made("RobertaForMaskedLM", "Roberta", ENCODER, FEW),
    "xlm-roberta": _made("XLMRobertaForTokenClassification", "XLMRoberta", ENCODER, FEW),
    "electra": _made("ElectraForSequenceClassification", "Electra", ENCODER, FEW, embedding_size=24),
    "electra-narrow": _made("ElectraForSequenceClassification", "Electra", ENCODER, FEW, embedding_size=10),
    "electra-masked": _made("ElectraForMaskedLM", "Electra", ENCODER, FEW, embedding_size=10),
    "distilbert": _made("DistilBertForSequenceClassification", "DistilBert", DISTILBERT, FEW),
    "distilbert-tokens": _made("DistilBertForTokenClassification", "DistilBert", DISTILBERT, FEW),
    "distilbert-masked": _made("DistilBertForMaskedLM", "DistilBert", DISTILBERT, FEW),
    "gpt2": _made("GPT2LMHeadModel", "GPT2", GPT2, n_positions=40),
    "gpt2-labels": _made("GPT2ForSequenceClassification", "GPT2", GPT2, n_positions=40, n_inner=20),
    "llama": _made("LlamaForCausalLM", "Llama", DECODER, tie_word_embeddings=True),
    "llama-labels": _made("LlamaForSequenceClassification", "Llama", ENCODER, attention_bias=True),
    "mistral": _made("MistralForCausalLM", "Mistral", DECODER),
    "smollm3": _made(
        "SmolLM3ForCausalLM", "SmolLM3", ENCODER | {"num_key_value_heads": 2}, no_rope_layer_interval=2
    ),
    "qwen2": _made(
        "Qwen2ForCausalLM", "Qwen2", ENCODER | {"num_key_value_heads": 2}, tie_word_embeddings=True
    ),
    "qwen3": _made("Qwen3ForCausalLM", "Qwen3", DECODER),
    "qwen3-tokens": _made("Qwen3ForTokenClassification", "Qwen3", DECODER),
    "gemma": _made("GemmaForCausalLM", "Gemma", DECODER),
    "gemma2": _made("Gemma2ForCausalLM", "Gemma2", DECODER, sliding_window=4),
    "gemma3": _made("Gemma3ForCausalLM", "Gemma3Text", DECODER, sliding_window=4, sliding_window_pattern=2),
    "bart": _made("BartForConditionalGeneration", "Bart", BART, FEW),
    "bart-labels": _made("BartForSequenceClassification", "Bart", BART, FEW),
    "marian": _made("MarianMTModel", "Marian", BART, FEW, scale_embedding=True),
    "marian-two-vocabularies": _made(
        "MarianMTModel",
        "Marian",
        BART,
        FEW,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        decoder_vocab_size=VOCABULARY + 2,
    ),
    "mbart": _made("MBartForConditionalGeneration", "MBart", BART, FEW),
    "m2m100": _made("M2M100ForConditionalGeneration", "M2M100", BART, FEW),
    "t5": _made("T5ForConditionalGeneration", "T5", T5, num_decoder_layers=4),
    "mt5": _made("MT5ForConditionalGeneration", "MT5", T5, num_decoder_layers=4),
    "t5-gated": _made(
        "T5ForConditionalGeneration", "T5", T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "t5-labels": _made("T5ForSequenceClassification", "T5", T5),
    "t5-tokens": _made("T5ForTokenClassification", "T5", T5),
}
EXPERTS = DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"}
NEWER: dict[str, Callable[..., PreTrainedModel]] = {
    "camembert": _made("CamembertForSequenceClassification", "Camembert", ENCODER, FEW),
    "modernbert": _made(
        "ModernBertForSequenceClassification", "ModernBert", ENCODER, FEW, cls_token_id=1, sep_token_id=EOS
    ),
    "modernbert-masked": _made(
        "ModernBertForMaskedLM", "ModernBert", ENCODER, FEW, cls_token_id=1, sep_token_id=EOS
    ),
    "deberta": _made(
        "DebertaV2ForSequenceClassification",
        "DebertaV2",
        ENCODER,
        FEW,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        conv_kernel_size=3,
        norm_rel_ebd="layer_norm",
        pooler_hidden_size=24,
    ),
    "deberta-narrow": _made(
        "DebertaV2ForTokenClassification",
        "DebertaV2",
        ENCODER,
        FEW,
        relative_attention=True,
        embedding_size=10,
    ),
    "mpnet": _made("MPNetForSequenceClassification", "MPNet", ENCODER, FEW),
    "mpnet-masked": _made("MPNetForMaskedLM", "MPNet", ENCODER, FEW),
    "gpt-neox": _made("GPTNeoXForCausalLM", "GPTNeoX", ENCODER),
    "granite": _made("GraniteForCausalLM", "Granite", ENCODER | {"num_key_value_heads": 2}),
    "olmo2": _made("Olmo2ForCausalLM", "Olmo2", ENCODER | {"num_key_value_heads": 2}),
    "phi3": _made("Phi3ForCausalLM", "Phi3", ENCODER | {"num_key_value_heads": 2}),
    "mixtral": _made("MixtralForCausalLM", "Mixtral", EXPERTS),
    "qwen3-moe": _made("Qwen3MoeForCausalLM", "Qwen3Moe", EXPERTS, moe_intermediate_size=20),
}
"""Architectures that can be cut, and whose exports are not tested for each."""
ALBERT = _made("AlbertForSequenceClassification", "Albert", ENCODER, FEW, embedding_size=10)
"""A model whose layers share their weights."""
UNCUT = {"bloom": _made("BloomForCausalLM", "Bloom", {"hidden_size": 24, "n_layer": 4, "n_head": 4})}
"""Architectures that cannot be cut, and can be exported."""


@torch.no_grad()
def says(model: PreTrainedModel) -> Tensor:
    """The logits of two rows of tokens, the second of which is padded."""
    ids = torch.randint(4, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    ids[0, -1] = ids[1, 6] = EOS
    ids[1, 7:] = PAD
    inputs = {"input_ids": ids, "attention_mask": ids.ne(PAD).long()}
    if type(model).__name__.endswith(("ConditionalGeneration", "MTModel")):
        inputs["decoder_input_ids"] = ids.flip(1)[:, :5]
    return model(**inputs).logits

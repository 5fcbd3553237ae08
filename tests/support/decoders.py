"""A tiny random model of every decoder architecture that transformers can make from a config."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""The `model_type` of each."""
VOCABULARY, WIDTH, HEADS = 96, 32, 4
LARGEST = 3_000_000
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), WIDTH
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"), HEADS
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank"), 8
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "d_inner", "dff"), 48),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(
        ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_shared_experts"), 1
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    "sliding_window": 4,
    "state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What makes a model tiny, by the names that configs have for it."""
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
MAMBA = {"mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
OWN: dict[str, dict[str, Any]] = {
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY},
    "gemma4": {"vocab_size_per_layer_input": VOCABULARY},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": ROPE,
    "hunyuan_v1_moe": ROPE,
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "chunk_size": 8, "n_groups": 1},
    "ministral": ROPE,
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True},
    "roformer": {"embedding_size": 32},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
}
"""What an architecture needs beside that."""


def tiny_config(kind: str) -> PreTrainedConfig:
    """A config of the architecture with tiny sizes; layers of each type that it mixes."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind]
    default = config_class().get_text_config()
    text_class = type(default)
    keys = default.to_dict().keys() | text_class.attribute_map.keys()
    sizes = {key: value for key, value in SIZES.items() if key in keys and _given(default, key) is not None}
    if (
        "kv_lora_rank" in sizes
    ):  # latent attention: each head has its keys, and its size follows from that of its parts
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = HEADS
    types = _given(default, "layer_types")
    if types and not isinstance(getattr(text_class, "layer_types", None), property):
        distinct = list(dict.fromkeys(types))
        layers = max(2, len(distinct))
        sizes |= {
            "num_hidden_layers": layers,
            "layer_types": [distinct[at % len(distinct)] for at in range(layers)],
        }
    sizes |= {key: SIZES[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    try:
        return text_class(**sizes | OWN.get(kind, {}))
    except AttributeError:  # it computes its layer types
        sizes.pop("layer_types", None)
        return text_class(**sizes | OWN.get(kind, {}))


def _given(config: PreTrainedConfig, key: str) -> Any:
    try:
        return getattr(config, key, None)
    except Exception:  # a size of each layer by itself (Gemma 4)
        return None


def tiny_model(kind: str) -> PreTrainedModel:
    """A random model of the architecture, in eval mode, whose weights are large enough to tell tokens apart."""
    return _random(AutoModelForCausalLM, tiny_config(kind))


def tiny_classifier(kind: str) -> PreTrainedModel:
    """A random classifier of texts of the architecture, likewise."""
    config = tiny_config(kind)
    config.num_labels = 3
    if config.is_encoder_decoder:
        config.decoder_start_token_id = config.pad_token_id
    return _random(AutoModelForSequenceClassification, config)


def _random(auto: Any, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        size = sum(weight.numel() for weight in auto.from_config(config).parameters())
    assert size < LARGEST, f"{config.model_type} has {size:,} weights"
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return model


ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet",
)  # fmt: skip
REFUSED = dict.fromkeys(ENCODERS, ("tokens after a token", "dataset.task=masked_lm"))
"""What is refused, and words of the message."""
NOT_BUILT = (
    "blt", "cohere_compass_text", "dbrx", "dots3_note", "dots3_note_text", "emu3", "gemma3n", "gemma3n_text", "gemma4_assistant", "git",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "lfm2_moe", "longcat_flash", "ministral", "mllama", "musicgen", "musicgen_melody",
    "phi4_multimodal", "prophetnet", "qwen4_exp", "qwen4_exp_text", "reformer", "roc_bert", "xlstm", "xmod", "zamba", "zamba2", "zaya",
)  # fmt: skip
"""What has no config of text alone, no tiny size, or does not run in transformers as it makes it from a tiny config."""

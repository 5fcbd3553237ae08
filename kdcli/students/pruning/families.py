"""The structure of architectures: where their layers are, and what each axis of each weight means."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stack:
    """A stack of layers, with the config names of its depth, its number of heads and its feed-forward width."""

    layers: str
    depth: str
    heads: str
    feed_forward: str


@dataclass(frozen=True)
class Family:
    """Architectures with the same structure.

    The axes of a weight are given for its module's name (a regular expression), in the order (out, in), or (out) for a norm;
    a bias has the axis `out`. Each axis is one of

        -          never pruned: vocabulary, positions, labels, a single head
        hidden     the channels of the hidden states, which are the same in all layers
        ffn        the units of a layer's feed-forward part
        gated      the same units twice, one after the other: the gates and what they multiply
        experts    the experts of a layer
        heads      the query heads of a layer's self-attention, each of the width of a head; with as many keys and values, all
                   heads
        kv         its key and value heads, if they are fewer
        qkv        queries, keys and values, concatenated; keys and values are `kv` where the family has those
        cross      the heads of a decoder layer's cross-attention
        pooled     the output of a task head's dense layer
        embedding  the width of embeddings that are projected to the hidden size
        derived    hidden, but the values follow from the width, and no checkpoint stores them

    Attributes:
        hidden: the config names of the hidden size: the first one always, the others where they are equal to it.
        model_axes: the axes of the weights outside the layers, except task heads.
        layer_axes: the axes of a layer's weights.
        key_value_heads: the config name of their number; None: as many as heads.
        head_size: the config name of a head's width; None: it is the hidden size divided by the number of heads.
        shared: modules that all layers use: those of the first layer, or outside the layers.
        experts: the config name of the number of experts of a layer.
        first: whether the first layer has a structure of its own, so that it stays the first one.
    """

    stacks: tuple[Stack, ...]
    hidden: tuple[str, ...]
    model_axes: dict[str, str]
    layer_axes: dict[str, str]
    key_value_heads: str | None = None
    head_size: str | None = None
    shared: str | None = None
    experts: str | None = None
    first: bool = False


TASK_HEADS = {
    r"pooler|pooler\.dense|pre_classifier|(classifier|classification_head)\.dense": "pooled hidden",
    r"classifier|(classifier|classification_head)\.out_proj": "- pooled",
    r"score|decoder|lm_head|cls\.predictions|vocab_projector|(lm_head|cls\.predictions)\.decoder": "- hidden",
    r"head\.dense": "hidden hidden",
    r"head\.norm": "hidden",
    r"(lm_head|cls\.predictions\.transform)\.dense|vocab_transform": "hidden hidden",
    r"lm_head\.layer_norm|cls\.predictions\.transform\.LayerNorm|vocab_layer_norm": "hidden",
    r"generator_predictions\.dense": "embedding hidden",
    r"generator_predictions\.LayerNorm": "embedding",
    r"generator_lm_head": "- embedding",
    r"final_logits_bias": "- -",
}
OPTIONAL_AXES = {
    "pooled": r"pooler|pooler\.dense|pre_classifier|(classifier|classification_head)\.dense",
    "embedding": r"embeddings_project|embeddings\.embed_proj|encoder\.embedding_hidden_mapping_in",
}
"""Axes that only models with such a module have; in other models they are hidden channels."""
LISTED = ("layer_types", "no_rope_layers")
"""Config values that are lists over the layers."""
BERT = Family(
    (Stack("encoder.layer", "num_hidden_layers", "num_attention_heads", "intermediate_size"),),
    ("hidden_size", "embedding_size"),
    {
        r"embeddings\.(word|position|token_type)_embeddings": "- embedding",
        r"embeddings\.LayerNorm": "embedding",
        r"embeddings_project": "hidden embedding",
    },
    {
        r"attention\.self\.(query|key|value)": "heads hidden",
        r"attention\.output\.dense": "hidden heads",
        r"intermediate\.dense": "ffn hidden",
        r"output\.dense": "hidden ffn",
        r"(attention\.)?output\.LayerNorm": "hidden",
    },
)
DISTILBERT = Family(
    (Stack("transformer.layer", "n_layers", "n_heads", "hidden_dim"),),
    ("dim",),
    {r"embeddings\.(word|position)_embeddings": "- hidden", r"embeddings\.LayerNorm": "hidden"},
    {
        r"attention\.(q|k|v)_lin": "heads hidden",
        r"attention\.out_lin": "hidden heads",
        r"ffn\.lin1": "ffn hidden",
        r"ffn\.lin2": "hidden ffn",
        r"(sa|output)_layer_norm": "hidden",
    },
)
GPT2 = Family(
    (Stack("h", "n_layer", "n_head", "n_inner"),),
    ("n_embd",),
    {r"wte|wpe": "- hidden", r"ln_f": "hidden"},
    {
        r"attn\.c_attn": "qkv hidden",
        r"attn\.c_proj": "hidden heads",
        r"mlp\.c_fc": "ffn hidden",
        r"mlp\.c_proj": "hidden ffn",
        r"ln_(1|2)": "hidden",
    },
)
LLAMA = Family(
    (Stack("layers", "num_hidden_layers", "num_attention_heads", "intermediate_size"),),
    ("hidden_size",),
    {r"embed_tokens": "- hidden", r"norm": "hidden"},
    {
        r"self_attn\.q_proj": "heads hidden",
        r"self_attn\.(k|v)_proj": "kv hidden",
        r"self_attn\.o_proj": "hidden heads",
        r"self_attn\.(q|k)_norm": "-",
        r"mlp\.(gate|up)_proj": "ffn hidden",
        r"mlp\.down_proj": "hidden ffn",
        r"(input|post_attention|pre_feedforward|post_feedforward)_layernorm": "hidden",
    },
    key_value_heads="num_key_value_heads",
    head_size="head_dim",
)
DEBERTA_V2 = Family(
    BERT.stacks,
    (*BERT.hidden, "pooler_hidden_size"),
    {
        r"embeddings\.(word|position|token_type)_embeddings": "- embedding",
        r"embeddings\.embed_proj": "hidden embedding",
        r"embeddings\.LayerNorm|encoder\.LayerNorm|encoder\.conv\.LayerNorm": "hidden",
        r"encoder\.rel_embeddings": "- hidden",
        r"encoder\.conv\.conv": "hidden hidden -",
    },
    BERT.layer_axes | {r"attention\.self\.(query|key|value|pos_key|pos_query)_proj": "heads hidden"},
)
MPNET = Family(
    BERT.stacks,
    ("hidden_size",),
    {
        r"embeddings\.(word|position)_embeddings": "- hidden",
        r"embeddings\.LayerNorm": "hidden",
        r"encoder\.relative_attention_bias": "- heads",
    },
    {
        r"attention\.attn\.(q|k|v)": "heads hidden",
        r"attention\.attn\.o": "hidden heads",
        r"attention\.LayerNorm|output\.LayerNorm": "hidden",
        r"intermediate\.dense": "ffn hidden",
        r"output\.dense": "hidden ffn",
    },
    shared=r"encoder\.relative_attention_bias",
)
ALBERT = Family(
    (
        Stack(
            "encoder.albert_layer_groups.0.albert_layers",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ),
    ),
    ("hidden_size",),
    {
        r"embeddings\.(word|position|token_type)_embeddings": "- embedding",
        r"embeddings\.LayerNorm": "embedding",
        r"encoder\.embedding_hidden_mapping_in": "hidden embedding",
    },
    {
        r"attention\.(query|key|value)": "heads hidden",
        r"attention\.dense": "hidden heads",
        r"ffn": "ffn hidden",
        r"ffn_output": "hidden ffn",
        r"(attention\.LayerNorm|full_layer_layer_norm)": "hidden",
    },
    shared=".*",
)
MODERNBERT = Family(
    (Stack("layers", "num_hidden_layers", "num_attention_heads", "intermediate_size"),),
    ("hidden_size",),
    {r"embeddings\.tok_embeddings": "- hidden", r"embeddings\.norm|final_norm": "hidden"},
    {
        r"attn\.Wqkv": "qkv hidden",
        r"attn\.Wo": "hidden heads",
        r"mlp\.Wi": "gated hidden",
        r"mlp\.Wo": "hidden ffn",
        r"(attn|mlp)_norm": "hidden",
    },
    first=True,
)
GPT_NEOX = Family(
    LLAMA.stacks,
    ("hidden_size",),
    {r"embed_in": "- hidden", r"final_layer_norm": "hidden"},
    {
        r"attention\.query_key_value": "heads hidden",  # queries, keys and values of a head stand side by side
        r"attention\.dense": "hidden heads",
        r"mlp\.dense_h_to_4h": "ffn hidden",
        r"mlp\.dense_4h_to_h": "hidden ffn",
        r"(input|post_attention)_layernorm": "hidden",
    },
)
OLMO2 = replace(
    LLAMA, layer_axes={r"self_attn\.q_norm": "heads", r"self_attn\.k_norm": "kv"} | LLAMA.layer_axes
)
PHI3 = replace(
    LLAMA,
    layer_axes=LLAMA.layer_axes
    | {r"self_attn\.qkv_proj": "qkv hidden", r"mlp\.gate_up_proj": "gated hidden"},
)
MIXTRAL = replace(
    LLAMA,
    layer_axes=LLAMA.layer_axes
    | {
        r"mlp\.gate": "experts hidden",
        r"mlp\.experts\.gate_up_proj": "experts gated hidden",
        r"mlp\.experts\.down_proj": "experts hidden ffn",
    },
    experts="num_local_experts",
)
QWEN3_MOE = replace(MIXTRAL, stacks=(replace(LLAMA.stacks[0], feed_forward="moe_intermediate_size"),))
_BART_STACKS = tuple(
    Stack(f"{side}.layers", f"{side}_layers", f"{side}_attention_heads", f"{side}_ffn_dim")
    for side in ("encoder", "decoder")
)
_BART_LAYER = {
    r"self_attn\.(q|k|v)_proj": "heads hidden",
    r"self_attn\.out_proj": "hidden heads",
    r"encoder_attn\.(q|k|v)_proj": "cross hidden",
    r"encoder_attn\.out_proj": "hidden cross",
    r"fc1": "ffn hidden",
    r"fc2": "hidden ffn",
    r"(self_attn|encoder_attn|final)_layer_norm": "hidden",
}
_BART_WORDS = r"shared|(encoder|decoder)\.embed_tokens"
BART = Family(
    _BART_STACKS,
    ("d_model",),
    {
        _BART_WORDS: "- hidden",
        r"(encoder|decoder)\.embed_positions": "- hidden",
        r"(encoder|decoder)\.(layernorm_embedding|layer_norm)": "hidden",
    },
    _BART_LAYER,
)
MARIAN = Family(
    _BART_STACKS,
    ("d_model",),
    {
        _BART_WORDS: "- hidden",
        r"(encoder|decoder)\.embed_positions": "- derived",
        r"(encoder|decoder)\.layer_norm": "hidden",
    },
    _BART_LAYER,
)
T5 = Family(
    (
        Stack("encoder.block", "num_layers", "num_heads", "d_ff"),
        Stack("decoder.block", "num_decoder_layers", "num_heads", "d_ff"),
    ),
    ("d_model",),
    {_BART_WORDS: "- hidden", r"(encoder|decoder)\.final_layer_norm": "hidden"},
    {
        r"layer\.0\.SelfAttention\.(q|k|v)": "heads hidden",
        r"layer\.0\.SelfAttention\.o": "hidden heads",
        r"layer\.0\.SelfAttention\.relative_attention_bias": "- heads",
        r"layer\.1\.EncDecAttention\.(q|k|v)": "cross hidden",
        r"layer\.1\.EncDecAttention\.o": "hidden cross",
        r"layer\.\d\.DenseReluDense\.wi(_0|_1)?": "ffn hidden",
        r"layer\.\d\.DenseReluDense\.wo": "hidden ffn",
        r"layer\.\d\.layer_norm": "hidden",
    },
    head_size="d_kv",
    shared=r"layer\.0\.SelfAttention\.relative_attention_bias",
)
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    "distilbert": DISTILBERT,
    "deberta-v2": DEBERTA_V2,
    "modernbert": MODERNBERT,
    "mpnet": MPNET,
    "albert": ALBERT,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    **dict.fromkeys(
        ("llama", "mistral", "smollm3", "granite", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), LLAMA
    ),
    "olmo2": OLMO2,
    "phi3": PHI3,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    **dict.fromkeys(("bart", "mbart"), BART),
    **dict.fromkeys(("marian", "m2m_100"), MARIAN),
    **dict.fromkeys(("t5", "mt5"), T5),
}
"""The structure of each `model_type`."""

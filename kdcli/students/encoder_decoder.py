"""Initialises a translator of a given size: an encoder and a decoder with random weights."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from kdcli.config.types import Depth, Fraction, Width
from kdcli.errors import ConfigError
from kdcli.models.checkpoint import Checkpoint, load_config, load_tokenizer
from kdcli.models.vocabulary import count_ids, target_vocabulary
from kdcli.students.base import StudentInitializer
from kdcli.students.pretrained import from_checkpoint
from kdcli.tasks.base import Task

POSITIONS = 512
"""The maximum number of tokens of a new model whose teacher has no such number."""


class EncoderDecoder(StudentInitializer):
    """Creates a model of Marian's architecture (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) over the teacher's vocabulary, with
    tied input and output embeddings. With `student.path`, it loads that checkpoint.

    A decoder runs once a token and an encoder once a text, so a deep encoder with a shallow decoder is quick for its quality
    (Kasai et al. 2021, https://arxiv.org/abs/2006.10369).

    Args:
        hidden_size: width; a multiple of num_attention_heads, and even.
        encoder_layers, decoder_layers: the number of layers of the encoder and of the decoder.
        num_attention_heads: the number of attention heads of each layer.
        intermediate_size: width of the feed-forward layers.
        dropout: of hidden states during training.
    """

    learning_rate = 1e-3

    def __init__(
        self,
        hidden_size: Width,
        encoder_layers: Depth,
        decoder_layers: Depth,
        num_attention_heads: Width,
        intermediate_size: Width,
        dropout: Fraction = 0.1,
    ):
        if hidden_size % num_attention_heads or hidden_size % 2:
            raise ConfigError(
                f"hidden_size = {hidden_size} is not an even multiple of num_attention_heads = {num_attention_heads}; give one of them another value"
            )
        self.shape: dict[str, Any] = {
            "d_model": hidden_size,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "encoder_attention_heads": num_attention_heads,
            "decoder_attention_heads": num_attention_heads,
            "encoder_ffn_dim": intermediate_size,
            "decoder_ffn_dim": intermediate_size,
            "dropout": dropout,
        }

    def architecture(self) -> type[PreTrainedConfig] | None:
        """Return Marian's config class, or that of the checkpoint."""
        return super().architecture() or MarianConfig

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Create a model over the teacher's tokenizer."""
        if self.source is not None:
            return from_checkpoint(self.source, task)
        model = self._over_teacher(teacher)
        return model, load_tokenizer(teacher, model)

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return a model of this size, or the checkpoint's."""
        if self.source is not None:
            return model
        with torch.device("meta"):
            return self._over_teacher(teacher)

    def _over_teacher(self, teacher: Checkpoint) -> PreTrainedModel:
        """Return the model over the vocabulary of the teacher."""
        config = load_config(teacher).get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or POSITIONS
        start = getattr(config, "decoder_start_token_id", None)
        return self.over(load_tokenizer(teacher), start, positions, config.vocab_size)

    def over(
        self,
        tokenizer: PreTrainedTokenizerBase,
        start: int | None = None,
        positions: int = POSITIONS,
        vocab_size: int | None = None,
    ) -> PreTrainedModel:
        """Create a model over a tokenizer's vocabulary.

        Args:
            start: the first token of the decoder; None: the padding token.
            vocab_size: rows of the embeddings; None: those that the tokenizer needs.
        """
        pad, rows = tokenizer.pad_token_id, vocab_size or count_ids(tokenizer.get_vocab())
        separate = target_vocabulary(tokenizer) != tokenizer.get_vocab()
        config = MarianConfig(
            vocab_size=rows,
            decoder_vocab_size=count_ids(target_vocabulary(tokenizer)) if separate else rows,
            max_position_embeddings=positions,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            forced_eos_token_id=None,
            decoder_start_token_id=pad if start is None else start,
            activation_function="relu",
            scale_embedding=True,
            share_encoder_decoder_embeddings=not separate,
            tie_word_embeddings=not separate,
            init_std=self.shape["d_model"] ** -0.5,
            **self.shape,
        )
        model = MarianMTModel(config)
        _scale_residuals(model)
        return model


def _scale_residuals(model: PreTrainedModel) -> None:
    """Divide the output of each residual branch by the root of the number of branches (GPT-2, Radford et al. 2019, section 2.3; by
    depth in Zhang et al. 2019, https://arxiv.org/abs/1908.11365). Marian normalises after each branch; if the branches have the
    magnitude of the residual stream, the model learns several times more slowly."""
    with torch.no_grad():
        for stack, branches in (model.model.encoder, 2), (model.model.decoder, 3):
            for name, weight in stack.layers.named_parameters():
                if name.endswith(("out_proj.weight", "fc2.weight")):
                    weight.mul_((branches * len(stack.layers)) ** -0.5)


def learn_vocabulary(rows: datasets.Dataset, size: int) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; over bytes, so that no character is unknown) on
    both sides of all pairs.

    Args:
        size: the maximum number of tokens, which includes the 256 bytes and three special tokens.

    Raises:
        ConfigError: `size` is smaller than that.
    """
    special = ["</s>", "<unk>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size < len(alphabet) + len(special):
        raise ConfigError(
            f"teacher.vocab_size = {size}: {len(alphabet) + len(special)} tokens are needed for bytes and special tokens alone; raise it"
        )
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    texts = (text for side in ("source", "target") for text in rows[side])
    inner.train_from_iterator([text for text in texts if text is not None], trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )

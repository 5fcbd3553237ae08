"""Generates text in batches, greedily, by sampling or by beam search."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from kdcli.config.measure import Measure
from kdcli.errors import ConfigError, ModelError
from kdcli.prompts import tokenize_prompts


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return the number of positions of a model; None: it is not limited."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if positions and positions > 0 else None  # XLNet says -1


def max_prompt_tokens(
    config: PreTrainedConfig, max_new_tokens: int, what: str = "max_new_tokens"
) -> int | None:
    """Return the number of tokens of a prompt that leaves positions for a completion; None: it is not limited.

    Args:
        what: the config key of `max_new_tokens`, for messages.

    Raises:
        ConfigError: no prompt does.
    """
    most = positions_of(config)
    if most is not None and most <= max_new_tokens:
        raise ConfigError(
            f"{what} = {max_new_tokens}: {config.model_type} has positions for {most} tokens, and the prompt needs some of them; "
            f"give {what} < {most}"
        )
    return most and most - max_new_tokens


def require_room(cfg: Measure, config: PreTrainedConfig) -> int | None:
    """Return the tokens of a prompt that leave a language model positions for `measure.new_tokens`; None: any number.

    Raises:
        ConfigError: there are none, or too few for prompts of `measure.sequence_length` tokens.
    """
    most = max_prompt_tokens(config, cfg.new_tokens, "measure.new_tokens")
    if most is not None and (cfg.sequence_length or 0) > most:
        raise ConfigError(
            f"measure.sequence_length = {cfg.sequence_length}: {config.model_type} has positions for {most + cfg.new_tokens} tokens, and "
            f"measure.new_tokens = {cfg.new_tokens} are written after them; give at most {most}"
        )
    return most


class Reply(NamedTuple):
    """The text that a model generated for a prompt."""

    text: str
    complete: bool
    """It has an end token; otherwise it was truncated at `max_new_tokens`."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
    ends: Sequence[int] = (),
    listener: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Generate after each prompt with a decoder. The returned tokens include the end token, if there is one.

    Prompts are padded on the left, and the padding is masked, so that a completion does not depend on the other prompts of its batch.
    Prompts of similar length share a batch. A prompt that leaves no positions for its completion loses its beginning. Only the end tokens
    of the checkpoint's generation config are used: penalties and similar settings would change the distribution.

    Args:
        max_new_tokens: the maximum length of a completion.
        batch_size: prompts in a batch.
        temperature: 0: greedy; otherwise tokens are sampled from softmax(logits / temperature).
        seeds: one for each prompt, if tokens are sampled; a completion depends on its own seed alone.
        ends: end tokens in addition to those of the model and the tokenizer.
        listener: of a single prompt: called with each token as soon as it is known.

    Raises:
        ConfigError: the model has no positions for so many new tokens.
    """
    generator: Any = model
    most = max_prompt_tokens(model.config, max_new_tokens)
    prompts = [prompt[-most:] if most else prompt for prompt in prompts]
    was_training, own = model.training, generator.generation_config
    model.eval()
    ends = ends_of(model, tokenizer, ends)
    generator.generation_config = GenerationConfig(
        eos_token_id=ends or None, pad_token_id=tokenizer.pad_token_id
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    out: list[list[int]] = [[] for _ in prompts]
    try:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            longest = len(prompts[indices[-1]])
            batch = torch.full((len(indices), longest), tokenizer.pad_token_id or 0)
            mask = torch.zeros_like(batch)
            for line, index in enumerate(indices):
                batch[line, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[line, longest - len(prompts[index]) :] = 1
            drawn = [_Sampled(temperature, [seeds[index] for index in indices])] if temperature else []
            with parametrize.cached():  # fake-quantized weights are computed once, not for each token
                tokens = generator.generate(
                    input_ids=batch.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    logits_processor=LogitsProcessorList(drawn),
                    streamer=None if listener is None else _Streamer(listener),
                )
            for index, row in zip(indices, tokens[:, longest:].tolist(), strict=True):
                last = next((at for at, token in enumerate(row) if token in ends), len(row))
                out[index] = row[: last + 1]
    finally:
        generator.generation_config = own
        model.train(was_training)
    return out


@torch.no_grad()
def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    given: Sequence[int],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
    num_beams: int = 1,
    length_penalty: float = 1.0,
    candidates: int = 1,
) -> list[list[int]]:
    """Generate for each source with an encoder-decoder. The returned tokens include the end token, but neither the start token nor the given
    tokens.

    Sources of similar length share a batch, and their padding is masked. Only the start and the end tokens of the checkpoint's
    generation config are used; the padding token is never generated.

    Args:
        given: tokens that follow the start token in each text (a language code).
        max_new_tokens, batch_size, temperature, seeds: as for `generate`.
        num_beams: the width of a beam search; 1: none.
        length_penalty: of a beam search: the sum of log-probabilities is divided by the length to this power.
        candidates: texts for each source: the best beams, or that many samples. Those of one source are consecutive.
    """
    generator: Any = model
    was_training, own = model.training, generator.generation_config
    attention = model.config._attn_implementation
    model.eval()
    # the fused kernel takes up to 1.5 times as long for single tokens
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    plain = greedy_config(model, tokenizer)
    generator.generation_config = plain
    ends, pad, start = plain.eos_token_id, tokenizer.pad_token_id, plain.decoder_start_token_id
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    out: list[list[int]] = [[] for _ in range(len(sources) * candidates)]
    drawn = candidates if temperature else 1
    try:
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            lines = [index for index in indices for _ in range(drawn)]
            batch = torch.full((len(lines), len(sources[indices[0]])), pad)
            mask = torch.zeros_like(batch)
            for line, index in enumerate(lines):
                batch[line, : len(sources[index])] = torch.tensor(sources[index])
                mask[line, : len(sources[index])] = 1
            streams = (
                [seed_of(seeds[index], sample) for index in indices for sample in range(drawn)]
                if temperature
                else []
            )
            written = generator.generate(
                input_ids=batch.to(model.device),
                attention_mask=mask.to(model.device),
                decoder_input_ids=torch.tensor([[start, *given]] * len(lines), device=model.device),
                past_key_values=_Beams(DynamicCache(), DynamicCache()),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=num_beams,
                num_return_sequences=candidates // drawn,
                length_penalty=length_penalty,
                logits_processor=LogitsProcessorList([_Sampled(temperature, streams)] if temperature else []),
            )[:, 1 + len(given) :].tolist()
            for line, row in enumerate(written):
                last = next((at for at, token in enumerate(row) if token in _list(ends)), len(row))
                out[indices[line // candidates] * candidates + line % candidates] = row[: last + 1]
    finally:
        generator.generation_config = own
        model.set_attn_implementation(attention)
        model.train(was_training)
    return out


class _Beams(EncoderDecoderCache):
    """The keys and values of a beam search. Those of the source are not reordered, because all beams of a text share them."""

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.self_attention_cache.reorder_cache(beam_idx)


def unset_unused(config: GenerationConfig | None) -> None:
    """Set the keys of a generation config to None that have no effect beside its others, such as `temperature` without `do_sample`. Published
    models have them, and transformers saves such a config only as it was loaded."""
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError as error:
        for name in re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE):
            setattr(config, name, None)


def greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return a greedy generation config for an encoder-decoder, with its start and end tokens; the padding token is suppressed."""
    own: Any = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        eos_token_id=ends,
        pad_token_id=pad,
        decoder_start_token_id=start_of(model),
        bos_token_id=None,
        suppress_tokens=[pad] if pad not in _list(ends) else None,
    )


def decoded(tokenizer: PreTrainedTokenizerBase, written: list[list[int]]) -> list[str]:
    """Decode generated tokens."""
    texts = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def start_of(model: PreTrainedModel) -> int:
    """Return the start token of the decoder of an encoder-decoder.

    Raises:
        ModelError: the checkpoint does not define it.
    """
    own: Any = model.generation_config
    start = getattr(model.config, "decoder_start_token_id", None)
    start = own.decoder_start_token_id if start is None and own is not None else start
    if start is None:
        raise ModelError(
            f"{type(model).__name__}: its config.json has no decoder_start_token_id, so the first token of a text is not known; add it"
        )
    return int(start)


def ends_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, more: Sequence[int] = ()
) -> list[int]:
    """Return the end tokens of a language model: its own, those of its tokenizer, and further ones."""
    return ends_of_config(model.generation_config, tokenizer, more)


def ends_of_config(
    config: PreTrainedConfig | GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    more: Sequence[int] = (),
) -> list[int]:
    """Return `ends_of` a model that is known by its config alone."""
    own: Any = config
    return sorted({*_list(own.eos_token_id), *_list(tokenizer.eos_token_id), *more})


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    special: bool,
    max_length: int,
    ends: Sequence[int] = (),
    generator: Callable[..., list[list[int]]] = generate,
    **options: Any,
) -> list[Reply]:
    """Generate a text after each prompt with a decoder, without special tokens.

    Args:
        special: as for `tokenize_prompts`.
        max_length: the maximum number of tokens of a prompt; a longer one loses its beginning.
        generator: has the arguments and the result of `generate`.
        ends, options: as for `generate`.
    """
    ids = [row[-max_length:] for row in tokenize_prompts(tokenizer, prompts, special)]
    completions = generator(model, tokenizer, ids, ends=ends, **options)
    last = ends_of(model, tokenizer, ends)
    texts = continued(tokenizer, ids, completions)
    return [Reply(text, completion[-1] in last) for text, completion in zip(texts, completions, strict=True)]


def continued(
    tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], completions: list[list[int]]
) -> list[str]:
    """Return the texts of completions, decoded after their prompts: decoded alone, those of Llama 2 lose their first space."""
    before, joined, alone = (
        tokenizer.batch_decode(rows, skip_special_tokens=True)
        for rows in (
            prompts,
            [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)],
            completions,
        )
    )
    return [
        both[len(prompt) :] if both.startswith(prompt) else completion
        for prompt, both, completion in zip(before, joined, alone, strict=True)
    ]


def _list(ends: int | list[int] | None) -> list[int]:
    return [] if ends is None else [ends] if isinstance(ends, int) else ends


def seed_of(*parts: object) -> int:
    """Return a seed of 63 bits, computed from the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class _Streamer(BaseStreamer):
    """Hands each generated token of a single prompt to a listener."""

    def __init__(self, listener: Callable[[int], object]):
        self.listener = listener
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        """The tokens of the prompt come first."""
        for token in value.flatten().tolist() if not self.is_prompt else ():
            self.listener(token)
        self.is_prompt = False

    def end(self) -> None:
        """Nothing was held back."""


EPSILON = 1e-12
"""The distance by which a random number stays below 1, so that no rounding selects a token beyond the last possible one."""


class _Sampled(LogitsProcessor):
    """Samples one token of each row from the softmax of logits / T, and suppresses all others. The sample is the first token whose cumulative
    probability is above a uniform random number. Each row has its own generator, from which a step takes one number, so that a sample depends
    neither on the other rows of its batch nor on the device."""

    def __init__(self, temperature: float, seeds: Sequence[int]):
        self.temperature = temperature
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        numbers = torch.stack(
            [torch.rand(1, generator=stream, dtype=torch.float64) for stream in self.streams]
        )
        probabilities = (scores.float() / self.temperature).softmax(-1)
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        below = numbers.to(scores.device) * cumulative[:, -1:] * (1 - EPSILON)
        tokens = torch.searchsorted(cumulative, below, right=True)
        return torch.full_like(probabilities, -torch.inf).scatter_(-1, tokens, 0.0)

"""Who writes the completions that a student learns from: prompts are continued in batches, greedily or by sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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

from kdcli.config.schema import Measure
from kdcli.errors import ConfigError, ModelError


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many tokens a model has positions for; None: as many as you like."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if found and found > 0 else None  # XLNet says -1


def max_prompt_tokens(
    config: PreTrainedConfig, max_new_tokens: int, what: str = "max_new_tokens"
) -> int | None:
    """Tokens of a prompt that leave positions for an answer; None: as many as you like.

    Args:
        what: the config's key that says how many tokens are written.

    Raises:
        ConfigError: none.
    """
    most = positions_of(config)
    if most is not None and most <= max_new_tokens:
        raise ConfigError(
            f"{what} = {max_new_tokens}: {config.model_type} has positions for {most} tokens, and the prompt needs some of them; "
            f"give {what} < {most}"
        )
    return most and most - max_new_tokens


def require_room(cfg: Measure, config: PreTrainedConfig) -> int | None:
    """Tokens of a prompt that leave a language model positions for `measure.new_tokens`; None: any number.

    Raises:
        ConfigError: there are none, or too few for prompts of `measure.sequence_length` tokens.
    """
    room = max_prompt_tokens(config, cfg.new_tokens, "measure.new_tokens")
    if room is not None and (cfg.sequence_length or 0) > room:
        raise ConfigError(
            f"measure.sequence_length = {cfg.sequence_length}: {config.model_type} has positions for {room + cfg.new_tokens} tokens, and "
            f"measure.new_tokens = {cfg.new_tokens} are written after them; give at most {room}"
        )
    return room


class Reply(NamedTuple):
    """What a model wrote after a prompt."""

    text: str
    whole: bool
    """It came to its end; else it was cut off at `max_new_tokens`."""


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
) -> list[list[int]]:
    """The tokens that a language model writes after each prompt, to its end of text, which is among them, if it comes.

    Prompts are padded on the left, and the padding is masked: an answer does not depend on its neighbours. Prompts of
    like length are answered together. Of a prompt that leaves no positions for its answer the beginning is cut off.
    Of what the checkpoint says of its generation only the ends of text are heeded: penalties and the like would make
    another distribution of it.

    Args:
        max_new_tokens: of an answer, at most.
        batch_size: prompts that are answered at once.
        temperature: 0: the likeliest token each time; else tokens are drawn from softmax(logits / temperature).
        seeds: one a prompt, where tokens are drawn: a prompt's answer depends on its own seed alone.
        ends: tokens that end a text beside those that model and tokenizer name.

    Raises:
        ConfigError: the model has no positions for so many new tokens.
    """
    generator: Any = model
    room = max_prompt_tokens(model.config, max_new_tokens)
    prompts = [prompt[-room:] if room else prompt for prompt in prompts]
    was_training, own = model.training, generator.generation_config
    model.eval()
    ends = ends_of(model, tokenizer, ends)
    generator.generation_config = GenerationConfig(
        eos_token_id=ends or None, pad_token_id=tokenizer.pad_token_id
    )
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    out: list[list[int]] = [[] for _ in prompts]
    try:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            longest = len(prompts[places[-1]])
            batch = torch.full((len(places), longest), tokenizer.pad_token_id or 0)
            mask = torch.zeros_like(batch)
            for line, place in enumerate(places):
                batch[line, longest - len(prompts[place]) :] = torch.tensor(prompts[place])
                mask[line, longest - len(prompts[place]) :] = 1
            drawn = [_Drawn(temperature, [seeds[place] for place in places])] if temperature else []
            with parametrize.cached():  # rounded weights are rounded once, not for each token
                tokens = generator.generate(
                    input_ids=batch.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    logits_processor=LogitsProcessorList(drawn),
                )
            for place, row in zip(places, tokens[:, longest:].tolist(), strict=True):
                last = next((at for at, token in enumerate(row) if token in ends), len(row))
                out[place] = row[: last + 1]
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
    """The tokens that an encoder-decoder writes for each source, without the start token and those given, to its end of text.

    Sources of like length are read together, and their padding is masked. Of what the checkpoint says of its generation only
    the start and the ends of text are heeded; what pads is never written.

    Args:
        given: tokens that every text begins with after the start token (a language code).
        max_new_tokens, batch_size, temperature, seeds: as for `go_on`.
        num_beams: above 1 the likeliest text is searched for with so many beams.
        length_penalty: of beams: the sum of log-probabilities is divided by the length to this power.
        candidates: texts for each source: of beams the likeliest ones, else as many draws; they stand one after the other.
    """
    generator: Any = model
    was_training, own = model.training, generator.generation_config
    attention = model.config._attn_implementation
    model.eval()
    # the fused kernel takes up to half as long again for one token of each text
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    plain = greedy_config(model, tokenizer)
    generator.generation_config = plain
    ends, pad, start = plain.eos_token_id, tokenizer.pad_token_id, plain.decoder_start_token_id
    order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))
    out: list[list[int]] = [[] for _ in range(len(sources) * candidates)]
    drawn = candidates if temperature else 1
    try:
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            lines = [place for place in places for _ in range(drawn)]
            batch = torch.full((len(lines), len(sources[places[0]])), pad)
            mask = torch.zeros_like(batch)
            for line, place in enumerate(lines):
                batch[line, : len(sources[place])] = torch.tensor(sources[place])
                mask[line, : len(sources[place])] = 1
            streams = (
                [seed_of(seeds[place], number) for place in places for number in range(drawn)]
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
                logits_processor=LogitsProcessorList([_Drawn(temperature, streams)] if temperature else []),
            )[:, 1 + len(given) :].tolist()
            for line, row in enumerate(written):
                last = next((at for at, token in enumerate(row) if token in _list(ends)), len(row))
                out[places[line // candidates] * candidates + line % candidates] = row[: last + 1]
    finally:
        generator.generation_config = own
        model.set_attn_implementation(attention)
        model.train(was_training)
    return out


class _Beams(EncoderDecoderCache):
    """Keys and values of a search whose beams change places: those of the source stay, which a text's beams share."""

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.self_attention_cache.reorder_cache(beam_idx)


def greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """How an encoder-decoder writes here: greedily, from its start to one of its ends; what pads is never written."""
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
    """The texts of translated tokens."""
    texts = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def start_of(model: PreTrainedModel) -> int:
    """The token that a decoder beside an encoder begins with.

    Raises:
        ModelError: the checkpoint does not say.
    """
    own: Any = model.generation_config
    start = getattr(model.config, "decoder_start_token_id", None)
    start = own.decoder_start_token_id if start is None and own is not None else start
    if start is None:
        raise ModelError(
            f"{type(model).__name__}: its config.json has no decoder_start_token_id, so where a text begins is not known; add it"
        )
    return int(start)


def ends_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, more: Sequence[int] = ()
) -> list[int]:
    """The tokens that end a language model's text: its own, its tokenizer's, and those that are named here."""
    own: Any = model.generation_config
    return sorted({*_list(own.eos_token_id), *_list(tokenizer.eos_token_id), *more})


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    special: bool,
    max_length: int,
    ends: Sequence[int] = (),
    **options: Any,
) -> list[Reply]:
    """What a language model writes after each prompt, without special tokens.

    Args:
        special: the tokenizer adds its special tokens to a prompt (a rendered chat has them already).
        max_length: tokens of a prompt; the beginning of a longer one is cut off.
        ends, options: as for `generate`.
    """
    ids = [row[-max_length:] for row in tokenizer(list(prompts), add_special_tokens=special)["input_ids"]]
    answers = generate(model, tokenizer, ids, ends=ends, **options)
    last = ends_of(model, tokenizer, ends)
    texts = continued(tokenizer, ids, answers)
    return [Reply(text, answer[-1] in last) for text, answer in zip(texts, answers, strict=True)]


def continued(
    tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], answers: list[list[int]]
) -> list[str]:
    """The texts of answers as they stand after their prompts: by themselves Llama 2's lose the space that they begin with."""
    before, whole, alone = (
        tokenizer.batch_decode(rows, skip_special_tokens=True)
        for rows in (
            prompts,
            [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
            answers,
        )
    )
    return [
        both[len(prompt) :] if both.startswith(prompt) else answer
        for prompt, both, answer in zip(before, whole, alone, strict=True)
    ]


def _list(ends: int | list[int] | None) -> list[int]:
    return [] if ends is None else [ends] if isinstance(ends, int) else ends


def seed_of(*parts: object) -> int:
    """A seed of 63 bits that depends on nothing but the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class _Drawn(LogitsProcessor):
    """Noise of a Gumbel distribution on the logits / T: their largest is then a draw from the softmax
    (Maddison et al. 2014, https://arxiv.org/abs/1411.0030). Each row has its own stream of noise."""

    def __init__(self, temperature: float, seeds: Sequence[int]):
        self.temperature = temperature
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        noise = torch.stack(
            [torch.empty(scores.shape[-1]).exponential_(generator=stream) for stream in self.streams]
        )
        return scores.float() / self.temperature - noise.log().to(scores.device)

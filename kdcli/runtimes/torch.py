"""A model directory, run eagerly in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdcli.runtimes.base import Answers, Encoded, Greedy, MeasureSpec, Texts, Writes, listed, room


class Model(Answers):
    """A classifier."""

    packages = ("torch", "transformers.modeling_utils")

    def __init__(self, spec: MeasureSpec):
        import inspect

        import torch
        import transformers

        torch.set_num_threads(spec.threads)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": spec.code}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(spec.tokenizer, **options)
        auto = getattr(transformers, spec.auto)
        self.model = auto.from_pretrained(
            spec.path, use_safetensors=True, dtype=torch.float32, **options
        ).eval()
        self.max_length, self.special = spec.max_length, spec.special
        taken = inspect.signature(self.model.forward).parameters
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        self.pad = {name: fill.get(name, 0) for name in self.tokenizer.model_input_names if name in taken}

    def encode(self, texts: Texts) -> list[Encoded]:
        rows = [
            self.tokenizer(*row, truncation=True, max_length=self.max_length, add_special_tokens=self.special)
            for row in texts
        ]
        return [{name: np.asarray(row[name], np.int64) for name in self.pad} for row in rows]

    def __call__(self, batch: Encoded) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.model(
                **{name: torch.from_numpy(array) for name, array in batch.items()}
            ).logits.numpy()


class Writer(Writes, Model):
    """A language model, of whose prompt only the last token's logits are made."""

    def write(self, prompt: Encoded, count: int, told: Callable[[int], object]) -> None:
        import torch

        ids, past = torch.from_numpy(prompt["input_ids"]), None
        with torch.inference_mode():
            for _ in range(count):
                out = self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
                told(int(ids))


class Translator(Greedy):
    """A translator, with a cache of keys and values."""

    packages = ("torch", "transformers.modeling_utils")

    def __init__(self, spec: MeasureSpec):
        import torch
        import transformers

        from kdcli.rollouts import start_of

        torch.set_num_threads(spec.threads)
        self.model = getattr(transformers, spec.auto).from_pretrained(
            spec.path,
            use_safetensors=True,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=spec.code,
        )
        self.model.eval()
        config, own = self.model.config, self.model.generation_config
        self.begin = [start_of(self.model), *spec.given]
        self.ends = listed(config.eos_token_id if own.eos_token_id is None else own.eos_token_id)
        self.barred = [token for token in [config.pad_token_id] if token not in [None, *self.ends]]
        self.room = room(spec)

    def __call__(self, ids: Sequence[int]) -> list[int]:
        import torch

        with torch.inference_mode():
            return super().__call__(ids)

    def reading(self, ids: Sequence[int]) -> Callable[[list[int]], Any]:
        import torch
        from transformers import DynamicCache, EncoderDecoderCache

        read = self.model.get_encoder()(input_ids=torch.tensor([ids]))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def after(tokens: list[int]) -> torch.Tensor:
            logits: torch.Tensor = self.model(
                encoder_outputs=read,
                decoder_input_ids=torch.tensor([tokens]),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, -1]
            logits[self.barred] = -torch.inf
            return logits

        return after

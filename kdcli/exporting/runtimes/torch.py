"""A model directory, run eagerly: in fp32, or as its weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdcli.measure.runtime import Answers, Greedy, Writes, listed, room
from kdcli.measure.spec import Encoded, MeasureSpec, Texts


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
        self.model, self.device = _loaded(spec), spec.device
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

        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}
        with torch.inference_mode():
            found: np.ndarray = self.model(**inputs).logits.float().cpu().numpy()
        return found

    def memory(self) -> int | None:
        return _gpu_memory(self.device)


class Writer(Writes, Model):
    """A language model, of whose prompt only the last token's logits are made."""

    def __init__(self, spec: MeasureSpec):
        super().__init__(spec)
        self.pad = {"input_ids": 0}

    def encode(self, prompts: Any) -> list[Encoded]:
        """Of texts, or of pairs of a text and its token ids."""
        ids = [row[1][: self.max_length] if len(row) > 1 else self._tokens(row[0]) for row in prompts]
        return [{"input_ids": np.asarray(row, np.int64)} for row in ids]

    def _tokens(self, text: str) -> list[int]:
        how = {"truncation": True, "max_length": self.max_length, "add_special_tokens": self.special}
        ids: list[int] = self.tokenizer(text, **how)["input_ids"]
        return ids

    def same_tokens(self, prompts: Sequence[tuple[str, list[int]]]) -> np.ndarray:
        """Whether its tokenizer cuts each text into the ids given, bool (N,)."""
        return np.asarray([self._tokens(text) == ids[: self.max_length] for text, ids in prompts], bool)

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
        """Of each row's counted tokens the log-probability after those before, and the likeliest token there."""
        import torch

        log_prob, top = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for ids, places in rows:
            row = torch.tensor([ids], device=self.device)
            before = torch.tensor(places, device=self.device) - 1
            with torch.inference_mode():
                logits = self.model(input_ids=row, logits_to_keep=before).logits[0].float()
            said = logits.log_softmax(-1).gather(1, row[0, places, None])[:, 0]
            log_prob.append(said.cpu().numpy())
            top.append(logits.argmax(-1).cpu().numpy())
        return {"log_prob": np.concatenate(log_prob), "top": np.concatenate(top)}

    def write(self, prompt: Encoded, count: int, told: Callable[[int], object]) -> None:
        import torch

        ids, past = torch.from_numpy(prompt["input_ids"]).to(self.device), None
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

        from kdcli.generation import start_of

        torch.set_num_threads(spec.threads)
        self.model, self.device = _loaded(spec), spec.device
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

        read = self.model.get_encoder()(input_ids=torch.tensor([ids], device=self.device))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def after(tokens: list[int]) -> torch.Tensor:
            logits: torch.Tensor = self.model(
                encoder_outputs=read,
                decoder_input_ids=torch.tensor([tokens], device=self.device),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, -1]
            logits[self.barred] = -torch.inf
            return logits

        return after

    def memory(self) -> int | None:
        return _gpu_memory(self.device)


def _loaded(spec: MeasureSpec) -> Any:
    import torch
    import transformers

    return (
        getattr(transformers, spec.auto)
        .from_pretrained(
            spec.path,
            use_safetensors=True,
            dtype=torch.float32 if spec.dtype == "float32" else spec.dtype,
            local_files_only=True,
            trust_remote_code=spec.code,
        )
        .to(spec.device)
        .eval()
    )


def _gpu_memory(device: str) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None

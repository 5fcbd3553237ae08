"""Runs a model directory in PyTorch, eagerly, in fp32 or in the dtype of its stored weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdcli.measure.runtime import CausalLMRuntime, EncoderRuntime, Seq2SeqRuntime, as_list, max_new_tokens
from kdcli.measure.spec import Counted, Encoded, MeasureSpec, Texts

MARKERS = ("model.safetensors", "model.safetensors.index.json")
WEIGHTS = ("*.safetensors",)
PACKAGES = ("torch", "transformers.modeling_utils")


class TorchEncoder(EncoderRuntime):
    """A classifier."""

    markers, weights, packages = MARKERS, WEIGHTS, PACKAGES
    batched_predictions = True

    def __init__(self, spec: MeasureSpec):
        import inspect

        self.tokenizer, self.model = _load_tokenizer(spec), _load_model(spec)
        self.max_length, self.add_special_tokens = spec.max_length, spec.add_special_tokens
        self.device = spec.device
        taken = inspect.signature(self.model.forward).parameters
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        self.pad_values = {
            name: fill.get(name, 0) for name in self.tokenizer.model_input_names if name in taken
        }
        self.pads_left = self.tokenizer("x")["input_ids"][-1:] == [self.tokenizer.cls_token_id]

    def encode(self, texts: Texts) -> list[Encoded]:
        options = {
            "truncation": True,
            "max_length": self.max_length,
            "add_special_tokens": self.add_special_tokens,
        }
        rows = [self.tokenizer(*row, **options) for row in texts]
        return [{name: np.asarray(row[name], np.int64) for name in self.pad_values} for row in rows]

    def __call__(self, inputs: Encoded) -> np.ndarray:
        import torch

        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        with torch.inference_mode():
            logits: np.ndarray = self.model(**tensors).logits.float().cpu().numpy()
        return logits

    def memory(self) -> int | None:
        return _gpu_memory(self.device)


class TorchCausalLM(CausalLMRuntime):
    """A causal language model. It computes the logits of the last token of a prompt alone."""

    markers, weights, packages = MARKERS, WEIGHTS, PACKAGES

    def __init__(self, spec: MeasureSpec):
        self.tokenizer, self.model = _load_tokenizer(spec), _load_model(spec)
        self.max_length, self.add_special_tokens = spec.max_length, spec.add_special_tokens
        self.device = spec.device

    def encode(self, prompts: Any) -> list[Encoded]:
        """Return the inputs of texts, or of pairs of a text and its token ids."""
        ids = [row[1][: self.max_length] if len(row) > 1 else self.tokenize(row[0]) for row in prompts]
        return [{"input_ids": np.asarray(row, np.int64)} for row in ids]

    def tokenize(self, text: str) -> list[int]:
        from kdcli.prompts import tokenize_prompts

        return tokenize_prompts(self.tokenizer, [text], self.add_special_tokens)[0][: self.max_length]

    def same_tokens(self, prompts: Sequence[tuple[str, list[int]]]) -> np.ndarray:
        """Compare tokens as in the base class, up to `MeasureSpec.max_length` of them."""
        return np.asarray([self.tokenize(text) == ids[: self.max_length] for text, ids in prompts], bool)

    def score(self, rows: Sequence[Counted]) -> dict[str, np.ndarray]:
        import torch

        log_prob, top = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for ids, positions in rows:
            row = torch.tensor([ids], device=self.device)
            before = torch.tensor(positions, device=self.device) - 1
            with torch.inference_mode():
                logits = self.model(input_ids=row, logits_to_keep=before).logits[0].float()
            of_row = logits.log_softmax(-1).gather(1, row[0, positions, None])[:, 0]
            log_prob.append(of_row.cpu().numpy())
            top.append(logits.argmax(-1).cpu().numpy())
        return {"log_prob": np.concatenate(log_prob), "top": np.concatenate(top)}

    def generate(self, prompt: Encoded, count: int, listener: Callable[[int], object]) -> None:
        import torch

        ids, past = torch.from_numpy(prompt["input_ids"]).to(self.device), None
        with torch.inference_mode():
            for _ in range(count):
                out = self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
                listener(int(ids))

    def reader(self) -> Callable[[list[int]], np.ndarray]:
        import torch

        past: Any = None

        def read(tokens: list[int]) -> np.ndarray:
            nonlocal past
            ids = torch.tensor([tokens], device=self.device)
            with torch.inference_mode():
                out = self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            logits: np.ndarray = out.logits[0, -1].float().cpu().numpy()
            return logits

        return read

    def memory(self) -> int | None:
        return _gpu_memory(self.device)


class TorchSeq2Seq(Seq2SeqRuntime):
    """An encoder-decoder, with a key/value cache."""

    markers, weights, packages = MARKERS, WEIGHTS, PACKAGES

    def __init__(self, spec: MeasureSpec):
        from kdcli.generation import start_of

        self.model, self.device = _load_model(spec), spec.device
        config, own = self.model.config, self.model.generation_config
        start = start_of(self.model) if spec.decoder_start is None else spec.decoder_start
        self.begin = [start, *spec.decoder_prefix]
        self.ends = as_list(config.eos_token_id if own.eos_token_id is None else own.eos_token_id)
        self.suppressed = [token for token in [config.pad_token_id] if token not in [None, *self.ends]]
        self.max_new_tokens = max_new_tokens(spec)

    def __call__(self, inputs: Sequence[int]) -> list[int]:
        import torch

        with torch.inference_mode():
            return super().__call__(inputs)

    def decoder(self, ids: Sequence[int]) -> Callable[[list[int]], Any]:
        import torch
        from transformers import DynamicCache, EncoderDecoderCache

        encoded = self.model.get_encoder()(input_ids=torch.tensor([ids], device=self.device))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def step(tokens: list[int]) -> torch.Tensor:
            logits: torch.Tensor = self.model(
                encoder_outputs=encoded,
                decoder_input_ids=torch.tensor([tokens], device=self.device),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, -1]
            logits[self.suppressed] = -torch.inf
            return logits

        return step

    def memory(self) -> int | None:
        return _gpu_memory(self.device)


def _load_tokenizer(spec: MeasureSpec) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(
        spec.tokenizer, local_files_only=True, trust_remote_code=spec.trust_remote_code
    )


def _load_model(spec: MeasureSpec) -> Any:
    import torch
    import transformers

    torch.set_num_threads(spec.threads)
    options: dict[str, Any] = {
        "dtype": torch.float32 if spec.dtype == "float32" else spec.dtype,
        "local_files_only": True,
        "trust_remote_code": spec.trust_remote_code,
    }
    if spec.quantization is not None:
        from kdcli.models.weight_only import quantization_options

        config = transformers.AutoConfig.from_pretrained(spec.path, local_files_only=True)
        options |= quantization_options(spec.quantization, spec.auto, config)
    model = getattr(transformers, spec.auto).from_pretrained(spec.path, use_safetensors=True, **options)
    return torch.nn.Module.to(model, spec.device).eval()  # the model's own `to` refuses a quantized one


def _gpu_memory(device: str) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None

"""Generates text greedily with a language model. Its keys and values are passed from step to step."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from transformers import AutoTokenizer

CHAT = False  # whether the prompt is the turn of a user

HERE = Path(__file__).parent
TOKENIZER = AutoTokenizer.from_pretrained(HERE)
CONFIG = json.loads((HERE / "generation_config.json").read_text(encoding="utf-8"))
ENDS = set(np.ravel(CONFIG.get("eos_token_id", [])).tolist())


def tokenize(prompt: str) -> list[int]:
    """Return the token ids of a prompt."""
    if not CHAT:
        return TOKENIZER(prompt)["input_ids"]
    turns = [{"role": "user", "content": prompt}]
    return TOKENIZER.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]


def generate(session: InferenceSession, prompt: list[int], max_new_tokens: int) -> Iterator[int]:
    """Yield the tokens that follow the prompt, as soon as each is computed."""
    shapes = {entry.name: entry.shape for entry in session.get_inputs() if entry.name.startswith("past")}
    past = {name: np.zeros((1, heads, 0, size), np.float32) for name, (_, heads, _, size) in shapes.items()}
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    tokens, length = prompt, 0
    for _ in range(max_new_tokens):
        positions = np.arange(length, length := length + len(tokens))[None]
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": positions,
            "num_logits_to_keep": np.array(1),
        }
        logits, *parts = session.run(outputs, inputs | past)
        past, tokens = dict(zip(past, parts, strict=True)), [int(logits[0, -1].argmax())]
        yield tokens[0]
        if tokens[0] in ENDS:
            return


def decode(ids: list[int]) -> str:
    """Return the text of generated tokens."""
    return TOKENIZER.decode(ids, skip_special_tokens=True)

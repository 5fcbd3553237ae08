"""Declares causal language modelling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from kdcli.config.tasks import FolderFormat, TaskSpec
from kdcli.tasks.pairs import PROMPTS, marker_of

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset
    from kdcli.tasks.columns import Column, Fit


class CausalLMSpec(TaskSpec):
    """Prompts with completions, conversations, or plain text."""

    family = "causal_lm"
    reads = frozenset(
        {"text", "prompt", "completion", "messages", "chat", "context", "thoughts", "truncation"}
    )
    reads_of_run = frozenset({
        "rollout", "teacher.top_k", "measure.new_tokens", "measure.generations", "hardware.tolerance.generated",
    })  # fmt: skip
    only_here: ClassVar[dict[str, str]] = {
        "truncation": "it is for conversations, completions and pairs",
        "context": "it is for conversations and prompts",
        "thoughts": "it is for conversations",
    }
    formats: ClassVar[dict[str, FolderFormat]] = {
        "txt": FolderFormat((".txt",), ("text",)),
        "conversations": FolderFormat((".yml", ".yaml"), ("prompt", "completion")),
    }
    inference_order = 2
    column_keys = "dataset.prompt= and dataset.completion= (or dataset.messages=)"
    writes = True
    max_epochs = 5.0
    longest_proposed = 2048
    quantizable = True
    refuses_short = True
    new_students = "smollm2-30m or smollm2-60m"

    def implied_by(self, cfg: Dataset) -> bool:
        """Return whether there are columns of prompts or conversations, or of texts without labels."""
        return bool(cfg.prompt or cfg.messages) or cfg.format in self.formats or cfg.label is None

    def usual_keys(self, tokenizer: Any) -> dict[str, Any]:
        """Return the keys of prompts and completions, which are turns if the tokenizer has a chat template."""
        return {"prompt": "prompt", "completion": "completion", "chat": bool(tokenizer.chat_template)}

    def fits(self, columns: Sequence[Column], given: Mapping[str, Any]) -> Iterator[Fit]:
        """Yield conversations, prompts with completions, or one or two columns of texts."""
        from kdcli.tasks.causal_lm.rows import CONTEXT, INSTRUCTION
        from kdcli.tasks.columns import POSSIBLE, Fit, texts_alone, usual_pair

        def are_turns(prompt: Column, completion: Column) -> bool:
            if prompt.is_turns or completion.is_turns:
                return True
            if prompt.name.lower() == INSTRUCTION or completion.name.lower() == "chosen":
                return completion.is_text or completion.looks_like_labels  # one task with few answers
            return prompt.is_text and completion.is_text and not completion.looks_like_labels

        pair = usual_pair(columns, PROMPTS, are_turns)
        if pair is not None:
            own = {column.name for column in columns if column.name not in pair}
            prompts = [str(each) for column in columns if column.name == pair[0] for each in column.values]
            has_turns = any(CONTEXT.get(name, "input") != "input" for name in own)
            chat = {"chat": has_turns} if has_turns or marker_of(prompts) else {}
            yield Fit({"prompt": pair[0], "completion": pair[1], **chat})
        for column in columns:
            if column.is_turns and column.name not in (*(pair or ()), "chosen", "rejected"):
                yield Fit({"messages": column.name})
        texts = texts_alone(columns)
        if len(texts) == 1 and not any(column.is_turns for column in columns):
            yield Fit({"text": texts[0], "label": None}, POSSIBLE)
        elif len(texts) == 2:
            yield Fit({"prompt": texts[0], "completion": texts[1]}, POSSIBLE)

    def proposed_data(self, keys: Mapping[str, Any]) -> Iterator[str]:
        """Yield the line that makes turns of a chat of prompts and completions."""
        if "prompt" in keys and "chat" not in keys:
            yield "chat: true  # prompt and completion are turns of the user and the assistant"

    def proposed_models(self, keys: Mapping[str, Any]) -> Iterator[str]:
        """Yield a small chat model, and some of its layers."""
        yield "teacher: smollm2-135m  # kdcli list teacher; your own: teacher.path: FOLDER_OR_HUB_ID"
        if "label" not in keys:
            yield "teacher.tune: true  # on the answers first"
        yield "student: layers  # some of the teacher's layers"
        yield "student.num_hidden_layers: 6"
        yield "loss: forward_kl"
        yield "trainer: {batch_size: 8, learning_rate: 1.0e-3}"
        yield "hardware: laptop  # GGUF files for llama.cpp; kdcli list hardware"

    def check(self, cfg: Dataset) -> None:
        """Check that the data set has one kind of rows, and no keys for labels."""
        if cfg.prompt and cfg.messages:
            raise ValueError("prompt and messages: name the columns of one of them")
        require_text_alone("causal_lm", cfg)
        if cfg.prompt or cfg.messages or cfg.format == "conversations":
            return
        if cfg.truncation:
            raise ValueError(
                f"truncation = {cfg.truncation}: plain text is packed into rows of max_length tokens; leave it out"
            )
        for key in ("context", "thoughts"):
            if getattr(cfg, key) != type(cfg).model_fields[key].default:
                raise ValueError(f"{key}: plain text has no turns; leave it out, or name dataset.messages")


def require_text_alone(task: str, cfg: Dataset) -> None:
    """Refuse keys that hide labels where rows have none.

    Raises:
        ValueError
    """
    if cfg.labelled:
        raise ValueError(f"labelled: {task} has no labels to hide; use limit")
    if cfg.unlabelled:
        raise ValueError(f"unlabelled: all text is without labels in {task}; put it among the training rows")


SPEC = CausalLMSpec()

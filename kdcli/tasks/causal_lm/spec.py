"""Declares causal language modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdcli.config.tasks import FolderFormat, TaskSpec

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset


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
    writes = True
    max_epochs = 5.0
    quantizable = True
    refuses_short = True
    new_students = "smollm2-30m or smollm2-60m"

    def implied_by(self, cfg: Dataset) -> bool:
        """Return whether there are columns of prompts or conversations, or of texts without labels."""
        return bool(cfg.prompt or cfg.messages) or cfg.format in self.formats or cfg.label is None

    def usual_keys(self, tokenizer: Any) -> dict[str, Any]:
        """A prompt and a completion, which are turns if the tokenizer has a chat template."""
        return {"prompt": "prompt", "completion": "completion", "chat": bool(tokenizer.chat_template)}

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

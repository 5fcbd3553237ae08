"""Completes prompts and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from kdcli.errors import ConfigError, DataError, shown
from kdcli.prompts import tokenize_prompts
from kdcli.tasks.causal_lm.conversations import extra_of, is_conversation, read_turns
from kdcli.tasks.inference import Inference, Model, Prediction, Values
from kdcli.tasks.rows import require_text

NEW_TOKENS = 256
"""The maximum number of tokens of a completion by default."""


class CausalLMInference(Inference):
    """A prompt, or a conversation -> `completion`, generated greedily, and `complete`: whether it ended by itself.

    If a conversation ends with an answer, the answer is generated again. For a model of conversations a prompt is the first turn of the user.
    """

    writes = chats = True

    @property
    def fields(self) -> Mapping[str, str]:
        """`prompt`, or `messages` of a run on conversations."""
        if self.cfg.messages:
            return {"messages": self.cfg.messages}
        return {"prompt": self.cfg.prompt or (self.cfg.text if self.cfg.label is None else "prompt")}

    def check(self, values: Values, where: str) -> Values:
        """Require a text, or the turns of a conversation."""
        (value,) = values
        if not (isinstance(value, list) or is_conversation(value)):
            return (require_text(value, "the prompt", where),)
        if not self.task.chat:
            raise DataError(
                f"{where}: the prompt is a conversation ({shown(value, 80)}), and the model was trained on texts; give a text"
            )
        turns = read_turns(value, where)
        if not turns or turns[0]["role"] == "assistant":
            raise DataError(f"{where}: the conversation has no turn of the user to answer; add one")
        return (turns,)

    def row(self, value: Any) -> dict[str, Any]:
        """Return the row of a checked prompt or conversation, with an empty completion."""
        if not self.task.chat:
            return {"id": "", "prompt": self.schema.replaced(value), "completion": ""}
        turns = [{"role": "user", "content": value}] if isinstance(value, str) else list(value)
        if turns[-1]["role"] == "assistant":
            turns.pop()
        turns = [{**turn, "content": self.schema.replaced(turn["content"])} for turn in turns]
        return {"id": "", "messages": [*turns, {"role": "assistant", "content": ""}]}

    def answer_length(self, model: Model, max_new_tokens: int | None) -> int:
        """Return the maximum length of a completion, in tokens.

        Args:
            max_new_tokens: the one that is asked for; None: `NEW_TOKENS`, or half of the context of a model that has a short one.

        Raises:
            ConfigError: it leaves no room for a prompt.
        """
        if max_new_tokens is not None and max_new_tokens >= model.context:
            raise ConfigError(
                f"--max-new-tokens {max_new_tokens}: the model is given {model.context} tokens, and the prompt needs some of them; lower it"
            )
        return max_new_tokens or min(NEW_TOKENS, model.context // 2)

    def prompt_ids(
        self, value: str | Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        """Return the token ids of a prompt, or of a conversation to answer, as in training."""
        ((text,),) = self.task.inputs(datasets.Dataset.from_list([self.row(value)]), tokenizer)
        return tokenize_prompts(tokenizer, [text], special=not self.task.chat)[0]

    def predict(
        self, inputs: Sequence[Values], model: Model, max_new_tokens: int | None = None
    ) -> list[Prediction]:
        """Return the completion of each prompt."""
        rows = datasets.Dataset.from_list([self.row(value) for (value,) in inputs])
        replies = model.replies(rows, self.answer_length(model, max_new_tokens))
        return [
            self.echo(values) | {"completion": reply.text, "complete": reply.complete}
            for values, reply in zip(inputs, replies, strict=True)
        ]

    def echo(self, values: Values) -> Prediction:
        """Return the prompt, or the turns with their roles and contents."""
        (value,) = values
        if isinstance(value, str):
            return {"prompt": value}
        return {
            "messages": [{key: turn[key] for key in ("role", "content")} | extra_of(turn) for turn in value]
        }

    def cells(self, prediction: Prediction) -> dict[str, str]:
        """Return the completion."""
        return {"completion": prediction["completion"]}

    def details(self, prediction: Prediction) -> tuple[list[str], list[list[str]]]:
        """Return the completion."""
        return [], [[prediction["completion"]]]

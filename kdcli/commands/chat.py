"""Implements `kdcli chat`, a conversation with a language model, token by token, on request with the answers of its teacher as well."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli import console
from kdcli.errors import ConfigError, ExitCode
from kdcli.generation import continued
from kdcli.inference.predictor import Predictor
from kdcli.tasks.inference import Model

logger = logging.getLogger(__name__)
HALF = "\ufffd"
"""The character that replaces an incomplete character in a decoded text."""
RESET, EXIT = "/reset", ("/exit", "/quit")
Turn = dict[str, str]


@dataclass(frozen=True)
class Sampling:
    """The settings by which answers are generated.

    Attributes:
        max_new_tokens: the maximum length of an answer; None: that of the model.
        temperature: 0: greedy; otherwise tokens are sampled from softmax(logits / temperature).
        seed: the seed of the first answer; each further answer has the next seed.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Conversation:
    """A conversation with a model, whose answers become a part of it.

    A model that was not trained on conversations continues each text by itself.

    Attributes:
        models: the model of the conversation, and others that also answer, by the name before an answer.
        system: the instruction before the first turn; empty: none.
        turns: the turns so far.
    """

    predictor: Predictor
    models: Mapping[str, Model]
    system: str
    sampling: Sampling
    turns: list[Turn] = field(default_factory=list)
    answered: int = 0

    def __post_init__(self) -> None:
        if self.system and not self.is_chat:
            raise ConfigError(
                f"--system: {self.predictor.subject.name} was not trained on conversations; put the instruction into the prompt"
            )

    @property
    def is_chat(self) -> bool:
        """Whether the model was trained on conversations."""
        return self.predictor.inference.task.chat

    def reset(self) -> None:
        """Forget all turns."""
        self.turns, self.answered = [], 0

    def answers(self, text: str, show: Callable[[str, str | None], object]) -> None:
        """Answer a text by each model.

        Args:
            show: called with the name of a model and a part of its answer, as soon as it is known; with None at its end.
        """
        self.turns.append({"role": "user", "content": text})
        (first, *_), answer = self.models, ""
        for name, model in self.models.items():
            written = self._answer(model, lambda part, name=name: show(name, part))  # type: ignore[misc]
            answer = written if name == first else answer
            show(name, None)
        self.turns.append({"role": "assistant", "content": answer})
        self.answered += 1

    def _answer(self, model: Model, show: Callable[[str], object]) -> str:
        inference: Any = self.predictor.inference
        count = inference.answer_length(model, self.sampling.max_new_tokens)
        prompt = self._prompt(inference, model, model.context - count)
        text = Text(model.tokenizer, prompt, strip=self.is_chat)
        seed = self.sampling.seed + self.answered
        tokens = model.complete(
            prompt, count, self.sampling.temperature, seed, lambda token: show(text.add(token))
        )
        show(text.end(tokens))
        return text.shown

    def _prompt(self, inference: Any, model: Model, max_tokens: int) -> list[int]:
        """Return the token ids of the conversation, without its first turns if they leave no room for the answer."""
        turns = list(self.turns) if self.is_chat else self.turns[-1:]
        while True:
            system = [{"role": "system", "content": self.system}] if self.system else []
            value = [*system, *turns] if self.is_chat else turns[-1]["content"]
            ids: list[int] = inference.prompt_ids(value, model.tokenizer)
            if len(ids) <= max_tokens or len(turns) < 2:
                break
            turns = turns[2:]
        if len(turns) < len(self.turns) and self.is_chat:
            logger.warning(
                "the first %d turns are left out: the model reads %d tokens",
                len(self.turns) - len(turns),
                max_tokens,
            )
        if len(ids) > max_tokens:
            logger.warning(
                "the text has %d tokens, of which the model reads the last %d; shorten it",
                len(ids),
                max_tokens,
            )
        return ids[-max_tokens:]


class Text:
    """The text of tokens that are generated one by one.

    Args:
        prompt: the token ids before them.
        strip: whether white space at its beginning is removed.

    Attributes:
        shown: the text so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: list[int], strip: bool):
        self.tokenizer, self.prompt, self.strip = tokenizer, prompt, strip
        self.tokens: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """Add a token; return the new complete characters of the text."""
        self.tokens.append(token)
        return self._further(self._text().rstrip(HALF))

    def end(self, tokens: list[int]) -> str:
        """Return the rest of the text, whose tokens are all known."""
        self.tokens = tokens
        return self._further(self._text())

    def _text(self) -> str:
        (text,) = continued(self.tokenizer, [self.prompt], [self.tokens])
        return text.lstrip() if self.strip else text

    def _further(self, text: str) -> str:
        part = text[len(self.shown) :] if text.startswith(self.shown) else ""
        self.shown += part
        return part


def chat(predictor: Predictor, teacher: Model | None, system: str, sampling: Sampling) -> int:
    """Talk until the input ends, or until /exit.

    Args:
        teacher: also answers; None: the model answers alone.
    """
    models = {"student" if predictor.subject.run else "model": predictor.model}
    if teacher is not None:
        models["teacher"] = teacher
    conversation = Conversation(predictor, models, system, sampling)
    if not conversation.is_chat:
        logger.info("the model was not trained on conversations: it continues each text by itself")
    begun: str | None = None

    def show(name: str, part: str | None) -> None:
        nonlocal begun
        if len(models) > 1 and begun != name:
            console.write(f"{name}: ")
        begun = name if part is not None else None
        console.write("\n" if part is None else part)

    for line in _lines():
        if line in EXIT:
            break
        if line == RESET:
            conversation.reset()
        elif line:
            conversation.answers(line, show)
    return ExitCode.DONE


def _lines() -> Iterator[str]:
    """Return what is typed, or the lines of stdin."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    logger.info("%s forgets the conversation; %s or Ctrl-D ends it", RESET, EXIT[0])
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            console.write("\n")
            return

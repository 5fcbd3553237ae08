"""Reads the completions of a model: the answer without its thoughts, and the parts of an answer that state a result."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdcli.errors import TeacherError, shown

LEAST_TEXTS, SURE = 20, 200
"""The number of texts below which no share of unparsable answers stops a run, and the number from which the share alone decides."""
LONGEST, HEADS = 20_000, 3
"""The maximum length of an answer that states a label, in characters, and the maximum number of heads such as `Label:` before it."""
EXAMPLES = 3
"""The number of unparsable answers that a message shows."""
CUT = ("length", "max_tokens", "model_length", "max_output_tokens")
"""The finish reasons of completions that reached the limit of their tokens."""
_TAGS = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis|seed:think"
_OPENS = re.compile(
    rf"\s*(?:<(?P<tag>{_TAGS})>|(?P<bracket>\[THINK\])|(?P<kimi>◁think▷)|(?P<cohere><\|START_THINKING\|>)"
    r"|(?P<gemma><\|channel>\s*thought)|(?P<inner><\|inner_prefix\|>))",
    re.IGNORECASE,
)
_CLOSES = {
    "bracket": "[/THINK]",
    "kimi": "◁/think▷",
    "cohere": "<|END_THINKING|>",
    "gemma": "<channel|>",
    "inner": "<|inner_suffix|>",
}
_ONLY_CLOSED = re.compile(
    r"(?:(?!<think|<seed:think|\[THINK|◁think|<\|START_THINKING).)*?(?:</(?:think|thinking|seed:think)>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>)",
    re.IGNORECASE | re.DOTALL,
)
"""Thoughts whose opening tag is a part of the prompt."""
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|$)", re.DOTALL
)
"""A message of gpt-oss (https://cookbook.openai.com/articles/openai-harmony) with its channel."""
_PLAIN_CHANNELS = re.compile(r"\s*analysis.*?assistant\s*final", re.DOTALL)
"""The same without its special tokens, which some hosts leave out of the text."""
_SPECIAL = re.compile(
    r"<\|[\w▁ -]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|<(?:eos|eot|bos|pad|end_of_turn|start_of_turn)>|\[/?INST\]"
)

_END = r"(?:<\|[\w▁ -]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</s>|<(?:eos|eot|end_of_turn)>)"
_ENDS = re.compile(rf"(?:\s*{_END})+\s*\Z")
_NEXT_TURN = re.compile(
    rf"{_END}\s*(?:<\|(?:im_start|start_header_id|start|user|assistant|system)\|>|<start_of_turn>|<｜(?:User|Assistant)｜>|\[INST\]).*",
    re.DOTALL,
)
_OWN_TURN = re.compile(
    r"\s*(?:<\|im_start\|>\s*assistant\s*\n|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<start_of_turn>\s*model\s*\n|<\|assistant\|>"
    r"|<｜Assistant｜>)"
)


class Written(NamedTuple):
    """A completion without its thoughts."""

    text: str | None
    """The answer; None: there is none."""
    problem: str = ""
    """Why there is none."""
    cut: bool = False
    """It was truncated at the limit of its tokens, after its thoughts."""


def is_cut(choice: Mapping[str, Any]) -> bool:
    """Return whether a completion reached the limit of its tokens."""
    return str(choice["finish_reason"]).casefold() in CUT


def without_thoughts(choice: Mapping[str, Any]) -> Written:
    """Return the answer in a completion (`Answer.choices`): its text without the thoughts before it."""
    raw, cut = choice["text"], is_cut(choice)
    ended = f"finish_reason={choice['finish_reason']}"
    text = _after_thoughts(raw)
    if text is None:
        where = "is cut inside its thoughts" if cut else "has thoughts that do not end"
        return Written(None, f"the answer {where} ({ended}): {raw}")
    if text.strip():
        return Written(text, cut=cut)
    thoughts = choice.get("reasoning", "")
    if calls := choice.get("calls"):
        written = ", ".join(f"{call['name']}({call['arguments']})" for call in calls)
        return Written(None, f"the answer is a call of a tool, without text ({ended}): {written}")
    if thoughts and cut:
        return Written(None, f"the answer is cut inside its thoughts ({ended}): {thoughts}")
    if thoughts or raw.strip():
        return Written(None, f"there are thoughts and no answer ({ended}): {thoughts or raw}")
    return Written(None, f"the answer is empty ({ended})")


def described(choice: Mapping[str, Any]) -> str:
    """Describe a completion without a label, in words or by its own text."""
    written = without_thoughts(choice)
    if written.text is None:
        return written.problem
    return f"{written.text} (cut, finish_reason={choice['finish_reason']})" if written.cut else written.text


class UnparsableShare:
    """The share of answers without a label, or with thoughts alone, which stops a run early.

    A few texts prove little: below `SURE` of them, the share has to exceed the limit by two standard deviations.

    Args:
        teacher: its name, for the message.
        most: the largest share.
    """

    def __init__(self, teacher: str, most: float):
        self.teacher, self.most = teacher, most
        self._texts = 0
        self._unparsable = self._cut = 0.0
        self._examples: list[str] = []

    def count(
        self, answers: int, unparsable: Sequence[str], remedy: Callable[[bool], str], cut: int = 0
    ) -> None:
        """Count the answers to one text.

        Args:
            unparsable: descriptions of the answers that cannot be read.
            remedy: is called with whether most of them are truncated before they begin.
            cut: how many of them are truncated before they begin.

        Raises:
            TeacherError: the share is too large.
        """
        self._texts += 1
        self._unparsable += len(unparsable) / answers
        self._cut += cut / answers
        if unparsable and len(self._examples) < EXAMPLES and unparsable[0] not in self._examples:
            self._examples.append(unparsable[0])
        deviation = math.sqrt(self.most * (1 - self.most) * self._texts)
        most = self.most * self._texts + (2 * deviation if self._texts < SURE else 0)
        if self._texts >= LEAST_TEXTS and self._unparsable > most:
            examples = "".join(f"\n  {shown(example, 200)}" for example in self._examples)
            raise TeacherError(
                f"{self.teacher}: {self._unparsable / self._texts:.0%} of the answers to {self._texts} texts are unparsable, for example:"
                f"{examples}\n{remedy(2 * self._cut > self._unparsable)}; or raise teacher.max_unparsable={self.most:g}, and such answers "
                "are dropped. The answers so far are kept"
            )


def _after_thoughts(text: str) -> str | None:
    """Return the text behind the thoughts at its beginning; None: they do not end."""
    if "<|channel|>" in text:
        messages = _CHANNEL.findall(text)
        final = [content for channel, content in messages if channel == "final"]
        return final[-1] if final else None
    if plain := _PLAIN_CHANNELS.match(text):
        return text[plain.end() :]
    while opening := _OPENS.match(text):
        kind = opening.lastgroup or ""
        closing = _CLOSES.get(kind, f"</{opening['tag']}>")
        end = text.casefold().find(closing.casefold(), opening.end())
        if end < 0:
            return None
        text = text[end + len(closing) :]
    if only_closed := _ONLY_CLOSED.match(text):
        return text[only_closed.end() :]
    return text


def plain_text(text: str) -> str:
    """Return a text in compatibility form, without the special tokens that some hosts leave in it."""
    return unicodedata.normalize("NFKC", _SPECIAL.sub(" ", text)).strip()


def without_template(text: str) -> str:
    """Return a written text without what some hosts leave in it of the chat template: the head of the turn, its end, and further turns.

    Special tokens elsewhere are a part of the text. So is `</s>` where it closes HTML.
    """
    text = _NEXT_TURN.sub("", _OWN_TURN.sub("", text, count=1))
    end = _ENDS.search(text)
    is_html = end and "</s>" in end[0] and "<s>" in text
    return text if not end or is_html else text[: end.start()]


def before_next_text(text: str) -> tuple[str, bool]:
    """Return an answer without the further texts and labels that a model makes up, and whether there are any."""
    answer, *further = _NEXT_TEXT.split(text, maxsplit=1)
    return answer, bool(further)


_NOUNS = (
    "labels?|answers?|class|category|categories|classification|prediction|choice|option|letter|result|output|verdict|rating|tag|topic|intent"
    "|intention|sentiment|emotion|tone|stance|polarity|response"
)
_TEXTS = "text|review|message|sentence|tweet|comment|e-?mail|post|document|passage|input|statement|question|headline|article|title|utterance|query"
_RESULT_KEY = re.compile(rf"(?:\w+[ _-])?(?:{_NOUNS})(?:[ _-](?:name|id))?", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:not|no|non|never|neither|nor|none|cannot|without|\w+n['’]t|unable|sorry|refuse|decline|could|might|may|maybe|perhaps|possibly|either"
    r"|or|if|unless|except|but|however|although|instead|rather|than|wrong|incorrect|false|unlikely|hard|difficult|impossible|example|possible"
    r"|between|among|alternatives?|second|options|choices|candidates|pas|nicht|kein\w*|ni|nunca|não|нет|не)\b|[不没沒無无非]",
    re.IGNORECASE,
)
"""Words that make a sentence about a label a denial, a refusal, a guess or a list."""
_HEAD = re.compile(r"(?P<head>[^:：=→\n]{1,120}?)\s*(?:[:：=→]|->|=>)\s*(?P<value>\S.*)")
_NO_RESULT = re.compile(
    rf"(?:(?:first|second|the|this|original)\s+)*(?:{_TEXTS}|reason(?:ing|s)?|explanation|rationale|justification|confidence|note|summary|context)",
    re.IGNORECASE,
)
"""Heads of lines that are about the text, not about its label."""
_SENTENCE = re.compile(
    rf"""(?:(?:\w+|As\s+an\s+AI(?:\s+[\w-]+){{0,3}}|(?:Based\s+on|Given|From|According\s+to)(?:\s+[\w-]+){{1,4}})[,!]\s+)?(?:I\s+(?:think|believe)\s+(?:that\s+)?)?(?:
      (?:it|this|that|(?:this|the)\s+(?:{_TEXTS}))(?:\s+(?:is|was|would\s+be|should\s+be)|['’]s)(?:\s+(?:definitely|clearly|certainly|obviously))?
        (?:\s+(?:best\s+)?(?:labell?ed|classified|categori[sz]ed|tagged|rated|marked|considered)(?:\s+as)?)?
    | (?:it|this|that|(?:this|the)\s+(?:{_TEXTS}))\s+(?:belongs\s+to|falls\s+(?:under|into))(?:\s+the\s+(?:{_NOUNS})(?:\s+of)?)?
    | (?:it|(?:this|the)\s+(?:{_TEXTS}))\s+(?:expresses|conveys|has)(?=.*\s(?:{_NOUNS})\W*$)
    | (?:(?:the|my|its|this)\s+)?(?:[\w-]+\s+){{0,3}}?(?:{_NOUNS})(?:\s+(?:expressed|conveyed))?(?:\s+(?:of|for|to|in|by)\s+(?:[\w-]+\s+){{0,4}}?[\w-]+)?\s+(?:is|would\s+be|should\s+be)
    | I(?:['’]d|['’]ll|\s+would|\s+will)?\s+(?:say|answer|choose|pick|select|go\s+with
        |(?:label|classify|categori[sz]e|mark|tag|rate)\s+(?:it|(?:this|the)(?:\s+\w+)?)\s+as)
    )\s+(?:(?:the\s+label|the|an?)\s+)?(?P<value>\S.*)""",
    re.IGNORECASE | re.VERBOSE,
)
"""A sentence that says nothing but the label."""
_WITH_NOUN = re.compile(rf"(?P<value>.+?)\s+(?!question)(?:{_NOUNS}|{_TEXTS})\W*", re.IGNORECASE)
"""A label before a noun, as in `a positive review` and `the World category`. `A good question` is a phrase about the request."""
_SCORED = re.compile(
    r"(?P<value>[^\W\d].*?)[\s,;:|=(]{1,3}(?:(?:[5-9]\d(?:[.,]\d+)?|100)\s*%|0?[.,][5-9]\d*|1[.,]0+)\W*"
)
"""A label and its probability, which is at least one half: `spam: 10%` says that a text is no spam."""
_EXPLAINED = re.compile(
    r"(?P<value>.+?)(?:[.!]\s+|\s+[-–—]+\s+|\s*\(|;\s+|,\s+(?:because|since|as)\b)(?P<why>.+)", re.IGNORECASE
)
_FENCE = re.compile(r"```[\w-]*\s*(.*?)```", re.DOTALL)
_MARKED = re.compile(
    r"\\boxed\{(?:\\text\{)?([^{}]+)\}|<(answer|label|output|response|final_answer|result|class|category)>(.*?)</\2>",
    re.IGNORECASE | re.DOTALL,
)
_FIELD = re.compile(
    rf"""['"]{_RESULT_KEY.pattern}['"]\s*:\s*(?:"([^"]*)"|'([^']*)'|([\w.]+))""", re.IGNORECASE
)
"""A result in JSON that is cut, or that Python wrote."""
_NEXT_TEXT = re.compile(r"\n\s*(?:Second )?Text:")
"""The next question of the packaged prompt, which some models go on with."""
_MARKUP = re.compile(r"[*`]+|^\s*(?:#+|>|[-•]|\(?(?:\d{1,2}|[A-Za-z])[.)])\s+")


class Stated(NamedTuple):
    """The result that a part of an answer states."""

    value: str
    why: str = ""
    """The explanation in the same sentence or after it."""


def stated(text: str, cut: bool = False) -> Iterator[Stated]:
    """Yield the values that an answer states: in JSON, a code fence or tags; a line by itself (the first or the last one); `Label: x`; a sentence
    that says nothing but the label (`The label is x.`, `It is an x review.`); a value with its probability (`x: 90%`); or a value that an explanation
    follows (`x - because …`).

    A sentence with a negation, a refusal or a doubt before the value states none.

    Args:
        cut: the text was truncated, and its last line is not complete.
    """
    if len(text) > LONGEST:
        return
    for fenced in _FENCE.findall(text):
        yield Stated(fenced)
    for boxed, _, tagged in _MARKED.findall(text):
        yield Stated(boxed or tagged)
    yield from map(Stated, _json_values(text))
    folded = (" ".join(line.split()) for line in text.splitlines())  # patterns take long for runs of spaces
    lines = [line for line in (_MARKUP.sub("", line).strip() for line in folded) if line]
    if cut and len(lines) > 1:
        lines.pop()
        cut = False
    for line in lines:
        yield from _stated_in_line(line, explained=line is lines[0], cut=cut)
    yield from map(Stated, [*lines[:1], *lines[-1:]])
    if len(lines) > 1 and (head := _HEAD.fullmatch(" ".join(lines))):
        yield from _after_head(head)


def _stated_in_line(line: str, explained: bool, cut: bool, heads: int = HEADS) -> Iterator[Stated]:
    if heads and (head := _HEAD.fullmatch(line)):
        yield from _after_head(head, heads - 1)
    sentence = None if cut else _SENTENCE.fullmatch(line)
    if sentence and not _DOUBT.search(line[: sentence.start("value")]):
        yield Stated(sentence["value"])
        if with_noun := _WITH_NOUN.fullmatch(sentence["value"]):
            yield Stated(with_noun["value"])
    if not cut and (with_noun := _WITH_NOUN.fullmatch(line)) and not denies(with_noun["value"]):
        yield Stated(with_noun["value"])
    if scored := _SCORED.fullmatch(line):
        yield Stated(scored["value"])
    if explained and (parts := _EXPLAINED.fullmatch(line)):
        yield Stated(parts["value"], parts["why"])


def _after_head(head: re.Match[str], heads: int = HEADS - 1) -> Iterator[Stated]:
    """`Label: x`, also with an explanation, or behind a sentence.

    Args:
        heads: how many further ones may follow, as in `Answer: Label: x`.
    """
    name = re.split(r"[.!?]\s+", head["head"])[-1]
    if not _DOUBT.search(name) and not _NO_RESULT.fullmatch(name):
        yield Stated(head["value"])
        yield from _stated_in_line(head["value"], explained=True, cut=True, heads=heads)


def denies(text: str) -> bool:
    """Return whether a text has a word that makes a sentence about a label a denial, a refusal or a doubt."""
    return bool(_DOUBT.search(text))


def _json_values(text: str) -> Iterator[str]:
    """Yield the results in the JSON that a text contains: those of keys such as `label`, or the only one."""
    text = text.strip()
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return
    part = text[min(starts) :]
    try:
        value, _ = json.JSONDecoder().raw_decode(part)
        values = list(_results(value))
    except (ValueError, RecursionError):
        values = ["".join(groups) for groups in _FIELD.findall(part)]
    yield from values


def _chosen(values: Mapping[str, Any]) -> list[str]:
    """Return the only true key of an object of verdicts."""
    verdicts = list(values.values())
    is_choice = all(isinstance(each, bool) for each in verdicts) and sum(verdicts) == 1
    return [key for key in values if values[key]] if is_choice else []


def _results(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        results = [inner for key, inner in value.items() if _RESULT_KEY.fullmatch(str(key))]
        for inner in results or (value.values() if len(value) == 1 else _chosen(value)):
            yield from _results(inner)
    elif isinstance(value, list):
        if len(value) == 1:
            yield from _results(value[0])
    elif value is not None:
        yield str(value)

"""Adapts requests to the parameters that an endpoint takes: those that it refuses are renamed, replaced or removed."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from kdcli.errors import ConfigError, TeacherError
from kdcli.files import read_json, write_json
from kdcli.teachers.remote.client import Rejected

logger = logging.getLogger(__name__)
LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
"""The two names of the limit of a completion. Some models refuse the old name, and some hosts do not know the new one."""
OPTIONAL = ("temperature", "seed", "response_format")
"""Parameters that a request may do without."""
REFUSABLE = (*LIMITS, *OPTIONAL, "logprobs", "top_logprobs")
"""Parameters that a rejection may name."""
FEW_LOGPROBS = 5
"""The number of likeliest tokens that most hosts return at least."""
_UNKNOWN = re.compile(
    r"n.t support|not (?:be )?(?:support|permit|allow|recogni|expect)|unsupported|unrecogni[sz]ed|unknown|unexpected|extra|forbidden|deprecated"
    r"|cannot find|no such|invalid (?:parameter|argument|field)|instead",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(r"context|too long|too large|exceed", re.IGNORECASE)
"""The words of errors about the length of one prompt, which name max_tokens as well."""
_FEW_TOKENS = re.compile(
    r"max_(?:completion_|output_|new_)?tokens.*(?:limit was reached|higher|larger|too (?:small|low)|at least|minimum|greater|>)|output limit was reached",
    re.IGNORECASE | re.DOTALL,
)
"""The words of errors about a limit of tokens that is too small."""
_SYSTEM = re.compile(
    r"\b(?:system|developer)\W+(?:role|message|prompt|instruction)s?\b.*\b(?:not|n.t|un)\s*(?:support|enabl|allow|accept|permit)"
    r"|(?:not|n.t|un)\s*(?:support|allow|accept|permit)\w*.*\b(?:system|developer)\W+(?:role|message|prompt|instruction)|roles? must alternate",
    re.IGNORECASE | re.DOTALL,
)
"""The words of errors about conversations that a model's template refuses."""
_STREAMS = re.compile(
    r"only supports? (?:the )?(?:stream|['\"`]stream)|(?:enable|set|requires?) (?:the )?['\"`]?stream|stream(?:ing)?['\"`]? (?:mode )?(?:must|is required|has to)",
    re.IGNORECASE,
)
"""The words of errors about models that answer in streams alone."""
_SEVERAL = re.compile(
    r"['\"`]n['\"`]|(?<![\w'])n\s*(?:=|>|<|must|should|has to|is not|parameter)|candidate.?count|best_of"
    r"|(?:only|one) (?:one |a single )?(?:completion|choice)|multiple (?:completions|choices|candidates)",
    re.IGNORECASE,
)
_FORMAT = re.compile(
    r"json.?schema|structured.?output|response.?format|grammar|guided|json mode|generate json|json_validate",
    re.IGNORECASE,
)


_UNROUTED = re.compile(
    r"\bno (?:allowed |available )?(?:endpoints?|providers?|deployments?|models?)\b.*\b(?:requested param|support)",
    re.IGNORECASE,
)
"""The words with which routers say, with status 404, that none of their hosts takes some parameter, which they do not name."""
UNACCEPTED = (400, 413, 422, 501)


class SingleAnswerError(TeacherError):
    """The endpoint refuses `n`."""


@dataclass(frozen=True)
class Change:
    """A parameter that is removed from requests, or sent in another form.

    Attributes:
        name: the new name of the parameter; None: it is removed, or keeps its name with the new value.
        value: the new value; None: the parameter is removed, or keeps its value under the new name.
    """

    parameter: str
    name: str | None = None
    value: Any = None

    def __str__(self) -> str:
        if self.name:
            return f"{self.name} is sent instead"
        return f"{self.value} is sent instead" if self.value is not None else "requests are sent without it"

    def applied(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a request with the change."""
        if self.parameter not in body:
            return body
        changed = {key: value for key, value in body.items() if key != self.parameter}
        if self.name:
            changed[self.name] = body[self.parameter]
        elif self.value is not None:
            changed[self.parameter] = self.value
        return changed


class _Recorded(TypedDict):
    parameter: str
    name: str | None
    value: Any


class Parameters:
    """Tracks which parameters one endpoint takes, as far as its rejections show. A change is kept once a request was answered with it, and recorded: a later
    run does not send what was refused.

    Args:
        teacher: the name of the teacher, for messages.
        given: the parameters that the user chose, which are never removed.
        path: the file of the recorded changes; None: they are not recorded.
    """

    def __init__(self, teacher: str, given: Collection[str] = (), path: Path | None = None):
        self.teacher, self._given, self._path = teacher, given, path
        self._accepted = self._recorded()
        self._takes_format = False
        self._lock = threading.Lock()
        for change in self._accepted:
            logger.info(
                "%s did not take %s in an earlier run: %s (delete %s to send it again)",
                teacher, change.parameter, change, path,
            )  # fmt: skip

    def applied(self, body: dict[str, Any], changes: Sequence[Change] = ()) -> dict[str, Any]:
        """Return a request as the endpoint takes it.

        Args:
            changes: further changes of this request.
        """
        for change in [*self._accepted, *changes]:
            body = change.applied(body)
        return body

    def change_after(self, body: dict[str, Any], rejected: Rejected) -> Change | None:
        """Return the change with which a rejected request may be accepted; None: there is none.

        Args:
            body: the request as it was sent.

        Raises:
            TeacherError: the endpoint refuses a parameter that the labels need, and the message has the remedy.
        """
        for parameter in _named(body, rejected):
            if parameter == "n":
                raise SingleAnswerError(
                    f"{self.teacher} gives one answer per request ({rejected}); give teacher.n_per_request=1"
                )
            if parameter in LIMITS:
                if _UNKNOWN.search(rejected.text) and not _TOO_LONG.search(rejected.text):
                    return Change(parameter, name=LIMITS[parameter])
            elif parameter in ("logprobs", "top_logprobs"):
                if re.search(r"\d", rejected.text) and (body.get("top_logprobs") or 0) > FEW_LOGPROBS:
                    return Change("top_logprobs", value=FEW_LOGPROBS)
                raise TeacherError(
                    f"{self.teacher} gives no log-probabilities ({rejected}); give teacher.soft_labels=samples (the shares of several "
                    "answers), or one_hot"
                )
            elif parameter not in self._given:
                return Change(parameter)
        # many hosts refuse a schema without naming the parameter
        if "response_format" in body and "response_format" not in self._given and not self._takes_format:
            return Change("response_format")
        return None

    def accepted(self, sent: dict[str, Any], changes: Sequence[Change]) -> None:
        """Note that a request was answered; its changes are those of all further requests."""
        self._takes_format = self._takes_format or "response_format" in sent
        for change in changes:
            with self._lock:
                if change in self._accepted or (change.parameter == "response_format" and self._takes_format):
                    continue
                self._accepted.append(change)
                if self._path is not None:
                    write_json(self._path, [*map(asdict, self._accepted)])
            logger.warning("%s does not take %s as it was sent: %s", self.teacher, change.parameter, change)

    def _recorded(self) -> list[Change]:
        """Return the changes of earlier runs, without those that leave out what the user chose. A damaged record is named in a warning."""
        if self._path is None or not self._path.exists():
            return []
        try:
            recorded = read_json(self._path, list[_Recorded], "it is made again")
        except ConfigError as error:
            logger.warning("%s", error.message)
            return []
        changes = [Change(each["parameter"], each["name"], each["value"]) for each in recorded]
        return [
            change
            for change in changes
            if change.parameter in REFUSABLE
            and (change.name or change.value is not None or change.parameter not in self._given)
        ]


def is_rejection(status: int, text: str) -> bool:
    """Return whether an error is about one request, which may be accepted with other parameters. Some servers report such an error as an internal one, and
    routers as a missing endpoint."""
    if status == 404:
        return bool(_UNROUTED.search(text))
    return status in UNACCEPTED or (status >= 500 and _is_about_parameter(text))


def _is_about_parameter(text: str) -> bool:
    names = "|".join((*LIMITS, *OPTIONAL, "logprobs"))
    return bool(_UNKNOWN.search(text) and re.search(rf"(?<![a-z_])(?:{names})(?![a-z_])", text))


def remedy_for(reason: str) -> str:
    """Return what to do if each request is rejected for this reason; empty: its words are not known."""
    if _FEW_TOKENS.search(reason) and not _TOO_LONG.search(reason):
        return "give a larger limit: ++teacher.parameters.max_tokens=8192"
    if _STREAMS.search(reason):
        return "request a stream: ++teacher.parameters.stream=true"
    if _SYSTEM.search(reason):
        return (
            "remove the turns that the model does not accept from the data (of the system, for example), or write them into the first turn of the user; "
            "or serve a model whose template accepts them"
        )
    return ""


def _named(body: dict[str, Any], rejected: Rejected) -> list[str]:
    """Return the parameters of a request that a rejection names, the likeliest one first."""
    text = rejected.text
    places = {
        name: match.start()
        for name in REFUSABLE
        if name in body and (match := re.search(rf"(?<![a-z_]){name}(?![a-z_])", text))
    }
    if "n" in body and (match := _SEVERAL.search(text)):
        places["n"] = match.start()
    if "response_format" in body and (match := _FORMAT.search(text)):
        places.setdefault("response_format", match.start())
    if _UNROUTED.search(text):  # what the fewest hosts take comes first
        for place, name in enumerate(("response_format", "logprobs", "seed", "temperature"), len(text)):
            if name in body:
                places.setdefault(name, place)
    if rejected.parameter in body and rejected.parameter in (*REFUSABLE, "n"):
        places[rejected.parameter] = -1
    return sorted(places, key=places.__getitem__)

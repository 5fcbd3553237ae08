"""Defines the parts of report.json that show rows: what the student gets wrong, what the models generate, and what an endpoint answered. Never imports torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from kdcli.config.declarations import fields, find_class


class Part(BaseModel):
    """A mapping in a result. Keys that are not named here are kept: those of a task, and those of later versions."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the properties by the docstrings of the attributes. (`use_attribute_docstrings` reads them at each import of the class.)"""
        described = handler.resolve_ref_schema(schema := handler(core))
        if declared := find_class(f"{cls.__module__}.{cls.__name__}"):
            meanings = {each.name: each.meaning for each in fields(declared) if each.meaning}
            for (name, field), entry in zip(
                cls.model_fields.items(), described["properties"].values(), strict=True
            ):
                if meaning := meanings.get(field.alias or name):
                    entry["description"] = meaning
        return schema

    def as_json(self) -> dict[str, Any]:
        """Return the keys that were given, as plain data."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


Prediction = Annotated[list[str | float | None], Field(min_length=2, max_length=2)]
"""The prediction of a model, and its probability from 0 to 1."""


class MistakeRow(Part):
    """A test row with the predictions of the models."""

    text: str
    """The text of the row; its end is left out if it is long."""
    gold: str
    """The gold label, or the gold entities."""
    teacher: Prediction | None = None
    control: Prediction | None = None
    student: Prediction | None = None


class MistakeGroup(Part):
    """Test rows of one kind, of which the first ones are listed."""

    total: int
    """The number of all rows of this kind."""
    rows: list[MistakeRow]


class Mistakes(Part):
    """The test rows that show where the student fails. It is empty if the rows have no texts."""

    teacher_right: MistakeGroup | None = None
    """The student is wrong and the teacher is right. The student's most confident mistakes come first."""
    both_wrong: MistakeGroup | None = None
    """Student and teacher are wrong."""
    differ: MistakeGroup | None = None
    """Student and teacher assign different probabilities, right or wrong. The largest difference comes first."""


class TurnResult(Part):
    """A turn of a conversation."""

    role: str
    text: str


class GenerationResult(Part):
    """A test prompt with the completion of each model."""

    prompt: str
    """The prompt as text."""
    reference: str
    """The completion in the data set."""
    turns: list[TurnResult] = []
    """The prompt as turns, if the rows are conversations."""
    teacher: str | None = None
    control: str | None = None
    student: str | None = None


class TranslationResult(Part):
    """A test row with the text that each model generates."""

    source: str
    reference: str
    """The target in the data set."""
    score: float | None
    """The chrF of the student's text against the reference, from 0 to 100."""
    teacher: str | None = None
    control: str | None = None
    student: str | None = None


class Translations(Part):
    """The test rows that the student translates worst and best, by chrF."""

    worst: list[TranslationResult]
    """The lowest scores, beginning with the lowest one."""
    best: list[TranslationResult]
    """The highest scores, beginning with the highest one."""


class EndpointResult(Part):
    """The queries of a remote teacher, and what became of its answers. An unknown value is null."""

    base_url: str
    """The address up to and without /chat/completions."""
    model: str
    """The name of the model there."""
    parameters: dict[str, Any] = {}
    """The sampling parameters that were sent."""
    questions: int
    """Rows, or parts of them, that the run needed answers to."""
    from_ledger: int
    """Questions that were answered by the ledger, without a request."""
    requests: int
    """HTTP requests of all processes of the run, repeated ones included."""
    retries: int
    """Requests that were repeated."""
    prompt_tokens: int
    """Tokens of prompts, as the endpoint counts them."""
    completion_tokens: int
    """Tokens of completions, as the endpoint counts them."""
    uncounted: int = 0
    """Answers whose tokens the endpoint does not count."""
    cost: float | None
    """The cost of the requests by the prices in the config; null: no price is set, or there are answers whose tokens the endpoint does not count."""
    refused: int
    """Rows that the model refused to answer."""
    unparsable: int
    """Rows whose answers hold no label."""
    dropped: dict[str, int] = {}
    """Rows or completions that were dropped, by reason."""
    training_rows: int = Field(validation_alias=AliasChoices("training_rows", "learnt"))
    """Rows that the student is trained on."""
    shots: int
    """Examples in each prompt."""
    agreement: dict[str, Any]
    """The training rows with a gold label or a reference (`gold`), and the share that the teacher labels so (`accuracy`) or its ROUGE-L
    (`rouge_l`)."""
    answers: list[dict[str, Any]] = []
    """A sample of the answers, with their questions and, of a classifier, the probabilities of the labels and the gold label; `dropped`: why
    an answer was."""
    soft_labels: str | None = None
    """A classifier: how its probabilities were read: logprobs, samples or one_hot."""
    missing_mass: float | None = None
    """The mean probability on tokens that begin no label."""
    letters: dict[str, str] | None = Field(None, validation_alias=AliasChoices("letters", "asked_for"))
    """The labels by the letters that were requested in their stead; null: they were requested by their names."""
    smoothing: float | None = None
    """What smooths one-hot and sampled labels; null: they are log-probabilities."""

"""What the fields of requests may hold: types that refuse by name, and say what is expected."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from ridgeline.engine.prompts import MOST_LOGPROBS, MOST_SAMPLES, MOST_STOPS
from ridgeline.engine.sampling import MOST_BIAS, MOST_PENALTY, SEEDS


class Body(BaseModel):
    """A request's body: no field is unknown, none is converted from another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def expects(what: str) -> WrapValidator:
    """One message for a value of several possible types, where pydantic has one for each of them."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", "must be {what}", {"what": what}) from None

    return WrapValidator(check)


def _asks_nothing(*harmless: Any) -> Any:
    """The type of a field that is not supported: null passes, and the values that ask for nothing."""

    def check(value: Any) -> None:
        if value is not None and not any(type(value) is type(h) and value == h for h in harmless):
            raise PydanticCustomError("expected", "is not supported: leave it out")

    return Annotated[None, WithJsonSchema({"enum": [None, *harmless]}), BeforeValidator(check)]


Unsupported = _asks_nothing()
NotTrue = _asks_nothing(False)
NotFalse = _asks_nothing(True)
NoItems = _asks_nothing([])
NoTools = _asks_nothing("none", "auto")
AnyTier = _asks_nothing("auto", "default")
TextOnly = _asks_nothing(["text"])

Whole = Annotated[int, Field(ge=1)]
Samples = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
Logprobs = Annotated[int, Field(ge=0, le=MOST_LOGPROBS)]
Temperature = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

_Stop = Annotated[str, StringConstraints(min_length=1)]
Stops = Annotated[
    _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] | None,
    expects(f"text that is not empty, or a list of at most {MOST_STOPS} such"),
]
LogitBias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-MOST_BIAS, le=MOST_BIAS)],
    ]
    | None,
    expects(f"an object of token ids, each with a number from {-MOST_BIAS:g} to {MOST_BIAS:g}"),
]


def texts(most: int) -> Any:
    """One text or several, each as text or as token ids; at most so many."""
    ids = Annotated[list[TokenId], Field(min_length=1)]
    return Annotated[
        str
        | ids
        | Annotated[list[str], Field(min_length=1, max_length=most)]
        | Annotated[list[ids], Field(min_length=1, max_length=most)],
        expects(f"text, a list of token ids, or a list of at most {most} of either"),
    ]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: NotTrue = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchema(Body):
    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation. Text is all that it can hold; several parts become lines."""

    role: Annotated[Literal["system", "user", "assistant"], expects("system, user or assistant")]
    content: Annotated[str | list[TextPart], expects("text, or a list of parts of type text")]
    name: Unsupported = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: NoItems = None
    annotations: NoItems = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

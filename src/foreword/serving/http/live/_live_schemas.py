"""What the live page reads, as models: they make its part of the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foreword.serving.http._operations import Answer, Operation, Parameter


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LiveNode(_Plain):
    """A node of the prefix tree; parents come before their children."""

    id: int = Field(description="Its name while it is shown.")
    parent: int | None = Field(description="The node above; null at the top.")
    ground: int = Field(description="Its place in `grounds`.")
    start: int = Field(description="Position of its first token.")
    tokens: int
    computed: int = Field(description="Tokens whose keys and values are there.")
    readers: int = Field(description="Running answers that begin with it.")
    tenants: list[tuple[str, int]] | None = Field(None, description="Its readers by tenant.")
    pinned: bool
    pins: list[str] | None = Field(None, description="Pinned prefixes that end with it.")
    private: str | None = Field(
        None, description='Only this tenant ("" if unknown) can use what begins here.'
    )
    learned: list[str] | None = Field(
        None, description='Learned prefixes with positions in it, by name ("" if unloaded).'
    )
    more: int = Field(description="Children that are not shown.")
    text: str | None = Field(None, description="Its text, or the beginning of it.")
    tail: str | None = Field(None, description="The end of its text.")


class LiveGround(_Plain):
    """Requests share only within one ground."""

    kind: Literal["common", "private"]
    tenant: str


class LiveTenant(_Plain):
    """Answers of one tenant; without a name, of all that are not listed."""

    name: str | None
    running: int
    waiting: int
    tenants: int | None = None


class LiveCache(_Plain):
    """Bytes of keys and values, whole pages; tokens and nodes of the tree."""

    bytes: int
    in_use: int
    kept: int
    tokens: int
    nodes: int


class LiveHidden(_Plain):
    """What of the tree is not shown."""

    nodes: int
    tokens: int


class LiveState(_Plain):
    """A moment of the server. Sums count from its start, prompt tokens once they are admitted."""

    model: str
    state: Literal["starting", "ready", "draining"]
    requests: int
    prompt_tokens: int
    shared_tokens: int = Field(description="Prompt tokens that were in the tree already.")
    generated_tokens: int
    preemptions: int
    running: int
    waiting: int
    tenants: list[LiveTenant]
    cache: LiveCache
    grounds: list[LiveGround]
    nodes: list[LiveNode]
    hidden: LiveHidden
    dropped: list[int] = Field(description="Nodes that were dropped from the tree lately.")
    shows_text: bool


OPERATIONS = (
    Operation("get", "/", "The live page", "live", (Answer("A page.", media="text/html"),)),
    Operation(
        "get",
        "/live/{asset}",
        "A part of the live page",
        "live",
        (
            Answer("A style sheet.", media="text/css"),
            Answer("A script.", media="text/javascript"),
        ),
        errors=(404,),
        parameters=(Parameter("asset", "path", {"type": "string"}, required=True),),
    ),
    Operation(
        "get",
        "/live/state",
        "What the server is doing",
        "live",
        (Answer("A moment of the server, at most half a second old.", LiveState),),
    ),
    Operation(
        "get",
        "/live/events",
        "What the server is doing, as it goes on",
        "live",
        (
            Answer(
                "Server-sent events without an end; the data of each is a `LiveState`.",
                media="text/event-stream",
                schema={"type": "string"},
            ),
        ),
    ),
)
"""`/live/events` has no end: those who try out every operation have to leave it out."""

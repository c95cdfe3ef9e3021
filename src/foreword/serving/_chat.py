"""Chats as prompts: by the model's own template, or as plain lines where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foreword._errors import PromptError

if TYPE_CHECKING:
    from foreword.models import Tokenizer


def plain_chat(messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat as text, one `role: content` line per message, and `assistant:` at the end.

    Small models that were never taught a template still know how a dialogue goes on.
    """
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n".join([*lines, "assistant:"])


def render_chat(
    tokenizer: Tokenizer | None, messages: Sequence[Mapping[str, Any]]
) -> str | list[int]:
    """The prompt of a chat: token ids by the tokenizer's chat template, or `plain_chat`'s text.

    Raises:
        PromptError: the template refuses the messages (an unknown role, roles that must alternate).
    """
    inner = tokenizer.inner if tokenizer is not None else None
    if not getattr(inner, "chat_template", None):
        return plain_chat(messages)
    assert inner is not None
    try:
        text = inner.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates are programs and raise what they like
        raise PromptError(f"the model's chat template refuses these messages: {error}") from error
    # The template writes the special tokens itself.
    ids: list[int] = inner(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids

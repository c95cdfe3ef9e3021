"""Whether prompts and completions fit into a model's context, before anything is generated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foreword._errors import ParameterError
from foreword.training._demonstrations import Demonstrations
from foreword.training.runs._records import Prompts


def check_lengths(
    prompts: Prompts, tokenizer: Any, config: Any, max_tokens: int, model: str
) -> None:
    """Refuse a prompt that leaves no room for a completion.

    Args:
        tokenizer: of `foreword.models`, or None.
        config: of the model.

    Raises:
        ParameterError: a prompt is empty or too long, by its line; completions could not end; there
            is no tokenizer, or no chat template for messages.
    """
    if tokenizer is None:
        raise ParameterError(f"{model} has no tokenizer: prompts cannot be read with it")
    if tokenizer.eos_token_id is None:
        raise ParameterError(
            f"the tokenizer of {model} has no end token: completions could not end"
        )
    context = int(config.max_position_embeddings)
    if max_tokens >= context:
        raise ParameterError(
            f"max_tokens is {max_tokens}, and the context of {model} is {context}: give fewer"
        )
    for index, ids in enumerate(_encode(prompts, tokenizer.inner, model)):
        if not ids:
            raise ParameterError(f"{prompts.where(index)}: its prompt has no tokens")
        if len(ids) + max_tokens > context:
            raise ParameterError(
                f"{prompts.where(index)}: a prompt of {len(ids)} tokens and completions of "
                f"{max_tokens} are more than the context of {model}, {context}: shorten the "
                "prompt, or lower max_tokens"
            )


def check_demonstrations(
    prompts: Prompts, taken: Iterable[int], tokenizer: Any, config: Any
) -> None:
    """Refuse a demonstration that cannot begin a completion, among those a run takes.

    Args:
        taken: indices of records.
        tokenizer: of transformers.
        config: a `PrefixRFTConfig`.

    Raises:
        ParameterError: as `Demonstrations.read`, by its line.
    """
    reader = Demonstrations(
        tokenizer,
        keep=config.prefix_keep,
        stop_at=config.prefix_stop_at,
        longest=config.max_completion_length,
    )
    for index in sorted(set(taken)):
        where = f"the demonstration of {prompts.where(index)}"
        reader.read(prompts.records[index]["demonstration"], where)


def _encode(prompts: Prompts, tokenizer: Any, model: str) -> Any:
    texts = [record["prompt"] for record in prompts.records]
    if not prompts.chats:
        return tokenizer(texts, verbose=False)["input_ids"]
    if not tokenizer.chat_template:
        raise ParameterError(
            f"{prompts.path} has messages, and {model} has no chat template: give texts"
        )
    try:
        made = tokenizer.apply_chat_template(
            texts, add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except Exception as error:  # a template says no in any way it likes
        raise ParameterError(
            f"{prompts.path}: the chat template of {model} refuses its messages: {error}"
        ) from error
    return made["input_ids"]

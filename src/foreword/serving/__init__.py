"""Batch files in and out, in OpenAI's shapes."""

from foreword.serving._batch_answers import line_answer, line_prompt, line_refusal
from foreword.serving._batch_lines import (
    BatchLine,
    BatchSummary,
    parse_line,
    read_lines,
    summarise,
)
from foreword.serving._batch_run import (
    BatchDefaults,
    BatchReport,
    batch_identity,
    line_params,
    run_batch,
)
from foreword.serving._chat import plain_chat, render_chat
from foreword.serving._errors import BatchFileError, LineError
from foreword.serving._prefix_names import line_prefix, prefix_names
from foreword.serving._prefix_sources import (
    PrefixSource,
    check_sources,
    read_source,
    shipped,
    sources_in,
)
from foreword.serving._prompt_file import read_prompt_file, text_prompts
from foreword.serving._records import answer_record, chat_body, completion_body, error_record
from foreword.serving._result_file import ResultFile

__all__ = [
    "BatchDefaults",
    "BatchFileError",
    "BatchLine",
    "BatchReport",
    "BatchSummary",
    "LineError",
    "PrefixSource",
    "ResultFile",
    "answer_record",
    "batch_identity",
    "chat_body",
    "check_sources",
    "completion_body",
    "error_record",
    "line_answer",
    "line_params",
    "line_prefix",
    "line_prompt",
    "line_refusal",
    "parse_line",
    "plain_chat",
    "prefix_names",
    "read_lines",
    "read_prompt_file",
    "read_source",
    "render_chat",
    "run_batch",
    "shipped",
    "sources_in",
    "summarise",
    "text_prompts",
]

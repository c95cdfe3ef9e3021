"""Models, tokens, and bodies that are only large."""

from __future__ import annotations

import pytest

from foreword.models import Tokenizer
from foreword.serving._logprobs import token_bytes
from foreword.serving.http import ApiError
from foreword.serving.http._refusals import parse
from foreword.serving.http.api._schemas import ChatRequest, CompletionRequest
from foreword.serving.http.api._schemas_answers import Detokenized, ModelList, ModelObject, Tokens

TEXT = "Once upon a time, é😀."


def test_tokens_there_and_back(client, llm):
    told = client.post("/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    Tokens.model_validate(told)
    assert told["tokens"] == llm.encode(TEXT)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == llm.max_context
    back = client.post("/detokenize", json={"tokens": told["tokens"]}).json()
    Detokenized.model_validate(back)
    assert back == {"prompt": TEXT}


def test_a_chat_s_tokens_are_those_that_the_answer_counts(client):
    messages = [{"role": "user", "content": "Hello"}]
    told = client.post("/tokenize", json={"messages": messages}).json()
    answer = client.post(
        "/v1/chat/completions", json={"messages": messages, "max_tokens": 1}
    ).json()
    assert told["count"] == answer["usage"]["prompt_tokens"]


def test_a_text_longer_than_the_context_can_be_counted(client):
    told = client.post("/tokenize", json={"prompt": "word " * 10_000}).json()
    assert told["count"] > told["max_model_len"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/detokenize", {"tokens": [4096]}),
        ("/detokenize", {"tokens": [-1]}),
    ],
)
def test_what_has_no_tokens_or_text(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].partition("[")[0] in ("prompt", "tokens")


def test_the_model_is_listed_under_its_name(client, service):
    listed = client.get("/v1/models").json()
    ModelList.model_validate(listed)
    one = client.get(f"/v1/models/{service.model}").json()
    ModelObject.model_validate(one)
    assert listed["data"] == [one]
    assert client.get("/v1/models/some/other").json()["error"]["code"] == "model_not_found"


class Pieces:
    """A vocabulary in SentencePiece's way."""

    def convert_ids_to_tokens(self, token_id):
        return {1: "<0xE2>", 2: "<0xZZ>", 3: "\u2581a"}[token_id]


def test_bytes_of_tokens_in_sentencepiece_s_way():
    tokenizer = Tokenizer(Pieces())
    assert token_bytes(tokenizer, 1, "\ufffd") == b"\xe2"
    assert token_bytes(tokenizer, 2, "\ufffd") == "\ufffd".encode()
    assert token_bytes(tokenizer, 3, " a") == b" a"
    assert token_bytes(None, 1, "\ufffd") == "\ufffd".encode()


MANY = {f"k{i}": 1 for i in range(2000)}
MESSAGE = {"role": "user", "content": "a"}
PART = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (CompletionRequest, {"prompt": "a", **MANY}, "k0"),
        (CompletionRequest, {"prompt": "a", "logit_bias": MANY}, "logit_bias"),
        (CompletionRequest, {"prompt": "a", "metadata": MANY}, "metadata"),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": [1] * 2000}, "stop_token_ids"),
        (ChatRequest, {"messages": [{**MESSAGE, **MANY}]}, "messages[0].k0"),
        (ChatRequest, {"messages": [MESSAGE] * 2049}, "messages"),
        (ChatRequest, {"messages": [{**MESSAGE, "content": [PART] * 100}] * 100}, "messages"),
    ],
)
def test_what_is_only_large_is_refused_before_it_is_looked_through(model, body, param):
    with pytest.raises(ApiError) as caught:
        parse(model, body)
    assert caught.value.param == param
    assert len(str(caught.value)) < 200


def test_as_much_as_is_allowed_is_taken():
    parse(ChatRequest, {"messages": [MESSAGE] * 2048})
    parse(ChatRequest, {"messages": [{**MESSAGE, "content": [PART] * 64}] * 128})
    parse(CompletionRequest, {"prompt": ["a"] * 256, "logit_bias": {str(i): 0 for i in range(300)}})

"""The OpenAPI document, and whether it is true."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from foreword.serving.http import Caller, Keyring, ServerConfig, create_app
from foreword.serving.http._app import _routes
from foreword.serving.http._openapi import document, operations
from foreword.serving.http.guard import _access as access

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


def test_every_route_is_in_the_document_and_nothing_else_is():
    routes = {
        (method.lower(), route.path) for route in _routes() for method in route.methods - {"HEAD"}
    }
    assert {(one.method, one.path) for one in operations()} == routes
    assert len(operations()) == len(routes)


def test_the_document_is_a_document(service):
    said = document(service, operations())
    assert said["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(said)
    names = [one["operationId"] for path in said["paths"].values() for one in path.values()]
    assert max(Counter(names).values()) == 1
    assert "securitySchemes" not in said["components"]
    references = Counter(_references(said))
    assert references
    for reference in references:
        _, *path = reference.split("/")
        found = said
        for name in path:
            found = found[name]


class Guarded(Keyring):
    """Keys are set."""

    empty = False

    def identify(self, authorization):
        return Caller("t")


def test_with_keys_the_document_says_what_is_open(make_service):
    said = document(make_service(keys=Guarded()), operations())
    for path, methods in said["paths"].items():
        for one in methods.values():
            is_open = access.level_of(path) == "open"
            assert (one["security"] == []) is is_open
            assert ("401" in one["responses"]) is not is_open


def _references(value):
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def run_all(make_service, tmp_path, examples):
    """Call every operation with what fits its schema and with what does not."""
    config = ServerConfig(allowed_hosts=("*",), default_max_tokens=4, data_dir=tmp_path)
    app = create_app(make_service(config=config))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in access.ENDLESS:
            continue
        _call(operation, GenerationMode.POSITIVE, examples, seen)
        if operation.body:
            _call(operation, GenerationMode.NEGATIVE, examples, seen)
    return seen


def _call(operation, mode, examples, seen):
    name = f"{operation.method} {operation.path}"

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case):
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            _tame(case.body)
        response = case.call()
        seen[name, mode.value, response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        if mode is GenerationMode.NEGATIVE and case.media_type == "application/json":
            assert 400 <= response.status_code < 500, (name, case.body)  # a form's values are texts

    call()


def _tame(body):
    """Ask the model that is there for few tokens: what is looked at here is not the engine."""
    body.pop("model", None)
    body.pop("prefix", None)
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], 4)


def test_answers_are_as_the_document_says(make_service, tmp_path):
    seen = run_all(make_service, tmp_path, examples=8)
    called = {name for name, _, _ in seen}
    left_out = {*access.ENDLESS, "/openapi.json"}
    expected = {f"{one.method} {one.path}" for one in operations() if one.path not in left_out}
    assert called == {name.replace(":path}", "}") for name in expected}
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
        assert seen[f"post {path}", "positive", 200], "some of what fits is answered"


@pytest.mark.slow
def test_many_answers_are_as_the_document_says(make_service, tmp_path):
    run_all(make_service, tmp_path, examples=100)

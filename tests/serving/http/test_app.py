"""The application's edges: routes, errors, levels of access."""

from __future__ import annotations

from starlette.testclient import TestClient

from tests.serving.http.conftest import LiveServer


def test_health_in_process(client: TestClient) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {}
    assert answer.headers["x-request-id"].startswith("req_")


def test_health_of_a_real_server(live_server: LiveServer) -> None:
    import httpx

    answer = httpx.get(f"{live_server.url}/health")
    assert answer.status_code == 200
    assert "server" not in answer.headers


def test_unknown_route_in_openais_shape(client: TestClient) -> None:
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"

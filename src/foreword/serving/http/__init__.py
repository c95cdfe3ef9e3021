"""The HTTP server: OpenAI's API over one engine, its limits, its metrics and its live page."""

from foreword.serving.http._app import create_app
from foreword.serving.http._config import ServerConfig
from foreword.serving.http._errors import ApiError
from foreword.serving.http._server import Server, ServerError
from foreword.serving.http._service import Job, Service
from foreword.serving.http.guard._keys import Caller, Keyring, Limits, new_key

__all__ = [
    "ApiError",
    "Caller",
    "Job",
    "Keyring",
    "Limits",
    "Server",
    "ServerConfig",
    "ServerError",
    "Service",
    "create_app",
    "new_key",
]

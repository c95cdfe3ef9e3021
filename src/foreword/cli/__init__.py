"""The `foreword` command: one file per verb."""

from foreword.cli._app import main

__all__ = ["main"]

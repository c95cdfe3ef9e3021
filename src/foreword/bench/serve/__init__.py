"""Load on a server that speaks OpenAI's API: sent on time, checked, and counted from then.

Importing this room loads no aiohttp; running a load does.
"""

from foreword.bench.serve._drive import Run, drive
from foreword.bench.serve._load import run_load
from foreword.bench.serve._outcome import LoadError, Outcome
from foreword.bench.serve._plan import Plan, Planned, make_plan
from foreword.bench.serve._plots import draw_load
from foreword.bench.serve._settings import LoadSettings, Tenant
from foreword.bench.serve._summary import percentile, summarise_run
from foreword.bench.serve._tables import load_tables

__all__ = [
    "LoadError",
    "LoadSettings",
    "Outcome",
    "Plan",
    "Planned",
    "Run",
    "Tenant",
    "draw_load",
    "drive",
    "load_tables",
    "make_plan",
    "percentile",
    "run_load",
    "summarise_run",
]

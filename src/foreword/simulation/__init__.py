"""A discrete-event simulator over the engine's own cache and policies. No tensors.

`read_trace` reads what was asked, `simulate` runs it against a cost model's clock, `replay` asks
what a policy's order alone is worth to a cache.
"""

from foreword.simulation._cost import PRESETS, CostModel
from foreword.simulation._guest import Record
from foreword.simulation._ledger import jain_index
from foreword.simulation._mixes import KINDS, RequestKind, blend_mix, draw_mix
from foreword.simulation._optimum import optimum_seconds
from foreword.simulation._read import read_trace
from foreword.simulation._replay import replay
from foreword.simulation._result import (
    Percentiles,
    ReplayResult,
    SimulationResult,
    TenantResult,
)
from foreword.simulation._simulate import simulate
from foreword.simulation._tenants import (
    Client,
    Conversations,
    DocumentQuestions,
    Judge,
    SharedPrompt,
    TreesOfThought,
    synthesize,
)
from foreword.simulation._trace import Trace, TraceError, TraceRequest
from foreword.simulation._worker import WorkerConfig

__all__ = [
    "KINDS",
    "PRESETS",
    "Client",
    "Conversations",
    "CostModel",
    "DocumentQuestions",
    "Judge",
    "Percentiles",
    "Record",
    "ReplayResult",
    "RequestKind",
    "SharedPrompt",
    "SimulationResult",
    "TenantResult",
    "Trace",
    "TraceError",
    "TraceRequest",
    "TreesOfThought",
    "WorkerConfig",
    "blend_mix",
    "draw_mix",
    "jain_index",
    "optimum_seconds",
    "read_trace",
    "replay",
    "simulate",
    "synthesize",
]

"""Making segments: prefixes that are learned, loaded, joined or taken from text."""

from foreword.prefixes._concat import joint_offset
from foreword.prefixes._convert import CONVERTERS, convert
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._forward import generate_kwargs, positions_of, run
from foreword.prefixes._prefix import Prefix
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes._shape import PrefixShape

__all__ = [
    "CONVERTERS",
    "Prefix",
    "PrefixError",
    "PrefixRows",
    "PrefixShape",
    "convert",
    "generate_kwargs",
    "joint_offset",
    "positions_of",
    "run",
]

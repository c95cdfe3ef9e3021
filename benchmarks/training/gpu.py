"""Shared prefixes on a GPU, beside FlexAttention and repeated rows.

`python -m benchmarks.training.gpu`; needs a CUDA device with FlexAttention, whose way back no CPU
has. bfloat16, a model with the layers of Qwen2.5-0.5B, prefix x response x group. Not run on the
machine of the committed results, so that there is no result file of it yet.

- repeated: the rows as one rectangle through transformers' `sdpa`.
- flex: the packed row through FlexAttention, with a block mask of the same forest.
- ours: the packed row through `forest_attention`.

All three compute the log-probabilities of the responses and the gradients of their sum. The block
mask is made outside the timed part, once for all layers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.server._trial import Trial
from benchmarks.training._arms import SHAPES
from benchmarks.training._cells import Cell, grid
from foreword.training import Packed, attach, pack
from foreword.training._model import inputs


def model_with(attention: str) -> Any:
    """The model with random weights and this attention, on the device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(**SHAPES["qwen2.5-0.5b"], max_position_embeddings=32768)
    model: Any = Qwen2ForCausalLM(config).to("cuda", torch.bfloat16)
    if attention == "forest":
        attach(model)
    else:
        model.set_attn_implementation(attention)
    return model


def block_mask(packed: Packed) -> Any:
    """FlexAttention's mask of a forest: a query sees the run of tokens it lies behind, and its own
    up to itself."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = packed.forest.tokens
    end = torch.empty(tokens, dtype=torch.int32, device="cuda")
    for segment in packed.forest.segments:
        end[segment.start : segment.stop] = segment.end

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q < end[k])

    return create_block_mask(sees, None, None, tokens, tokens, device="cuda")


def score(logits: Tensor, following: Tensor) -> None:
    scores = torch.log_softmax(logits.float(), -1).gather(-1, following[..., None])
    (-scores.sum()).backward()


def arms_of(cell: Cell, models: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """What is timed, by name; whatever can be prepared is."""
    rows = cell.rows(SHAPES["qwen2.5-0.5b"]["vocab_size"])
    ids = torch.tensor(rows, device="cuda")
    packed = pack(rows)
    kept = [place for i in range(len(rows)) for place in packed.places(i)[cell.prefix - 1 :]]
    wanted = torch.tensor(kept, device="cuda")
    following = torch.tensor(packed.following, device="cuda")[wanted]
    call = inputs(packed, torch.device("cuda"))
    flexible = {key: call[key] for key in ("input_ids", "position_ids", "use_cache")}
    mask = block_mask(packed)

    def repeated() -> None:
        out = models["repeated"](
            input_ids=ids, use_cache=False, logits_to_keep=cell.response + 1
        ).logits
        score(out[:, :-1], ids[:, cell.prefix :])

    def flex() -> None:
        out = models["flex"](**flexible, attention_mask=mask, logits_to_keep=wanted).logits
        score(out[0], following)

    def ours() -> None:
        score(models["ours"](**call, logits_to_keep=wanted).logits[0], following)

    return {"repeated": repeated, "flex": flex, "ours": ours}


def timed(run: Callable[[], None]) -> tuple[float, int]:
    """Milliseconds of a run on the device, and the most bytes it held."""
    torch.cuda.reset_peak_memory_stats()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()  # type: ignore[no-untyped-call]
    run()
    ended.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return began.elapsed_time(ended), torch.cuda.max_memory_allocated()  # type: ignore[no-untyped-call]


def measure(cell: Cell, models: dict[str, Any], rounds: int) -> dict[str, Any]:
    """One line of the table."""
    runs = arms_of(cell, models)
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
    order = random.Random(1)
    for number in range(-2, rounds):  # the first two compile and warm up
        for name in order.sample(list(runs), len(runs)):
            for model in models.values():
                model.zero_grad(set_to_none=True)
            result = timed(runs[name])
            if number >= 0:
                taken[name].append(result)
    middle = {name: median(ms for ms, _ in results) for name, results in taken.items()}
    line: dict[str, Any] = {
        "prefix": cell.prefix,
        "response": cell.response,
        "group": cell.group,
    }
    for name, results in taken.items():
        line[f"{name} ms"] = round(middle[name], 2)
        line[f"{name} MiB"] = round(max(held for _, held in results) / 2**20)
    line["over repeated"] = round(middle["repeated"] / middle["ours"], 2)
    line["over flex"] = round(middle["flex"] / middle["ours"], 2)
    line["bound"] = round(cell.token_bound(), 2)
    return line


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("gpu", "what do shared prefixes gain on a GPU, beside FlexAttention?")
    trial.parser.prog = "python -m benchmarks.training.gpu"
    trial.parser.add_argument("--rounds", type=int, default=10)
    options = trial.options(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured", file=sys.stderr)
        return 2
    cells = [Cell(1024, 256, 8)] if options.quick else grid()
    trial.expect("repeated", "median of the repeated rows' time over ours", at_least=1.5)
    trial.expect("flex", "median of FlexAttention's time over ours", at_least=1)
    models = {
        name: model_with(attention)
        for name, attention in (
            ("repeated", "sdpa"),
            ("flex", "flex_attention"),
            ("ours", "forest"),
        )
    }
    table = []
    for cell in cells:
        table.append(measure(cell, models, options.rounds))
        trial.say(cell.name)
    trial.measured("repeated", median(line["over repeated"] for line in table))
    trial.measured("flex", median(line["over flex"] for line in table))
    trial.table("there and back", table)
    trial.fact("device", torch.cuda.get_device_name())
    return trial.finish()


if __name__ == "__main__":
    sys.exit(main())

"""Train Foreword's built-in nano model from public-domain books, export it, and write its card.

The model is a small Llama (grouped-query attention, rotary positions, tied embeddings) with a
byte-level BPE tokenizer, both trained from nothing on plain-text files. Training is bounded by
wall-clock time: the learning rate follows the elapsed fraction of ``--minutes``, so that a run on a
busy or slow machine takes fewer steps but still ends annealed. Every number in the card comes from
the run itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from _nano_card import card, samples
from _nano_text import END, Stream, encode, read_corpus, train_tokenizer, windows

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """\
A model like the shipped one (two CPU cores, 55 minutes; the card tells how that one was made):
    python tools/train_nano.py

A better one on one GPU (about 45M parameters; give it far more text than the default books):
    python tools/train_nano.py --device cuda --minutes 120 --data my_texts --out runs/nano-45m \\
        --weights-into runs/nano-45m/model --vocab 16384 --hidden 512 --layers 12 --heads 8 \\
        --kv-heads 2 --head-dim 64 --mlp 1536 --context 1024 --batch-tokens 32768 \\
        --lr 2e-3 --muon-lr 4e-3

Only export, from the newest checkpoint of a run, also of one that was interrupted:
    python tools/train_nano.py --export-only
"""


def option(default: Any, text: str = "") -> Any:
    """A setting with its default and its line in ``--help``; ``a|b`` offers choices, a first."""
    choices = tuple(default.split("|")) if isinstance(default, str) and "|" in default else None
    return field(
        default=choices[0] if choices else default, metadata={"help": text, "choices": choices}
    )


@dataclass(frozen=True)
class Settings:
    """All that determines a run, and its command line; times are wall clock, lengths are tokens."""

    data: str = option("", "folder of .txt files (default: the text folder of $FOREWORD_DATA)")
    out: str = option("runs/nano", "folder for the checkpoint, the record and the log of losses")
    weights_into: str = option("", "folder to export to (default: the package's own nano model)")
    note: str = option("", "a sentence about the run, for the card")
    resume: bool = option(False, "go on from the checkpoint in --out, on a new schedule")
    export_only: bool = option(False, "do not train: export the checkpoint found in --out")
    device: str = option("cpu", "cpu, cuda, cuda:1 ...")
    threads: int = option(2, "CPU threads")
    seed: int = option(7)
    minutes: float = option(55.0, "time budget; the learning-rate schedule follows it")
    max_steps: int = option(0, "end at this step if that is earlier; 0 means only the time counts")
    vocab: int = option(4096, "tokens that the tokenizer may learn")
    hidden: int = option(256, "width of the model")
    layers: int = option(4)
    heads: int = option(8, "query heads")
    kv_heads: int = option(2, "key/value heads; a divisor of --heads")
    head_dim: int = option(32)
    mlp: int = option(640, "width inside the MLP")
    rope_theta: float = option(2e5, "rotary base while training")
    export_theta: float = option(0.0, "rotary base to export with; 0 keeps --rope-theta")
    context: int = option(512, "length of the training sequences for most of the time")
    long_context: int = option(4096, "their length at the end, which is the model's limit")
    long_fraction: float = option(0.3, "share of the time given to --long-context")
    batch_tokens: int = option(4096, "tokens per step")
    optimizer: str = option("muon|adamw", "muon trains matrices with Muon, all else with AdamW")
    lr: float = option(3e-3, "AdamW's peak learning rate")
    muon_lr: float = option(6e-3, "Muon's peak learning rate, on AdamW's scale")
    warmup: float = option(0.02, "share of the time that warms up")
    weight_decay: float = option(0.1)
    clip: float = option(1.0, "largest norm of the gradient")
    precision: str = option("bf16|fp32", "bf16 is autocast: the weights stay fp32")
    compile: bool = option(True, "use torch.compile, which wants a C++ compiler on a CPU")
    eval_minutes: float = option(2.0, "time between held-out losses")
    save_minutes: float = option(4.0, "time between checkpoints")


# --- model --------------------------------------------------------------------------------------


def build_model(s: Settings) -> LlamaForCausalLM:
    """A Llama of the asked shape with fresh weights; the output layer is the embedding."""
    config = LlamaConfig(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        intermediate_size=s.mlp,
        max_position_embeddings=s.long_context,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta},
        initializer_range=0.02,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def token_losses(model: LlamaForCausalLM, batch: torch.Tensor, precision: str) -> torch.Tensor:
    """Cross-entropy in nats, fp32 [batch, length], of token ids [batch, length + 1]."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden = model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    flat = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return flat.view(batch.shape[0], -1)


@torch.no_grad()
def heldout_losses(
    model: LlamaForCausalLM, stream: Stream, length: int, precision: str
) -> torch.Tensor:
    """Loss of the stream's tokens [windows, length], each window read with only its own context.

    A last short window is left out.
    """
    n = (len(stream) - 1) // length
    rows = torch.from_numpy(np.stack([stream[i * length : (i + 1) * length + 1] for i in range(n)]))
    batches = torch.split(rows.to(next(model.parameters()).device), max(1, 4096 // length))
    return torch.cat([token_losses(model, batch, precision).cpu() for batch in batches])


# --- training -----------------------------------------------------------------------------------


def make_optimizers(model: LlamaForCausalLM, s: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the layers' matrices and AdamW for the rest; norms do not decay."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    embeddings = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" in n]
    gains = [p for p in model.parameters() if p.ndim < 2]
    decay = s.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if s.optimizer == "muon":
        scale = "match_rms_adamw"
        muon = torch.optim.Muon(matrices, lr=s.muon_lr, weight_decay=decay, adjust_lr_fn=scale)
        optimizers.append(muon)
        matrices = []
    groups = [
        {"params": embeddings + matrices, "weight_decay": decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    optimizers.append(torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, 0.95), fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(fraction: float, warmup: float) -> float:
    """Learning-rate factor: linear warm-up, then linear decay to 2 % at fraction 1."""
    if fraction < warmup:
        return max(fraction, 1e-4) / warmup
    return 0.02 + 0.98 * (1.0 - min(fraction, 1.0)) / (1.0 - warmup)


def save_checkpoint(model: LlamaForCausalLM, record: dict[str, Any], out: Path) -> None:
    """Write fp32 weights and the record, each file replaced whole."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state.pop("lm_head.weight")  # it is the embedding
    save_file(state, out / "checkpoint.tmp", metadata={"format": "pt"})
    os.replace(out / "checkpoint.tmp", out / "checkpoint.safetensors")
    (out / "record.tmp").write_text(json.dumps(record, indent=1))
    os.replace(out / "record.tmp", out / "record.json")


def load_weights(model: LlamaForCausalLM, out: Path) -> None:
    """Read the checkpoint in ``out`` into the model."""
    state = load_file(out / "checkpoint.safetensors")
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})


def train(s: Settings) -> None:
    """Train until the time or ``--max-steps`` is used up.

    Leaves the tokenizer, held-out text, checkpoint and record in ``--out``.
    """
    out = Path(s.out)
    out.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(Path(s.data))
    tokenizer = train_tokenizer(corpus.train, s.vocab)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    stream, held = encode(tokenizer, corpus.train), encode(tokenizer, corpus.heldout)
    (out / "heldout.txt").write_text("\n\n".join(corpus.heldout), encoding="utf-8")
    np.save(out / "heldout.npy", held)

    device = torch.device(s.device)
    with device:
        model = build_model(s)
    forward: Callable[..., torch.Tensor] = (
        torch.compile(token_losses, dynamic=False) if s.compile else token_losses
    )
    optimizers = make_optimizers(model, s)
    parameters = list(model.parameters())
    rng = np.random.default_rng(s.seed)
    sizes = {n: max(1, s.batch_tokens // n) for n in (s.context, s.long_context)}
    stages = {n: windows(stream, n, size, rng) for n, size in sizes.items()}
    record: dict[str, Any] = {
        "settings": asdict(s),
        "files": corpus.files,
        "parameters": sum(p.numel() for p in parameters),
        "train_tokens": len(stream),
        "train_bytes": sum(len(t.encode()) for t in corpus.train),
        "heldout_tokens": len(held),
        "heldout_bytes": sum(len(t.encode()) for t in corpus.heldout),
        "hardware": hardware(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "curve": [],
        "earlier": [],
    }
    before = {"steps": 0, "tokens": 0, "minutes": 0.0}
    if s.resume:
        last = json.loads((out / "record.json").read_text())
        load_weights(model, out)
        before = {key: last[key] for key in before}
        record["curve"] = last["curve"]
        record["earlier"] = [*last.get("earlier", []), last["settings"] | before]
    print(f"{record['parameters']:,} parameters; {len(stream):,} tokens to train on", flush=True)

    budget, begin = s.minutes * 60, time.monotonic()
    step, tokens = 0, before["tokens"]
    next_eval = s.eval_minutes * 60 if s.resume else 0.0  # the checkpoint's loss is known
    next_save, recent = s.save_minutes * 60, list[float]()
    while True:
        elapsed = time.monotonic() - begin
        fraction = min(1.0, max(elapsed / budget, step / s.max_steps if s.max_steps else 0.0))
        if elapsed >= next_eval or fraction >= 1.0:
            model.train(False)
            nats = heldout_losses(model, held, s.context, s.precision).mean().item()
            model.train(True)
            row = {
                "minutes": round(before["minutes"] + elapsed / 60, 2),
                "step": before["steps"] + step,
                "tokens": tokens,
                "train": round(statistics.fmean(recent), 4) if recent else None,
                "heldout": round(nats, 4),
            }
            record["curve"].append(row)
            print(json.dumps(row), flush=True)
            recent.clear()
            next_eval = elapsed + s.eval_minutes * 60
        if elapsed >= next_save or fraction >= 1.0:
            record |= {
                "steps": before["steps"] + step,
                "tokens": tokens,
                "minutes": round(before["minutes"] + elapsed / 60, 2),
                "done": fraction >= 1.0,
            }
            save_checkpoint(model, record, out)
            next_save = elapsed + s.save_minutes * 60
        if fraction >= 1.0:
            return

        length = s.long_context if fraction >= 1.0 - s.long_fraction else s.context
        factor = schedule(fraction, s.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.zero_grad(set_to_none=True)
        loss = forward(model, next(stages[length]).to(device), s.precision).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, s.clip)
        for optimizer in optimizers:
            optimizer.step()
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise SystemExit(
                f"the loss is {recent[-1]} at step {step}: lower --lr or use --precision fp32"
            )
        step += 1
        tokens += sizes[length] * length


def hardware(device: torch.device) -> str:
    """The device's name, and how many threads computed if it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.+)", info.read_text())):
        name = found[1]
    return f"{name}, {torch.get_num_threads()} threads"


# --- export -------------------------------------------------------------------------------------


def export(s: Settings) -> None:
    """Write the checkpoint in ``--out`` as a transformers folder of bf16 weights, with its card.

    The shape is that of the run, whatever the command line says now.
    """
    out, into = Path(s.out), Path(s.weights_into)
    if not (out / "record.json").exists():
        raise SystemExit(f"no checkpoint in {out}: train first, or name a run's folder with --out")
    record = json.loads((out / "record.json").read_text())
    known = {f.name for f in fields(Settings)}
    ran = Settings(**{k: v for k, v in record["settings"].items() if k in known})
    into.mkdir(parents=True, exist_ok=True)

    base = s.export_theta or ran.rope_theta
    model = build_model(replace(ran, rope_theta=base))
    load_weights(model, out)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model.generation_config = GenerationConfig.from_dict(ends)
    model.bfloat16().save_pretrained(into)
    (into / "model.safetensors").chmod(0o644)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    tokenizer.save(str(into / "tokenizer.json"), pretty=False)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": ran.long_context,
        "clean_up_tokenization_spaces": False,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), END),
    }
    (into / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")

    model = LlamaForCausalLM.from_pretrained(into, dtype=torch.float32)
    model.train(False)
    result = evaluate(model, tokenizer, ran, out) | {"rope_theta": base}
    if base != ran.rope_theta:
        trained = build_model(ran)
        trained.load_state_dict(model.state_dict())
        key = "nats_per_token_by_position"
        result[f"{key}_with_training_theta"] = evaluate(trained, tokenizer, ran, out)[key]
    result["bits_per_byte"] = round(
        result["nats_per_token"] * record["heldout_tokens"] / record["heldout_bytes"] / math.log(2),
        4,
    )
    (into / "evaluation.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    rows = ",\n".join(json.dumps(row) for row in record["curve"])
    (into / "loss_curve.json").write_text(f"[\n{rows}\n]\n")
    page = card(record, result, samples(model, tokenizer), s.note)
    (into / "README.md").write_text(page, encoding="utf-8")
    size = sum(f.stat().st_size for f in into.iterdir() if f.is_file()) / 1e6
    print(f"{into}: {size:.2f} MB, held-out loss {result['nats_per_token']}", flush=True)


def evaluate(
    model: LlamaForCausalLM, tokenizer: Tokenizer, ran: Settings, out: Path
) -> dict[str, Any]:
    """Held-out losses in fp32, nats per token, and an excerpt by which anyone can check a copy."""
    held = np.load(out / "heldout.npy")
    long = heldout_losses(model, held, min(ran.long_context, len(held) - 1), "fp32")
    short = heldout_losses(model, held, min(ran.context, len(held) - 1), "fp32")
    edges = [0, *(e for e in (512, 1024, 2048) if e < long.shape[1]), long.shape[1]]
    text = (out / "heldout.txt").read_text(encoding="utf-8")
    excerpt = text[:1200].rsplit(". ", 1)[0] + "."
    ids = torch.tensor([tokenizer.encode(excerpt).ids])
    with torch.no_grad():
        check = token_losses(model, ids, "fp32")

    def mean(losses: torch.Tensor) -> float:
        return round(losses.mean().item(), 4)

    return {
        "nats_per_token": mean(long),
        "nats_per_token_by_position": {
            f"{a}-{b - 1}": mean(long[:, a:b]) for a, b in itertools.pairwise(edges)
        },
        "nats_per_token_short_context": mean(short),
        "excerpt": {"text": excerpt, "tokens": ids.shape[1], "nats_per_token": mean(check)},
    }


# --- command line -------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> Settings:
    """Read the command line; every field of Settings is one option."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=layout)
    for f in fields(Settings):
        how: dict[str, Any] = {"type": type(f.default), "choices": f.metadata["choices"]}
        if isinstance(f.default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        shown = "" if f.default == "" else f"(default: {f.default})"
        text = f"{f.metadata['help']} {shown}".strip()
        parser.add_argument("--" + f.name.replace("_", "-"), default=f.default, help=text, **how)
    values = vars(parser.parse_args(argv))
    data = os.environ.get("FOREWORD_DATA", ROOT.parent / "shared" / "data")
    values["data"] = values["data"] or str(Path(data) / "text")
    values["weights_into"] = values["weights_into"] or str(ROOT / "src/foreword/models/nano")
    return Settings(**values)


def main() -> None:
    """Train, unless told not to, and export."""
    s = parse()
    torch.manual_seed(s.seed)
    torch.set_num_threads(s.threads)
    if not s.export_only:
        train(s)
    export(s)


if __name__ == "__main__":
    main()

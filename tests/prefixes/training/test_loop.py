from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.prefixes.methods import Batch, Example, Loss, Method
from foreword.prefixes.training import (
    TrainConfig,
    TrainingError,
    TrainProgress,
    evaluate,
    recompute,
    train,
)
from tests.prefixes.conformance import texts

Make = Callable[..., Method]


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 6, "batch_size": 4, "lr": 3e-2, **settings})


def state(method: Method) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in method.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def folders(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def test_accumulated_batches_cost_what_one_large_batch_costs(model: Any, make: Make) -> None:
    examples = texts(0, 8)  # of unequal lengths: means of means would differ
    one, two = make(), make()
    large = train(model, one, examples, config(batch_size=8, steps=3))
    small = train(model, two, examples, config(batch_size=2, accumulate=4, steps=3))
    assert large.losses == pytest.approx(small.losses, abs=1e-5)
    for key, value in state(one).items():
        torch.testing.assert_close(value, state(two)[key], atol=1e-4, rtol=1e-3)


def test_the_dev_loss_does_not_depend_on_the_batch_size(model: Any, make: Make) -> None:
    method, dev = make(), texts(3, 7)
    losses = [evaluate(model, method, dev, size) for size in (1, 3, 7)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    assert evaluate(model, method, []) == 0.0


def test_each_example_is_seen_once_before_any_is_seen_twice(model: Any, make: Make) -> None:
    method, seen = make(), []
    collate = method.collate
    method.collate = lambda some, device=None: (seen.extend(some), collate(some, device))[1]
    examples = texts(0, 6)
    train(model, method, examples, config(steps=6, batch_size=3, accumulate=1))
    seen = seen[-18:]
    for begin in range(0, 18, 6):
        assert sorted(each.ids for each in seen[begin : begin + 6]) == sorted(
            each.ids for each in examples
        )
    assert seen[:6] != seen[6:12]


def test_the_method_ends_in_the_state_that_was_best(
    model: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, looks, states = make(), iter([3.0, 1.0, 2.0]), []

    def evaluate(*_: Any) -> float:
        states.append(state(method))
        return next(looks)

    monkeypatch.setattr("foreword.prefixes.training._loop.evaluate", evaluate)
    result = train(model, method, texts(), config(eval_every=2), dev=texts(1))
    assert result.dev_losses == ((2, 3.0), (4, 1.0), (6, 2.0))
    assert (result.best_loss, result.best_step) == (1.0, 4)
    assert same(state(method), states[1])
    assert not same(state(method), states[2])


def test_patience_ends_a_run(model: Any, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([3.0, 2.0, 2.5, 2.0, 9.0])
    monkeypatch.setattr("foreword.prefixes.training._loop.evaluate", lambda *_: next(looks))
    result = train(model, make(), texts(), config(steps=9, eval_every=1, patience=2), dev=texts(1))
    assert (result.steps, result.stopped, result.best_step) == (4, "patience", 2)


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_an_interrupted_run_comes_to_the_same_bits(
    model: Any, make: Make, tmp_path: Path, stop: int, schedule: str
) -> None:
    settings = config(
        schedule=schedule, accumulate=2, batch_size=3, eval_every=2, weight_decay=0.1, warmup=0.4
    )
    data = {"examples": texts(0, 7), "dev": texts(1)}
    whole = Drawing(make(hidden=4))
    uninterrupted = train(model, whole, config=settings, **data)

    steps = iter(range(1, 9))
    first = train(
        model, Drawing(make(hidden=4)), config=settings, out=tmp_path,
        should_stop=lambda: next(steps) == stop, **data,
    )  # fmt: skip
    assert (first.steps, first.stopped) == (stop, "interrupted")
    torch.manual_seed(99)  # another process draws other numbers
    again = Drawing(make(9, hidden=4))
    resumed = train(model, again, config=settings, out=tmp_path, resume=True, **data)
    assert resumed.resumed_from == stop
    assert same(state(again), state(whole))
    assert resumed.losses == uninterrupted.losses
    assert resumed.dev_losses == uninterrupted.dev_losses
    assert resumed.best_step == uninterrupted.best_step


def test_the_best_state_outlives_an_interruption(
    model: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, states, method = iter([1.0, 2.0, 3.0]), [], make()

    def evaluate(*_: Any) -> float:
        states.append(state(method))
        return next(looks)

    monkeypatch.setattr("foreword.prefixes.training._loop.evaluate", evaluate)
    settings, dev = config(eval_every=2), texts(1)
    steps = iter(range(1, 9))
    train(
        model, method, texts(), settings, dev=dev, out=tmp_path,
        should_stop=lambda: next(steps) == 3,
    )  # fmt: skip
    method = make(1)
    result = train(model, method, texts(), settings, dev=dev, out=tmp_path, resume=True)
    assert (result.best_loss, result.best_step) == (1.0, 2)
    assert same(state(method), states[0])


def Drawing(method: Method) -> Method:  # noqa: N802
    """With noise of its own in every loss, so that the generator's state matters."""
    sound = method.loss

    def loss(model: Any, batch: Batch) -> Loss:
        made = sound(model, batch)
        return Loss(made.value * (1 + 0.1 * torch.rand(())), made.parts, made.weight)

    method.loss = loss
    return method


def test_a_run_that_has_ended_is_not_trained_again(model: Any, make: Make, tmp_path: Path) -> None:
    first = make()
    done = train(model, first, texts(), config(), out=tmp_path, dev=texts(1))
    second, calls = make(1), []
    again = train(
        model, second, texts(), config(), out=tmp_path, dev=texts(1), resume=True,
        on_progress=calls.append,
    )  # fmt: skip
    assert not calls
    assert same(state(first), state(second))
    assert (again.losses, again.best_step) == (done.losses, done.best_step)


def test_the_latest_checkpoints_and_the_best_stay(
    model: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr("foreword.prefixes.training._loop.evaluate", lambda *_: next(looks))
    train(model, make(), texts(), config(eval_every=1, save_every=1), dev=texts(1), out=tmp_path)
    assert folders(tmp_path) == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]
    assert folders(tmp_path / "checkpoint-6") == [
        "best.safetensors",
        "method.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_without_save_every_the_last_checkpoint_is_written(
    model: Any, make: Make, tmp_path: Path
) -> None:
    train(model, make(), texts(), config(), out=tmp_path)
    assert folders(tmp_path) == ["checkpoint-6"]


@pytest.mark.parametrize(
    ("other", "named"),
    [({"lr": 1e-3}, "lr"), ({"seed": 3}, "seed"), ({"steps": 9}, "steps")],
)
def test_a_checkpoint_of_other_settings_is_refused(
    model: Any, make: Make, tmp_path: Path, other: dict[str, Any], named: str
) -> None:
    train(model, make(), texts(), config(), out=tmp_path)
    with pytest.raises(TrainingError, match=f"another {named} "):
        train(model, make(), texts(), config(**other), out=tmp_path, resume=True)


def test_a_checkpoint_of_other_data_or_settings_of_the_method_is_refused(
    model: Any, make: Make, tmp_path: Path
) -> None:
    train(model, make(), texts(), config(), out=tmp_path)
    with pytest.raises(TrainingError, match="another data"):
        train(model, make(), texts(5), config(), out=tmp_path, resume=True)
    with pytest.raises(TrainingError, match="another length"):
        train(model, make(length=4), texts(), config(), out=tmp_path, resume=True)


def test_a_damaged_checkpoint_is_named(model: Any, make: Make, tmp_path: Path) -> None:
    train(model, make(), texts(), config(), out=tmp_path)
    (tmp_path / "checkpoint-6" / "optimizer.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(TrainingError, match=r"cannot go on from .*checkpoint-6.*delete"):
        train(model, make(), texts(), config(), out=tmp_path, resume=True)


def test_a_checkpoint_that_was_not_finished_is_not_seen(
    model: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("disk full")

    train(model, make(), texts(), config(steps=2), out=tmp_path)
    before = (tmp_path / "checkpoint-2" / "state.json").read_text()
    monkeypatch.setattr("foreword.prefixes.training._checkpoint.write_json", fails)
    with pytest.raises(OSError, match="disk full"):
        train(model, make(), texts(), config(steps=2), out=tmp_path)
    assert folders(tmp_path) == ["checkpoint-2"]
    assert (tmp_path / "checkpoint-2" / "state.json").read_text() == before


def test_not_a_number_names_the_step_and_the_checkpoint(
    model: Any, make: Make, tmp_path: Path
) -> None:
    method, saved = make(), {}
    sound, calls = method.loss, []

    def loss(model: Any, batch: Batch) -> Loss:
        calls.append(1)
        saved[len(calls)] = state(method)
        made = sound(model, batch)
        return Loss(made.value * float("inf")) if len(calls) == 5 else made

    method.loss = loss
    with pytest.raises(TrainingError, match=r"loss is inf at step 5.*checkpoint-4"):
        train(model, method, texts(), config(save_every=2), out=tmp_path)
    assert same(state(method), saved[5])
    fresh = make()
    on_disk = train(model, fresh, texts(), config(save_every=2), out=tmp_path, resume=True)
    assert on_disk.resumed_from == 4


def test_a_gradient_that_is_not_finite_changes_nothing(model: Any, make: Make) -> None:
    method = make()
    sound, calls = method.loss, []

    def loss(model: Any, batch: Batch) -> Loss:
        calls.append(state(method))
        made = sound(model, batch)
        if len(calls) < 3:
            return made
        zero = next(method.parameters()).sum() * 0
        return Loss(made.value.detach() + zero.sqrt())  # finite, with an infinite slope

    method.loss = loss
    with pytest.raises(TrainingError, match=r"gradient's norm is \w+ at step 3"):
        train(model, method, texts(), config())
    assert same(state(method), calls[2])


def test_progress_is_told_after_each_step(model: Any, make: Make, tmp_path: Path) -> None:
    told: list[TrainProgress] = []
    result = train(
        model, make(), texts(), config(eval_every=3, save_every=4), dev=texts(1), out=tmp_path,
        on_progress=told.append,
    )  # fmt: skip
    assert [each.step for each in told] == [1, 2, 3, 4, 5, 6]
    assert tuple(each.loss for each in told) == result.losses
    assert [each.dev_loss is None for each in told] == [True, True, False, False, False, False]
    assert [Path(each.checkpoint).name for each in told] == [
        "", "", "", "checkpoint-4", "", "checkpoint-6",
    ]  # fmt: skip
    assert told[-1].seconds_left == 0
    assert told[0].lr == 0 < told[2].lr
    assert set(told[0].parts) == {"lm"}


def test_the_callers_random_numbers_are_left_alone(model: Any, make: Make) -> None:
    method = make()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, method, texts(), config(steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_method_that_trains_the_model_is_found_out(model: Any, make: Make) -> None:
    method = make()
    sound = method.loss

    def loss(model: Any, batch: Batch) -> Loss:
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(1.5)
        return sound(model, batch)

    method.loss = loss
    with pytest.raises(TrainingError, match="parameters changed"):
        train(model, method, texts(), config())


def test_a_text_that_does_not_fit_is_named(model: Any, make: Make) -> None:
    fits = Example(tuple([7] * 509))
    train(model, make(), [fits], config(steps=1, batch_size=1))
    long = Example(tuple([7] * 510), fields={"record": "data.jsonl line 12"})
    with pytest.raises(TrainingError, match=r"line 12 has 510 tokens, and 509 fit"):
        train(model, make(), [*texts(), long], config())
    with pytest.raises(TrainingError, match="example 8 has 510"):
        train(model, make(), [*texts(), Example(long.ids)], config())
    with pytest.raises(TrainingError, match="line 12 has 510 tokens"):
        train(model, make(), texts(), config(), dev=[long])
    pair = Example((7, 8), 1, {"rejected": tuple([7] * 511)})
    with pytest.raises(TrainingError, match="example 0 has 511 tokens"):
        train(model, make(), [pair], config())


@pytest.mark.parametrize("example", [Example((7,)), Example((7, 8), 2)])
def test_nothing_to_predict_is_refused(model: Any, make: Make, example: Example) -> None:
    with pytest.raises(TrainingError, match="nothing to predict"):
        train(model, make(), [example], config())
    with pytest.raises(TrainingError, match="at least one example"):
        train(model, make(), [], config())


def test_a_bfloat16_model_trains_float32_prefixes(model: Any, make: Make) -> None:
    method = make()
    before = state(method)
    train(model.to(torch.bfloat16), method, texts(), config(steps=3))
    after = state(method)
    assert all(each.dtype == torch.float32 for each in after.values())
    assert not same(before, after)


def test_recomputing_layers_come_to_the_same_prefix(model: Any, make: Make) -> None:
    plain, saving, ran = make(), make(), []
    expected = train(model, plain, texts(), config(), dev=texts(1))
    recompute(model)
    layer = model.model.layers[0]
    layer.input_layernorm.register_forward_pre_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    result = train(model, saving, texts(), config(), dev=texts(1))
    assert ran.count(True) == 2 * 6  # each layer twice a step: on the way there and back
    assert result.losses == pytest.approx(expected.losses, abs=1e-4)
    assert result.best_loss == pytest.approx(expected.best_loss, abs=1e-4)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"

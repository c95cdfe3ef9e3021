"""The engine writes what the trainer's model would, says how probable it was, and follows it."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("trl")

from trl import GRPOConfig, RLOOConfig

from foreword import ForewordError, SamplingParams
from foreword.training import EngineRollouts
from foreword.training._rollout_weights import engine_copy, named_weights
from foreword.training._trainers import SharedPrefixGRPOTrainer, SharedPrefixRLOOTrainer

GAP = 1e-4  # float32


def by_length(completions, **kwargs):
    return [float(len(text) % 7) for text in completions]


@pytest.fixture
def make(tiny_model, tokenizer, prompts, trainer_settings):
    """`make(...)`: a GRPO trainer of two groups of four, or RLOO's; settings go to its config."""

    def build(
        trainer=SharedPrefixGRPOTrainer, rollouts=None, reward=by_length, peft=None, **settings
    ):
        config = RLOOConfig if trainer is SharedPrefixRLOOTrainer else GRPOConfig
        given = {
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "learning_rate": 5e-3,
            **trainer_settings,
            **settings,
        }
        return trainer(
            model=tiny_model(),
            reward_funcs=reward,
            args=config(**given),
            train_dataset=prompts,
            eval_dataset=prompts.select(range(2)),
            processing_class=tokenizer,
            peft_config=peft,
            rollouts=rollouts or EngineRollouts(kv_memory="4MiB"),
        )

    return build


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def gaps(trainer):
    return logged(trainer, "rollouts/logp_gap_max")


def lora():
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        lora_dropout=0.0,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.2},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        {"beta": 0.1, "min_p": 0.05, "num_generations": 2},
    ],
    ids=["plain", "sampling", "accumulated", "reference"],
)
def test_the_engines_log_probabilities_are_the_trainers_at_every_step(settings, make):
    trainer = make(**settings)
    trainer.train()
    assert len(gaps(trainer)) == 3
    assert max(gaps(trainer)) < GAP
    assert max(logged(trainer, "rollouts/logp_gap_mean")) <= max(gaps(trainer))
    assert min(gaps(trainer)) > 0  # something was compared


def test_rloo(make):
    trainer = make(SharedPrefixRLOOTrainer)
    trainer.train()
    assert len(gaps(trainer)) == 3
    assert 0 < max(gaps(trainer)) < GAP


def test_rloo_where_truncated_completions_are_left_out(make, tokenizer):
    """A process with such rows compares the others: those without wait for it to."""
    trainer = make(SharedPrefixRLOOTrainer, mask_truncated_completions=True)
    trainer.eos_token_ids = list(range(0, len(tokenizer), 20))
    trainer.train()
    assert 0 < min(logged(trainer, "completions/clipped_ratio")) < 1
    assert len(gaps(trainer)) == 3
    assert 0 < max(gaps(trainer)) < GAP


def test_adapters_are_merged_in_the_engine_alone(make):
    trainer = make(peft=lora())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert len(gaps(trainer)) == 3
    assert 0 < max(gaps(trainer)) < GAP
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora" not in name), name


def test_modules_saved_beside_adapters_and_adapters_switched_off(tiny_model):
    peft = pytest.importorskip("peft")
    base = tiny_model()
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["norm"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "lora" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model(ids).logits
        found = engine_copy(base, torch.float32)(ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        model.disable_adapter_layers()
        torch.testing.assert_close(
            engine_copy(base, torch.float32)(ids).logits, tiny_model()(ids).logits
        )


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_after_training_the_engines_greedy_text_is_the_models_own(adapters, make, tokenizer):
    trainer = make(peft=lora() if adapters else None)
    trainer.train()
    model = trainer.model.eval()
    trainer.state.global_step += 1
    llm = trainer.rollouts._follow(trainer)
    for text in ("Once upon a time, in a small house", "The king"):
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, do_sample=False, max_new_tokens=10)
        expected = out[0, ids["input_ids"].shape[1] :].tolist()
        result = llm.generate([ids["input_ids"][0].tolist()], SamplingParams(max_tokens=10))
        assert list(result[0].outputs[0].token_ids) == expected


def test_weights_are_pushed_and_the_cache_dropped_once_a_step_and_only_then(make, tokenizer):
    trainer = make()
    rollouts = trainer.rollouts
    prompt = tokenizer("Once upon a time there was a cat")["input_ids"]
    computed = []
    for step in (0, 0, 1, 1):
        trainer.state.global_step = step
        rollouts.generate(trainer, [prompt], [4])
        computed.append(rollouts.last_cost.computed_tokens)
    assert computed == [len(prompt), 1, len(prompt), 1]  # one for the logits of the last token
    assert rollouts.last_cost.prompt_tokens == 4 * len(prompt)
    with torch.no_grad():
        trainer.model.model.norm.weight.mul_(2)  # loaded from a checkpoint, say
    rollouts.generate(trainer, [prompt], [4])
    assert rollouts.last_cost.computed_tokens == len(prompt)


def test_a_group_computes_its_prompt_once(make, tokenizer):
    rollouts = EngineRollouts(kv_memory="4MiB")
    trainer = make(rollouts=rollouts, max_steps=1)
    trainer.train()
    cost = rollouts.last_cost
    assert cost.computed_tokens < cost.prompt_tokens / 4  # two groups share an opening, too
    assert logged(trainer, "rollouts/prompt_tokens_saved") == [float(cost.saved_tokens)]
    assert logged(trainer, "rollouts/seconds")[0] > logged(trainer, "rollouts/sync_seconds")[0] > 0


def test_groups_of_more_than_one_request_may_ask_for(make, tokenizer):
    trainer = make()
    prompt = tokenizer("Once upon a time")["input_ids"]
    ids, logps = trainer.rollouts.generate(trainer, [prompt, [*prompt, 9]], [130, 3])
    assert len(ids) == len(logps) == 133
    assert len({tuple(each) for each in ids[:130]}) > 100  # no stream of numbers is used twice


def stale(patch):
    patch.setattr("foreword.engine.LLM.update_weights", lambda self, source: None)


def kept(patch):
    patch.setattr("foreword.cache.PrefixTree.clear", lambda self, ns=None: 0)


@pytest.mark.parametrize("broken", [stale, kept], ids=["not pushed", "cache kept"])
def test_what_is_not_pushed_or_dropped_shows_in_the_gap(broken, make, monkeypatch):
    trainer = make()
    broken(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"more than the 0\.001"):
        trainer.train()
    first, *later = gaps(trainer)
    assert first < GAP
    assert min(later) > 100 * GAP


def test_later_iterations_on_a_batch_are_not_compared(make):
    trainer = make(num_iterations=2, max_steps=4)
    trainer.train()
    assert len(gaps(trainer)) == 2
    assert max(gaps(trainer)) < GAP


def test_completions_end_with_what_ended_them_and_are_never_empty(make, tokenizer):
    trainer = make()
    trainer.eos_token_ids = list(range(len(tokenizer)))  # whatever is drawn ends the text
    ids, logps = trainer.rollouts.generate(trainer, [[5, 6, 7]], [3])
    assert [len(each) for each in ids] == [1, 1, 1] == [len(each) for each in logps]


def test_the_same_seed_and_step_give_the_same_completions(make, tokenizer):
    prompt = tokenizer("Once upon a time")["input_ids"]

    def completions(seed=0, step=0, rank=0, training=True, calls=1):
        trainer = make(seed=seed)
        trainer.model.train(training)
        trainer.state.global_step = step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(trainer.accelerator), "process_index", rank)
            return [trainer.rollouts.generate(trainer, [prompt], [3])[0] for _ in range(calls)]

    first, second = completions(calls=2)
    assert first != second
    assert completions(calls=2) == [first, second]
    others = [completions(**{key: 1})[0] for key in ("seed", "step", "rank")]
    others += [completions(training=False)[0]]
    assert all(other != first for other in others)


def test_evaluation_has_its_own_number_of_samples(make):
    trainer = make(num_generations_eval=2, per_device_eval_batch_size=4, max_steps=1)
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_rollouts/logp_gap_max"] < GAP
    trainer.train()
    assert max(gaps(trainer)) < GAP


def test_a_resumed_run_goes_on_as_the_one_that_was_not_interrupted(make, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = make(**settings)
    whole.train()
    out = whole.args.output_dir
    again = make(**settings)
    again.train(resume_from_checkpoint=f"{out}/checkpoint-2")
    assert max(gaps(again)) < GAP
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_reward_that_raises_leaves_the_engine_as_it_was(make):
    calls = []

    def moody(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 2:
            raise RuntimeError("no reward today")
        return by_length(completions)

    trainer = make(reward=moody)
    with pytest.raises(RuntimeError, match="no reward today"):
        trainer.train()
    assert not trainer.rollouts.llm.engine.has_work
    trainer.train()
    assert max(gaps(trainer)) < GAP


def test_the_trainers_model_is_only_read(make, tiny_model):
    trainer = make()
    attention = trainer.model.config._attn_implementation
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.rollouts.generate(trainer, [[5, 6, 7]], [2])
    assert trainer.model.config._attn_implementation == attention
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    storage = {p.data_ptr() for p in trainer.model.parameters()}
    loaded = trainer.rollouts.llm.engine.loaded
    assert loaded.packed._embedding.data_ptr() not in storage
    assert dict(named_weights(tiny_model(), torch.float32)).keys() == loaded.inventory.shapes.keys()


def test_the_coarser_of_two_formats_says_what_gap_is_expected(make):
    for dtype, bf16 in (("float32", False), ("float32", True), ("bfloat16", False)):
        trainer = make(rollouts=EngineRollouts(dtype, kv_memory="4MiB"), bf16=bf16, max_steps=2)
        trainer.train()  # warns of none: warnings are errors here
        coarse = bf16 or dtype == "bfloat16"
        assert (max(gaps(trainer)) > GAP) == coarse
        assert (trainer.rollouts.expected_gap > 0.01) == coarse


def test_engines_of_another_format(make):
    trainer = make(rollouts=EngineRollouts("bfloat16", kv_memory="4MiB"), max_steps=1)
    trainer.rollouts._follow(trainer)
    assert trainer.rollouts.llm.engine.loaded.shape.dtype == torch.bfloat16
    mixed = make(bf16=True)
    assert mixed.rollouts._follow(mixed).engine.loaded.shape.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"generation_kwargs": {"num_beams": 3}}, r"generation_kwargs\['num_beams'\]"),
        ({"generation_kwargs": {"temperature": 3.0}}, r"generation_kwargs\['temperature'\]"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"generation_kwargs": {"top_p": 1.5}}, "top_p must be"),
    ],
)
def test_what_the_engine_does_not_do_is_refused_by_name(settings, said, make):
    with pytest.raises(ForewordError, match=said):
        make(**settings)


def test_known_generation_arguments_are_taken(make):
    trainer = make(generation_kwargs={"top_k": 1})
    ids, _ = trainer.rollouts.generate(trainer, [[5, 6, 7]], [3])
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "int4"}, "dtype 'int4' is unknown"),
        ({"sed": 3}, "'sed' is no setting of rollouts"),
        ({"seed": 3}, "'seed' is no setting of rollouts: .* are the trainer's"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"decoder": "fast"}, "decoder 'fast' is unknown"),
    ],
)
def test_settings_are_checked_where_they_are_given(settings, said):
    with pytest.raises(ForewordError, match=said):
        EngineRollouts(**settings)


def test_prompts_that_leave_no_room_are_named(make):
    trainer = make()
    with pytest.raises(ForewordError, match=r"row 4 has 512 tokens: .* from 1 to 511"):
        trainer.rollouts.generate(trainer, [[5, 6], [7] * 512], [4, 4])
    with pytest.raises(ForewordError, match="row 4 has 0 tokens"):
        trainer.rollouts.generate(trainer, [[5, 6], []], [4, 4])
    ids, _ = trainer.rollouts.generate(trainer, [[7] * 508], [2])
    assert {len(each) for each in ids} <= {1, 2, 3, 4}


def test_weights_that_are_not_numbers_are_said(make):
    trainer = make()
    with torch.no_grad():
        trainer.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ForewordError, match=r"no completions at step 0: .*go back to a checkpoint"):
        trainer.rollouts.generate(trainer, [[5, 6]], [2])


def test_completions_go_to_their_rows_however_prompts_are_mixed(make):
    trainer = make()

    class Echo:
        def generate(self, trainer, prompts, samples):
            rows = [
                [*p, n] for p, wanted in zip(prompts, samples, strict=True) for n in range(wanted)
            ]
            return rows, [[0.0] * len(row) for row in rows]

    trainer.rollouts = Echo()
    prompts = [[1], [2], [3], [1], [1], [2]]
    ids, logps = trainer._generate_single_turn(prompts, None, {}, 1)
    assert ids == [[1, 0], [2, 0], [3, 0], [1, 1], [1, 2], [2, 1]]
    assert len(logps) == 6

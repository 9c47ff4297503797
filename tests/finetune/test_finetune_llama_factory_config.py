from __future__ import annotations

from pathlib import Path

import pytest

from finetune.config_file import load_plan
from finetune.settings import TrainSettings
from finetune.types import TrainingError

# A usual file for supervised LoRA training, with what such files carry along.
SFT = """
### model
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
trust_remote_code: false
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
### dataset
dataset: 医疗问答
template: qwen
cutoff_len: 1024
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/qwen/lora
logging_steps: 10
report_to: none
### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.05
bf16: true
ddp_timeout: 180000000
### eval
val_size: 0.1
eval_strategy: steps
eval_steps: 500
"""


def _plan(tmp_path: Path, text: str, ignore: bool = False) -> TrainSettings:
    (tmp_path / "sft.yaml").write_text(text, "utf-8")
    (stage,) = load_plan(tmp_path / "sft.yaml", ignore).stages
    return stage.settings


def test_a_usual_file_is_translated(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text(SFT, "utf-8")
    plan = load_plan(tmp_path / "sft.yaml")
    (stage,) = plan.stages
    assert (plan.base, stage.dataset) == ("hub:Qwen/Qwen2.5-7B-Instruct", "医疗问答")
    assert stage.settings == TrainSettings(
        method="lora",
        rank=16,
        alpha=32,
        dropout=0.0,
        target=("q_proj", "v_proj"),
        learning_rate=1e-4,
        epochs=3,
        batch_size=16,
        micro_batch=2,
        warmup_steps=10**6,
        warmup_ratio=0.05,
        scheduler="cosine",
        max_length=1024,
        patience=0,
    )
    taken, without, *different = plan.notes
    assert [note.split(":")[1].strip() for note in different] == ["num_train_epochs", "cutoff_len"]
    assert "lora_rank → rank" in taken
    assert "per_device_train_batch_size → micro_batch" in taken
    assert "output_dir" in without
    assert "template (the tokenizer's own chat template" in without


# Every key of the file that its own examples are trained with.
STOCK = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""


def test_their_own_example_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text(STOCK, "utf-8")
    plan = load_plan(tmp_path / "sft.yaml")
    (stage,) = plan.stages
    assert stage.dataset == "identity,alpaca_en_demo"
    assert (stage.settings.max_samples, stage.settings.val_size, stage.settings.eval_dataset) == (1000, 0.1, None)
    assert (stage.settings.rank, stage.settings.batch_size, stage.settings.micro_batch) == (8, 8, 1)
    # What is done otherwise is told, also where the file leaves it unsaid.
    assert [note for note in plan.notes if note.startswith("different here: val_size: nothing is held out there, a tenth here")]
    assert "trust_remote_code (always off: no code of a model is run)" in plan.notes[1]
    measured = STOCK + "eval_dataset: alpaca_zh_demo\nval_size: 0\nper_device_eval_batch_size: 1\neval_strategy: steps\neval_steps: 500\n"
    (tmp_path / "sft.yaml").write_text(measured, "utf-8")
    plan = load_plan(tmp_path / "sft.yaml")
    assert plan.stages[0].settings.eval_dataset == "alpaca_zh_demo"
    assert not [note for note in plan.notes if note.startswith("different here: val_size")]
    (tmp_path / "sft.yaml").write_text(measured + "load_best_model_at_end: true\nover_long: window\n", "utf-8")
    assert not [note for note in load_plan(tmp_path / "sft.yaml").notes if note.startswith("different")]


def test_the_remedies_that_messages_name_can_be_followed(tmp_path: Path) -> None:
    more = "over_long: drop\nmicro_batch: 1\ngradient_checkpointing: true\nmethod: qlora\n"
    (tmp_path / "sft.yaml").write_text(SFT + more, "utf-8")
    plan = load_plan(tmp_path / "sft.yaml")
    settings = plan.stages[0].settings
    assert (settings.over_long, settings.micro_batch, settings.batch_size) == ("drop", 1, 16)
    assert (settings.method, settings.gradient_checkpointing) == ("qlora", True)
    assert "settings of ours in it: over_long, micro_batch, method" in plan.notes
    assert "different here: method: qlora, as `method` says, instead of lora" in plan.notes
    # Pre-training cuts nothing off here either.
    (tmp_path / "sft.yaml").write_text("model_name_or_path: a/b\nstage: pt\nfinetuning_type: full\n", "utf-8")
    assert not [note for note in load_plan(tmp_path / "sft.yaml").notes if "cutoff_len" in note]


def test_what_is_left_out_takes_their_default(tmp_path: Path) -> None:
    settings = _plan(tmp_path, "model_name_or_path: /models/glm\nstage: sft\n")
    assert (settings.rank, settings.alpha, settings.dropout, settings.learning_rate) == (8, 16, 0.0, 5e-5)
    assert (settings.scheduler, settings.warmup_steps, settings.max_length) == ("linear", 0, 2048)
    assert (settings.batch_size, settings.micro_batch, settings.epochs) == (8, 8, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quantization_bit: 4\n", {"method": "qlora"}),
        ("quantization_bit: '4'\nquantization_method: bitsandbytes\n", {"method": "qlora"}),
        ("use_dora: true\nmethod: lora+\n", {"method": "lora+", "lora_plus_ratio": 16.0}),
        ("use_dora: true\n", {"method": "dora"}),
        ("use_rslora: true\nlora_alpha: 64\n", {"method": "rslora", "alpha": 64}),
        ("pissa_init: true\npissa_iter: 16\npissa_convert: true\n", {"method": "pissa"}),
        ("loraplus_lr_ratio: 8.0\n", {"method": "lora+", "lora_plus_ratio": 8.0}),
        ("finetuning_type: freeze\nfreeze_trainable_layers: 4\n", {"method": "freeze", "freeze_layers": 4}),
        ("finetuning_type: full\n", {"method": "full"}),
        ("finetuning_type: full\nuse_galore: true\ngalore_rank: 64\n", {"method": "galore", "galore_rank": 64, "galore_scale": 2.0}),
        ("stage: dpo\npref_beta: 0.2\npref_loss: sigmoid\n", {"method": "dpo", "dpo_beta": 0.2}),
        ("stage: pt\nfinetuning_type: full\n", {"method": "pretrain"}),
        ("warmup_steps: 20\nwarmup_ratio: 0.3\n", {"warmup_steps": 20, "warmup_ratio": 1.0}),
        ("warmup_steps: 0.2\n", {"warmup_steps": 10**6, "warmup_ratio": 0.2}),
        ("lr_scheduler_type: constant_with_warmup\n", {"scheduler": "constant"}),
        ("disable_gradient_checkpointing: false\n", {"gradient_checkpointing": True}),
        ("full_determinism: true\nbf16: true\n", {"deterministic": True, "precision": "auto"}),
        ("early_stopping_steps: 3\nseed: 7\nweight_decay: 0.1\n", {"patience": 3, "seed": 7, "weight_decay": 0.1}),
        ("max_samples: 1000\n", {"max_samples": 1000, "val_size": 0.1}),
        ("val_size: 0.2\n", {"val_size": 0.2}),
        ("val_size: 200\n", {"val_size": 200.0}),
        ("eval_dataset: 考试, exam\n", {"eval_dataset": "考试,exam"}),
        ("trust_remote_code: true\n", {"method": "lora"}),
        ("lora_target: [q_proj, k_proj]\n", {"target": ("q_proj", "k_proj")}),
        ("learning_rate: 1e-4\nadam_beta1: 0.9\nuse_muon: false\nneftune_noise_alpha: null\n", {"learning_rate": 1e-4}),
    ],
)
def test_each_method_and_key(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    settings = _plan(tmp_path, f"model_name_or_path: a/b\n{text}")
    assert {key: getattr(settings, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lora_rnak: 8", 'lora_rnak: did you mean "lora_rank"?'),
        ("warmup_step: 8", 'warmup_step: did you mean "warmup_steps"?'),
        ("学习率: 8", "学习率: no key of LLaMA-Factory"),
        ("rank: 8", "rank: called lora_rank in a LLaMA-Factory file"),
        ("over_lnog: drop", 'over_lnog: did you mean "over_long"?'),
        ("stage: dpo\nmethod: qlora", "method: qlora learns from pairs, the file's stage from preferences"),
        ("quantization_bit: 4\nquantization_method: hqq", "quantization_method: 'hqq'; only 'bnb'"),
        ("neftune_noise_alpha: 5", "neftune_noise_alpha: leave it out"),
        ("quantization_bit: 8", "quantization_bit: 8 bits; only 4"),
        ("use_dora: true\nquantization_bit: 4", "use_dora: not together with method qlora"),
        ("stage: kto", "stage: kto with finetuning_type lora; stage sft with lora"),
        ("stage: [sft]", "stage: ['sft'] with finetuning_type lora; stage sft with lora"),
        ("stage: dpo\nfinetuning_type: full", "stage: dpo with finetuning_type full"),
        ("stage: dpo\npref_loss: ipo", "pref_loss: 'ipo'; only 'sigmoid'"),
        ("use_galore: true", "use_galore: not together with method lora"),
        ("lr_scheduler_type: cosin", 'lr_scheduler_type: cosin; did you mean "cosine"?'),
        ("num_train_epochs: 2.5", "num_train_epochs: 2.5; only whole epochs"),
        ("max_steps: 100", "max_steps: 100; only -1"),
        ("val_size: 0.2\neval_dataset: b", "val_size: 0.2; not together with eval_dataset"),
        ("mask_history: true", "mask_history: True; only False"),
        (
            "stage: pt\nfinetuning_type: full\ndataset: 百科",
            "dataset: 百科; stage pt reads the documents of the domain: bring the texts in",
        ),
        ("train_on_prompt: true", "train_on_prompt: True; only False"),
        ("stage: pt\nfinetuning_type: full\neval_dataset: 百科", "eval_dataset: 百科; stage pt holds out documents of the domain"),
        ("optim: sgd", "optim: sgd; AdamW is used"),
    ],
)
def test_what_would_change_the_result_is_an_error_unless_ignored(tmp_path: Path, text: str, says: str) -> None:
    whole = f"model_name_or_path: a/b\n{text}\n"
    with pytest.raises(TrainingError, match="not supported") as caught:
        _plan(tmp_path, whole)
    assert says in str(caught.value)
    assert "sft.yaml" in str(caught.value)
    assert isinstance(_plan(tmp_path, whole, ignore=True), TrainSettings)
    assert any(note == f"IGNORED, would change the result: {says}" or says in note for note in load_plan(tmp_path / "sft.yaml", True).notes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("per_device_train_batch_size: two", "per_device_train_batch_size: expected a number, found 'two'"),
        ("gradient_accumulation_steps: 0", "gradient_accumulation_steps: expected a whole number above 0"),
        ("lora_rank: 8.5", "lora_rank: expected a whole number above 0, found 8.5"),
        ("freeze_trainable_layers: -2", "sft.yaml: freeze_trainable_layers: expected a value from 1"),
        ("cutoff_len: 4", "sft.yaml: cutoff_len: expected a value from 8"),
        ("lora_alpha: 16.0", "sft.yaml: lora_alpha: expected a whole number, found 16.0"),
        ("loraplus_lr_ratio: abc", "sft.yaml: loraplus_lr_ratio: expected a number, found 'abc'"),
        ("over_long: cut", "sft.yaml: over_long: there is no 'cut'; expected error, drop, window"),
        ("method: qlorra", "sft.yaml: method: there is no 'qlorra'"),
        ("micro_batch: 3", "sft.yaml: micro_batch: expected a divisor of batch_size (8), found 3"),
        ("use_dora: 'false'", "use_dora: expected true or false, without quotes, found 'false'"),
        ("use_galore: 'no'", "use_galore: expected true or false"),
        ("disable_gradient_checkpointing: 'no'", "disable_gradient_checkpointing: expected true or false"),
        ("lora_target: [1, 2]", "lora_target: expected names of modules, found [1, 2]"),
        ("num_train_epochs: .inf", "num_train_epochs: expected a number, found inf"),
        ("num_train_epochs: .nan", "num_train_epochs: expected a number, found nan"),
        ("per_device_train_batch_size: .inf", "per_device_train_batch_size: expected a number, found inf"),
        ("warmup_steps: .inf", "warmup_steps: expected a number, found inf"),
        (f"lora_rank: 1{'0' * 400}", "lora_rank: expected a number, found 1000"),
        ("run_name: 2024-02-30", "'2024-02-30' is no value (day is out of range for month)"),
        ("lora_rank: 8\nlora_rank: 16", "the key 'lora_rank' stands there twice"),
        ("max_samples: 0", "max_samples: expected a value from 1"),
        ("max_samples: all", "max_samples: expected a whole number, found 'all'"),
        ("val_size: -1", "val_size: expected a share below 1 or a number of rows, found -1"),
        ("dataset: 5", "dataset: expected names of data sets, found 5"),
        ("eval_dataset: [1]", "eval_dataset: expected names of data sets, found [1]"),
        ("learning_rate: fast", "learning_rate: expected a number, found 'fast'"),
        ("lora_target: lm_head", "sft.yaml: lora_target: expected"),
    ],
)
def test_impossible_values_are_errors(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TrainingError) as caught:
        _plan(tmp_path, f"model_name_or_path: a/b\n{text}\n")
    assert says in str(caught.value)

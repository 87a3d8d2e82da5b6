"""What a person chooses.  The one place where a default, a range or the meaning of a knob stands.

Fields bear the names that TRL, PEFT and transformers give them.  The page, the command line, the README and the
tests read everything from here: a new knob is one field here and one use.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from .errors import ConfigError
from .knobs import Knobs
from .knobs import declare as _knob
from .records import BaseForm

Method = Literal["qlora", "lora", "lora-8bit"]
QuantType = Literal["nf4", "fp4"]
Initialisation = Literal["default", "gaussian", "eva", "pissa", "olora"]
LossOn = Literal["completion", "assistant", "all"]
Optimizer = Literal["auto", "adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]
Parallel = Literal["ddp", "fsdp"]
ReportTo = Literal["none", "trackio", "tensorboard", "wandb"]
Switch = Literal["auto", "on", "off"]
Schedule = Literal["cosine", "linear", "constant_with_warmup"]
MOST_TOKENS = 131_072
"""Of a row."""
MOST_ROWS = 4096
"""Of a pass."""
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")

SINGLE: dict[QuantType, BaseForm] = {"nf4": "nf4-single", "fp4": "fp4-single"}
"""The forms without double quantization."""
MAPPED_COLUMNS = ("messages", "prompt", "completion", "text", "context", "system")
_HUB_NAME = r"^[\w.\- \[\]:%]*$"
_MODULE_NAME = re.compile(r"[A-Za-z_][\w.]*")


class TrainConfig(Knobs):
    """One training run, as chosen by a person."""

    model: str = _knob(
        "smollm2-135m-instruct",
        "Model",
        "Base model",
        "A bundled model's name, a model id on the hub, a folder with safetensors, or shape:NAME with random weights",
        min_length=1,
        max_length=400,
    )
    dataset: str = _knob(
        "tickets",
        "Data",
        "Data set",
        "A bundled data set's name, a file (JSONL, JSON, CSV, TSV, Parquet), or a data set id on the hub",
        min_length=1,
        max_length=400,
    )
    dataset_config: str = _knob(
        "",
        "More about the data",
        "Configuration",
        "For a hub data set that has several; empty: its default",
        min_length=0,
        max_length=200,
        pattern=_HUB_NAME,
    )
    dataset_split: str = _knob(
        "",
        "More about the data",
        "Split",
        "For a hub data set; empty: train, or the first one",
        min_length=0,
        max_length=200,
        pattern=_HUB_NAME,
    )
    columns: str = _knob(
        "",
        "Data",
        "Columns",
        "Overrides the detected columns: prompt=question, completion=answer, or text=...; empty: as detected",
        min_length=0,
        max_length=400,
    )
    max_length: int = _knob(
        512,
        "Data",
        "Longest row (tokens)",
        "Tokens kept per row; longer rows are truncated at the end",
        ge=16,
        le=MOST_TOKENS,
    )
    eval_rows: int = _knob(
        32,
        "Data",
        "Held-out rows",
        "Rows kept out of training for measuring: at most this many, and at most a tenth of your data",
        ge=1,
        le=10_000,
    )
    method: Method = _knob(
        "qlora", "Method", "Method", "How the frozen base is stored: qlora 4-bit, lora 16-bit, lora-8bit 8-bit"
    )
    bnb_4bit_quant_type: QuantType = _knob(
        "nf4",
        "More about the method",
        "4-bit type",
        "For a qlora base: NF4's levels suit normally distributed weights, FP4's are floating-point values",
    )
    bnb_4bit_use_double_quant: bool = _knob(
        True,
        "More about the method",
        "Double quantization",
        "Quantize the quantization constants of a qlora base too: saves 0.37 bits per weight",
    )
    r: int = _knob(16, "Method", "Rank r", "Rank of the update matrices A and B", ge=1, le=256)
    lora_alpha: int = _knob(32, "Method", "LoRA alpha", "The update is scaled by alpha / r", ge=1, le=1024)
    lora_dropout: float = _knob(
        0.0, "More about the method", "LoRA dropout", "Dropout on the input of A while training", ge=0, lt=1
    )
    target_modules: str = _knob(
        "all-linear",
        "Method",
        "Target modules",
        "Layers that get an adapter: all-linear, attention (q, k, v, o), mlp (gate, up, down), or module names "
        "separated by commas",
        min_length=1,
        max_length=1000,
    )
    use_rslora: bool = _knob(
        False, "More about the method", "rsLoRA", "Scale by alpha / sqrt(r), which keeps high ranks effective"
    )
    use_dora: bool = _knob(
        False, "More about the method", "DoRA", "Learn the weights' magnitude and direction separately; slower"
    )
    init_lora_weights: Initialisation = _knob(
        "default",
        "More about the method",
        "Initialisation",
        "Of A and B: default starts with an update of zero; eva uses activations on the data; pissa and olora use the "
        "16-bit weights",
    )
    loss_on: LossOn = _knob(
        "completion",
        "More about the data",
        "Loss on",
        "completion: each answer is a row of its own, with the turns before it as the prompt; assistant: each "
        "conversation is one row, with the loss on all its answers, if the chat template marks them; all: every token",
    )
    learning_rate: float = _knob(
        2e-3,
        "Schedule",
        "Learning rate",
        "Peak learning rate of AdamW; 2e-3 suits the bundled 135M model, 7B models want 1e-4 to 2e-4",
        gt=0,
        le=1,
    )
    max_steps: int = _knob(
        110, "Schedule", "Steps", "Optimizer steps; -1 trains for the number of epochs instead", ge=-1, le=1_000_000
    )
    num_train_epochs: float = _knob(
        1.0, "Schedule", "Epochs", "Passes over the training rows; used when steps is -1", gt=0, le=1000
    )
    per_device_train_batch_size: int = _knob(
        4, "Schedule", "Batch size", "Rows in one forward pass", ge=1, le=MOST_ROWS
    )
    gradient_accumulation_steps: int = _knob(
        1, "Schedule", "Accumulation", "Forward passes per optimizer step", ge=1, le=4096
    )
    seed: int = _knob(
        0,
        "Schedule",
        "Seed",
        "Determines the row order, the adapter's initial values, and which rows are held out",
        ge=0,
        le=2**31,
    )
    optim: Optimizer = _knob(
        "auto", "Advanced", "Optimizer", "auto: paged AdamW with 32-bit state on CUDA, torch's AdamW elsewhere"
    )
    lr_scheduler_type: Schedule = _knob("cosine", "Advanced", "Schedule", "How the learning rate falls")
    warmup_steps: float = _knob(
        0.05,
        "Advanced",
        "Warm-up",
        "Steps over which the learning rate rises; below 1: a fraction of all steps",
        ge=0,
        le=100_000,
    )
    weight_decay: float = _knob(0.0, "Advanced", "Weight decay", "AdamW's weight decay", ge=0, le=1)
    max_grad_norm: float = _knob(
        1.0, "Advanced", "Gradient clipping", "The gradient is clipped to this norm", gt=0, le=1000
    )
    eval_steps: int = _knob(
        55,
        "Advanced",
        "Steps between held-out losses",
        "The held-out loss is also measured after the last step",
        ge=1,
        le=100_000,
    )
    gradient_checkpointing: Switch = _knob(
        "auto",
        "Advanced",
        "Gradient checkpointing",
        "Recompute activations to save memory; auto turns it on when needed",
    )
    packing: bool = _knob(
        False, "Advanced", "Packing", "Several rows in one sequence; needs an attention kernel that keeps them apart"
    )
    neftune_noise_alpha: float = _knob(
        0.0, "Advanced", "NEFTune noise", "Noise on the embeddings while training; 0 is off, 5 is usual", ge=0, le=100
    )
    eval_on_start: bool = _knob(
        False, "Advanced", "Held-out loss at the start", "Also measure it before the first step"
    )
    early_stopping_patience: int = _knob(
        0,
        "Advanced",
        "Early stopping",
        "Stop after this many evaluations without improvement; 0: never",
        ge=0,
        le=1000,
    )
    stop_on_divergence: bool = _knob(
        True, "Advanced", "Stop when it diverges", "Stop when the loss is NaN, infinite, or far above its initial value"
    )
    score_rows: int = _knob(
        0,
        "Advanced",
        "Rows answered at the end",
        "Held-out rows answered and scored when training ends",
        ge=0,
        le=10_000,
    )
    save_steps: int = _knob(
        50,
        "Advanced",
        "Steps between checkpoints",
        "A resumed run continues from the last one; 0: none by steps",
        ge=0,
        le=100_000,
    )
    save_minutes: float = _knob(
        10.0, "Advanced", "Minutes between checkpoints", "Whichever comes first; 0: none by time", ge=0, le=10_000
    )
    parallel: Parallel = _knob(
        "ddp",
        "Advanced",
        "Several processes",
        "ddp: each holds the whole model; fsdp: the model is sharded across them (GPUs only)",
    )
    report_to: ReportTo = _knob(
        "none", "Advanced", "Report to", "An experiment tracker that is installed in the app's environment"
    )

    def model_post_init(self, context: Any, /) -> None:
        if self.max_steps == 0:
            raise ConfigError("max_steps", "0 trains nothing; give -1 (use num_train_epochs), or 1 or more")
        column_mapping(self.columns)
        target_names(self.target_modules)
        if self.init_lora_weights in ("pissa", "olora") and self.method != "lora":
            raise ConfigError(
                "init_lora_weights",
                f"{self.init_lora_weights} is computed from 16-bit weights and the {self.method} base has none; choose "
                "default or eva, or method lora",
            )
        if self.parallel == "fsdp":
            self._refuse_unsharded()
        if self.init_lora_weights != "default" and self.use_dora:
            raise ConfigError(
                "use_dora", f"cannot be combined with init_lora_weights {self.init_lora_weights}; choose one of the two"
            )

    def _refuse_unsharded(self) -> None:
        if self.method == "lora-8bit":
            raise ConfigError("parallel", "fsdp cannot shard an 8-bit base; choose ddp, or method qlora or lora")
        if self.init_lora_weights in ("pissa", "olora"):
            raise ConfigError(
                "parallel", f"fsdp cannot undo what {self.init_lora_weights} changes in a sharded base; choose ddp"
            )

    def in_passes(self, count: int) -> TrainConfig:
        """The same step, its rows in so many passes; `count` divides those that were chosen."""
        rows = self.per_device_train_batch_size * (self.gradient_accumulation_steps // count)
        return self.changed(per_device_train_batch_size=rows, gradient_accumulation_steps=count)

    @property
    def base_form(self) -> BaseForm:
        """How the frozen base is stored."""
        if self.method != "qlora":
            return "16bit" if self.method == "lora" else "int8"
        return self.bnb_4bit_quant_type if self.bnb_4bit_use_double_quant else SINGLE[self.bnb_4bit_quant_type]


class GenerationSettings(Knobs):
    """How an answer is drawn."""

    max_new_tokens: int = _knob(
        128, "Sampling", "Longest answer (tokens)", "Longer answers are cut off here", ge=1, le=8192
    )
    temperature: float = _knob(
        0.0, "Sampling", "Temperature", "0 always takes the most likely token (greedy)", ge=0, le=5
    )
    top_p: float = _knob(
        1.0, "Sampling", "Top p", "Sample from the most likely tokens whose probabilities add up to this", gt=0, le=1
    )
    seed: int = _knob(
        0,
        "Sampling",
        "Seed",
        "Each column samples with a random generator of its own, seeded with this",
        ge=0,
        le=2**31,
    )


def column_mapping(text: str) -> dict[str, str]:
    """``prompt=question, completion=answer`` -> our names to theirs; raises `ConfigError`."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or not theirs or ours not in MAPPED_COLUMNS:
            known = ", ".join(MAPPED_COLUMNS)
            raise ConfigError("columns", f"{part!r} is not allowed; write NAME=COLUMN with NAME one of {known}")
        found[ours] = theirs
    return found


def target_names(text: str) -> tuple[str, ...] | None:
    """The layers' names that are meant; None for every linear one."""
    groups = {"attention": ATTENTION_MODULES, "mlp": MLP_MODULES}
    if text == "all-linear" or text in groups:
        return groups.get(text)
    names = tuple(name.strip() for name in text.split(","))
    if not all(_MODULE_NAME.fullmatch(name) for name in names):
        raise ConfigError(
            "target_modules",
            f"{text!r} is not allowed; give all-linear, attention, mlp, or module names separated by commas",
        )
    return names

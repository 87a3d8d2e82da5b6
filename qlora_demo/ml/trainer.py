"""A config -> TRL's `SFTTrainer`: where each knob meets the library's own."""

from __future__ import annotations

import functools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils
from peft import EvaConfig, LoraConfig, PeftModel, initialize_lora_eva_weights
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from ..catalog import BUNDLED_MODELS
from ..config import TrainConfig, target_names
from ..errors import ConfigError, DataError
from ..memory import ModelShape
from ..plan.choices import Chosen, Situation, choose, refuse, refuse_targets
from ..plan.memory_plan import Kind
from ..records import Choice
from ..runs import CHECKPOINTS
from ..settings import Settings
from ..sources import ADAPTER_FILES, BASE_FORM_FILE, resolve
from .data import Splits, training_set
from .device import device, faster_in_fp32, free_and_total, has_bf16
from .kernels import fuse_layers, fused_kernels_trouble, triton_trouble
from .load import load_base, load_tokenizer, read_config
from .ranks import is_main

INITIAL = "initial-adapter"
"""Where a run keeps the adapter that changes the base (PiSSA, OLoRA) as it was before the first step."""
INITIAL_DRAFT = ".initial-adapter-new"
_EVA_BATCHES = 64


class Trainer(SFTTrainer):
    """TRL's trainer, whose held-out loss is the mean over all trained tokens of the held-out rows: the library takes
    the mean of its batches' means, which changes with the batch size.  None where no token is trained.  On several
    ranks, rows that even out the last batch count again."""

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        found = super().prediction_step(model, inputs, *args, **kwargs)
        trained = (inputs["labels"][..., 1:] != -100).sum()
        self._heldout += torch.stack([found[0].double() * trained, trained.double()])
        return found

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._heldout = torch.zeros(2, dtype=torch.double, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, trained = self.accelerator.reduce(self._heldout).tolist()
        output.metrics.pop(f"{metric_key_prefix}_loss", None)
        if trained:
            output.metrics[f"{metric_key_prefix}_loss"] = loss / trained
        return output


def build_trainer(path: Path, config: TrainConfig, settings: Settings, splits: Splits) -> tuple[SFTTrainer, Chosen]:
    """An `SFTTrainer` for the config, and what was chosen for this device."""
    source = resolve(settings, config.model)
    refuse(config, device_kind())
    now = situation(read_config(source).model_type)
    check_targets(source, config)
    tokenizer = load_tokenizer(source)
    attention = "flash_attention_2" if config.packing else None
    model = load_base(source, config.base_form, "training", sharded=config.parallel == "fsdp", attention=attention)
    chosen = choose(config, ModelShape.from_config(model.config.get_text_config().to_dict()), now)
    chosen = replace(chosen, reasons=chosen.reasons + loss_kernels())
    trainer = make_trainer(path, config, chosen, splits, (model, tokenizer))
    if not len(trainer.train_dataset):
        raise DataError(f"max_length: no row keeps a trained token within {config.max_length} tokens; raise max_length")
    # A resumed run must go on in the number format it began in; PEFT would read the adapter in fp32.
    trainer.model.load_adapter = functools.partial(trainer.model.load_adapter, autocast_adapter_dtype=False)
    _initialise(path, config, trainer)
    return trainer, chosen


def make_trainer(
    path: Path, config: TrainConfig, chosen: Chosen, splits: Splits, loaded: tuple[Any, Any]
) -> SFTTrainer:
    """The library's trainer over a model and its tokenizer; the model gets an adapter where it has none yet."""
    model, tokenizer = loaded
    if chosen.kernels == "fused":
        fuse_layers(model)
    heldout = splits.heldout["test"][: config.eval_rows]
    try:
        trainer = Trainer(
            model=model,
            args=on_one_gpu(_sft_config(path, config, chosen)),
            train_dataset=training_set(splits.train, config.loss_on),
            eval_dataset=training_set(heldout, config.loss_on),
            processing_class=tokenizer,
            peft_config=None if isinstance(model, PeftModel) else lora_config(config),
        )
    except ValueError as exc:
        if config.loss_on != "assistant":
            raise
        raise ConfigError(
            "loss_on", f"assistant cannot be used here ({' '.join(str(exc).split())[:200]}); choose completion"
        ) from exc
    if chosen.fp16:
        adapters_to_fp32(trainer.model)
    return trainer


def on_one_gpu(args: SFTConfig) -> SFTConfig:
    """The library's settings for the one GPU of this process: of several that one process sees it would make a
    `DataParallel`, which TRL refuses."""
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def gathered_weights(trainer: SFTTrainer) -> dict[str, torch.Tensor] | None:
    """The whole weights where they are sharded, for which every rank must ask; None where each rank holds them all."""
    return trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None


def save_adapter(
    path: Path, config: TrainConfig, trainer: SFTTrainer, draft: Path, weights: dict[str, torch.Tensor] | None
) -> None:
    """Write the adapter so that it fits the base as it is stored: one that began by changing the base is saved as the
    difference, with twice the rank.  ``weights``: those to save, where the model does not hold them whole."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    changed_base = config.init_lora_weights in ("pissa", "olora")
    initial = {"path_initial_model_for_weight_conversion": str(path / INITIAL)} if changed_base else {}
    model.save_pretrained(draft, state_dict=weights, **initial)
    if config.model in BUNDLED_MODELS:
        _name_base(draft / ADAPTER_FILES[0], config.model)
    trainer.processing_class.save_pretrained(draft)
    (draft / BASE_FORM_FILE).write_text(json.dumps({"base_form": config.base_form}), "utf-8")


def _name_base(path: Path, name: str) -> None:
    """Have an adapter name its base as every home knows it; where it lies is this machine's."""
    told = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": name}
    path.write_text(json.dumps(told, indent=2, sort_keys=True), "utf-8")


def check_targets(source: str, config: TrainConfig) -> None:
    """Raise `ConfigError` where a named layer is not among the model's own; its weights are not read."""
    with torch.device("meta"):
        modules = AutoModelForCausalLM.from_config(read_config(source)).named_modules()
        linear = {name for name, module in modules if isinstance(module, torch.nn.Linear)}
    refuse_targets(config, linear)


def adapters_to_fp32(model: torch.nn.Module) -> None:
    """What is trained, in fp32: TRL casts it to bf16, and fp16's gradient scaler takes fp32 only."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def device_kind() -> Kind:
    """Whether this process trains on a GPU."""
    return "cuda" if device().type == "cuda" else "cpu"


def situation(model_type: str) -> Situation:
    """The device this process trains on, and what it has for a type of model."""
    trouble = fused_kernels_trouble(model_type)
    if device().type == "cuda":
        return Situation("cuda", has_bf16(), free_and_total()[0], trouble, triton=not triton_trouble())
    return Situation("cpu", True, free_and_total()[0], trouble, fp32_products=faster_in_fp32())


def _sft_config(path: Path, config: TrainConfig, chosen: Chosen) -> SFTConfig:
    on_cpu = device().type == "cpu"
    return SFTConfig(
        output_dir=str(path / CHECKPOINTS),
        max_length=config.max_length,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=config.seed,
        optim=chosen.optim,
        bf16=chosen.bf16,
        fp16=chosen.fp16,
        packing=config.packing,
        assistant_only_loss=config.loss_on == "assistant",
        neftune_noise_alpha=config.neftune_noise_alpha or None,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        eval_on_start=config.eval_on_start,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=config.report_to,
        disable_tqdm=True,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        dataloader_pin_memory=not on_cpu,
        **_spread(config, chosen),
    )


def _spread(config: TrainConfig, chosen: Chosen) -> dict[str, Any]:
    """FSDP2 where it is chosen: whole layers are gathered for their turn.

    Activations are recomputed by the model's own means there too: accelerate's wrappers draw another dropout when they
    recompute, and rename the layers, under which PEFT then finds no adapter to save.
    """
    checkpointing = {"activation_checkpointing": chosen.gradient_checkpointing}
    if config.parallel == "ddp":
        return checkpointing
    return checkpointing | {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}


def lora_config(config: TrainConfig) -> LoraConfig:
    """PEFT's own configuration of the adapter."""
    names = target_names(config.target_modules)
    eva = {"eva_config": EvaConfig(rho=1.0)} if config.init_lora_weights == "eva" else {}
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if names is None else list(names),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True if config.init_lora_weights == "default" else config.init_lora_weights,
        task_type="CAUSAL_LM",
        **eva,
    )


def _initialise(path: Path, config: TrainConfig, trainer: SFTTrainer) -> None:
    """EVA reads the data's activations; PiSSA and OLoRA have changed the base, and where they began is kept."""
    if config.init_lora_weights == "eva":
        batches = (batch for batch, _ in zip(trainer.get_train_dataloader(), range(_EVA_BATCHES), strict=False))
        kept = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]
        initialize_lora_eva_weights(trainer.model, kept, show_progress_bar=False)
    if config.init_lora_weights in ("pissa", "olora") and is_main() and not (path / INITIAL).exists():
        draft = path / INITIAL_DRAFT
        shutil.rmtree(draft, ignore_errors=True)
        kind = trainer.model.peft_config["default"]
        kind.init_lora_weights = True
        trainer.model.save_pretrained(draft)
        kind.init_lora_weights = config.init_lora_weights
        draft.rename(path / INITIAL)


def loss_kernels() -> tuple[Choice, ...]:
    """Let TRL's fused head project only the positions that have a label, and compute in torch where Triton cannot.

    TRL does the first wherever Triton is installed for a GPU, and scores every position elsewhere to spare compilers
    changing shapes.  The CPU compiles nothing, and the head over a whole prompt is more than half of a small model's
    step.
    """
    trouble = triton_trouble()
    if device().type == "cpu" or trouble:
        trl.trainer.utils._use_triton = lambda device: True
        trl.kernels.chunked_logprob._use_triton = lambda device: False
    if not trouble:
        return ()
    return (
        Choice("Loss kernels", "torch's", f"Triton cannot launch its own, so the loss takes more memory: {trouble}"),
    )

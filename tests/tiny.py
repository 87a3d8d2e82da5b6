"""A model small enough to train in seconds, and an adapter for it that changes what it says."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlora_demo.ml.shapes import shape_tokenizer


def save_tiny_model(folder: Path) -> Path:
    """Write model and tokenizer to a folder."""
    tokenizer = shape_tokenizer(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(model: Path, folder: Path, scale: float = 0.1) -> Path:
    """Write a random adapter for the tiny model; `scale` 0 makes one that changes nothing."""
    base = LlamaForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    adapted.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(model).save_pretrained(folder)
    return folder

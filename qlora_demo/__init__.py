"""Fine-tune a language model with QLoRA and judge the result side by side."""

__version__ = "0.1.0"

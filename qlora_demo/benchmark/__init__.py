"""Measurements of QLoRA against LoRA and of latency: their settings, cases, process, files, tables and plots."""

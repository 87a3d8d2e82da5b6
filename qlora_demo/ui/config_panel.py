"""Presets, and a config saved, loaded and shared: below the form, filling it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import TrainConfig
from ..presets import KEPT, PRESETS, apply_preset
from . import controls
from .gate import Gate


def build(chosen: controls.Controls, gate: Gate) -> gr.HTML:
    """Draw the panel and wire it to the form; the place for the form as a command."""
    names, inputs = list(chosen), list(chosen.values())
    with gr.Accordion("Presets and sharing", open=False):
        preset = gr.Radio(
            list(PRESETS), label="Preset", info="model, data, held-out rows and seed stay", elem_id="preset"
        )
        with gr.Row():
            save = gr.Button("Save as JSON", size="sm", elem_id="save-config")
            load = gr.UploadButton("Load JSON", file_types=[".json"], size="sm", elem_id="load-config")
        file = gr.File(label="Configuration", interactive=False, visible=False, elem_id="config-file")
        command = gr.HTML(elem_id="command")

    def use(name: str, *values: Any) -> list[Any]:
        return controls.fill(apply_preset(name, controls.read(TrainConfig, names, values)), names)

    def keep(*values: Any) -> gr.File:
        config = controls.read(TrainConfig, names, values)
        path = Path(tempfile.mkdtemp(prefix="qlora-demo-")) / "config.json"
        path.write_text(config.model_dump_json(indent=2), "utf-8")
        return gr.File(str(path), visible=True)

    def read(path: str) -> list[Any]:
        return controls.fill(TrainConfig.from_file(Path(path)), names)

    gate.on(preset.input, use, [preset, *inputs], inputs, needs="operator")
    for name, part in chosen.items():
        if name not in KEPT:  # what is edited is no longer the preset's
            gate.script(part.input, "() => null", [], [preset])
    gate.on(save.click, keep, inputs, file, needs="operator")
    gate.on(load.upload, read, load, inputs, needs="operator")
    return command

"""The only rooms that import gradio."""

"""Fine-tune a language model with QLoRA and judge the result side by side."""

import gc
import os

__version__ = "0.1.0"

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Gradio sums up its last 10,000 calls after each one, for a page that is not offered.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**31),
    "TOKENIZERS_PARALLELISM": "true",
}
"""No telemetry leaves.  Libraries read this when they are imported, so it stands here, before any of them."""

for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)

LOOKS = gc.get_threshold()
gc.set_threshold(10_000)
"""The libraries make a million objects that stay; to look through the young ones at every 700, as Python would, took a
seventh of each process's start.  Once they are there, `system.heap.collect_as_usual`."""

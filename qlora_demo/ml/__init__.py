"""The only rooms that import torch, transformers, peft, trl, bitsandbytes and datasets."""

import logging
import warnings

# At import it reports that an optional kernel of the hub is not there; the one in its wheel serves.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# PEFT reads the attribute under its old name.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)

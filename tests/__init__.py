"""No test reaches a hub; said here, before any library reads it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

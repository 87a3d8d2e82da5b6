"""A file of the home, offered for download."""

from __future__ import annotations

from pathlib import Path

from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder


def offered(path: Path) -> str:
    """A copy where Gradio serves files from; the home itself is served to nobody.

    Gradio refuses to serve what lies outside the working and temporary directories, and forgets the copy in time.
    """
    copy: str = save_file_to_cache(path, get_upload_folder())
    return copy

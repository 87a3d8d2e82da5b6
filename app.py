"""The web app, as `python -m qlora_demo serve` starts it; a wrong setting ends it with one line.

    python app.py

Host and port follow GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
"""

import sys

from qlora_demo.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve"]))

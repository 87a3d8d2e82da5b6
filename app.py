"""The web app: read settings, build services, build the page, launch.

    python app.py

Host and port follow GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
"""

from qlora_demo.compose import build_services, serve
from qlora_demo.settings import Settings

if __name__ == "__main__":
    serve(build_services(Settings.from_environment()))

"""python -m qlora_demo COMMAND"""

from .cli import main

raise SystemExit(main())

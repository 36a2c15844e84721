"""`python main.py WORDS` is `finetrace run WORDS`: organisms, models and methods by name."""

from __future__ import annotations

import sys

from finetrace.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()

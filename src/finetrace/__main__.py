"""`python -m finetrace` is the command `finetrace`."""

from finetrace.cli import main

main()

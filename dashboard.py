"""Where `streamlit run dashboard.py` arrives. There is no dashboard yet, and nothing here that looks like one."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

MISSING = (
    "There is no interactive dashboard yet, only reports: `finetrace run organism=... diffing/method=...` writes one, a "
    "page that is looked through in a browser and needs no server; `finetrace report DIR` draws it again from the folder "
    "that a run named; `finetrace compare` puts many runs side by side."
)


def main() -> int:
    """Says so where it can be seen: on the page under streamlit, else on standard error with exit code 2."""
    if find_spec("streamlit") is not None:
        streamlit = import_module("streamlit")
        if streamlit.runtime.exists():
            streamlit.error(MISSING)
            return 0
    print(f"finetrace: {MISSING}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

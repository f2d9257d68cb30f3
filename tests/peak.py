"""Run a command of layerbank and write down the most memory that it had, in bytes: `python tests/peak.py FILE plan --model ...`.

What the system says of a process that is gone (`ru_maxrss`) is 110 MB more, which torch's libraries touch as they are unloaded.
"""

from __future__ import annotations

import atexit
import sys
from pathlib import Path

from layerbank.cli import main
from layerbank.memory import peak_memory_bytes

if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    atexit.register(lambda: file.write_text(str(peak_memory_bytes()), encoding="utf-8"))
    main()

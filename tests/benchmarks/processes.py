"""Whether a process that a test started, or its child, still runs."""

import time
from pathlib import Path


def has_ended(process_id: int, within_s: float = 5.0) -> bool:
    """Whether it is gone, or dead and unburied, within so many seconds."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False

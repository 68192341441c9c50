"""python -m xlnet_fast.train.proof --out DIR"""

from __future__ import annotations

import sys

from xlnet_fast.train.proof.questions import main

if __name__ == "__main__":
    sys.exit(main())

"""Run by torchrun: fine-tune with the options of each JSON file named on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from xlnet_fast.train.finetune import FinetuneOptions, finetune

for file in sys.argv[1:]:
    values = json.loads(Path(file).read_text(encoding="utf-8"))
    values |= {"output": Path(values["output"]), "column": tuple(values["column"])}
    finetune(FinetuneOptions(**values))

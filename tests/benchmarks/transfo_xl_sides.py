"""A small Transformer-XL for the tests of its benchmark, and our worker in the test's process."""

from __future__ import annotations

import json
import os

import torch

from benchmarks.cases.transfo_xl import TransfoXLCase, TransfoXLGeometry
from benchmarks.harness.processes import ProcessFailed
from benchmarks.providers.transfo_xl import Side
from benchmarks.providers.transfo_xl_worker import Worker

GEOMETRY = TransfoXLGeometry(2, 16, 2, 24, 60, (20, 40), 2, 10)
CASES = (
    TransfoXLCase("forward", 2, 6, 9, peak=True),
    TransfoXLCase("training_step", 2, 14, 6),
    TransfoXLCase("text", 2, 5, 9, new=7),
    TransfoXLCase("forward", 2, 6, 9, "bf16"),
)


class Here:
    """Our worker in this process."""

    process_id = os.getpid()

    def __init__(self):
        self.worker = Worker()
        self.asked = []

    def ask(self, **message):
        self.asked.append(message["do"])
        answer = self.worker.answer(json.loads(json.dumps(message)))
        if "error" in answer:
            raise ProcessFailed(answer["error"])
        return answer

    def close(self):
        self.worker = None


def side(folder):
    """Ours, which writes its weights to a folder."""
    made = Side("ours", Here(), GEOMETRY, folder)
    made.load(torch.get_num_threads(), make=True)
    return made

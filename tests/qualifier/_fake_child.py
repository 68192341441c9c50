"""A child that computes nothing: it answers as one would, and misbehaves where it is told to.

Arguments: what to do, the backend and the class where ("*": any), and a file that it notes its
beginning, its process id and its end in.
"""

from __future__ import annotations

import json
import os
import sys
import time

WHAT, BACKEND, CLASS = sys.argv[1:4]
NOTES = sys.argv[4] if len(sys.argv) > 4 else None

IDENTITY = {
    "device": "cpu", "name": "a CPU", "capability": "none", "multiprocessors": 2, "driver": "",
    "torch": "2.0", "cuda": "", "triton": "", "kernels": "0", "extension": "",
}  # fmt: skip


def say(kind: str, **content: object) -> None:
    print(json.dumps({"kind": kind, **content}), flush=True)


def note(what: str) -> None:
    if NOTES:
        with open(NOTES, "a") as notes:
            notes.write(f"{what} {os.getpid()}\n")


def row(order: dict, task: dict, direction: str, timed: bool) -> dict:
    timing = {"shape": "1x64", "time_us": 5.0, "baseline_us": 10.0, "hf_us": 20.0}
    return {
        "op": task["op"], "operands": task["operands"], "backend": order["backend"],
        "dtype": task["dtype"], "head_dim": str(task["head_dim"] or ""), "direction": direction,
        "status": "passed", "reason": "", "error": 0.5, "bound": 1.0,
        "timings": [timing] if timed else [],
    }  # fmt: skip


def misbehave(answer: dict) -> None:
    if WHAT in ("abort", "abort-tiles-64") or (
        WHAT == "wrong-then-abort" and answer["direction"] == "backward"
    ):
        os.abort()
    elif WHAT == "exit":
        print("first\nno such symbol", file=sys.stderr, flush=True)
        os._exit(3)
    elif WHAT == "hang":
        time.sleep(1000)
    elif WHAT == "garbage":
        print("Segmentation fault (almost)", flush=True)
    elif WHAT == "broken":
        say("fatal", text="an illegal memory access was encountered")
    elif WHAT.startswith("wrong"):
        answer |= {"status": "failed", "reason": "out is off by 1", "error": None}
    elif WHAT == "infinite":
        answer |= {"error": float("inf")}
    elif WHAT == "unasked":
        answer |= {"backend": "reference"}
    elif WHAT == "untimed":
        answer |= {"timings": []}
    elif WHAT == "slow":
        time.sleep(0.1)


order = json.loads(sys.stdin.readline())
note("begin")
print("a library greets whoever imports it", flush=True)
say("ready", identity=IDENTITY)
if order["backend"] == BACKEND and "tiles" in WHAT:
    say("tiles", tiles={"forward/bfloat16/64/light": [int(WHAT[-2:]), 32, 4, 2, 255, 206, 24576]})
for timed in (False, True):
    for task in order["tasks"]:
        copies = task["op"] == "concat_memory"  # which have no gradient
        for direction in ("forward",) if copies else ("forward", "backward"):
            say("begin", text=f"{task['op']} {task['operands']} {direction}")
            answer = row(order, task, direction, timed)
            if BACKEND in (order["backend"], "*") and CLASS in (task["operands"], "*"):
                misbehave(answer)
            say("row", row=answer)
note("end")
say("done")

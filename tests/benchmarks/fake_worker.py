"""A worker for the tests of the harness. The case's number of tokens says what it does."""

import os
import sys

from benchmarks.peers.protocol import Ready, Task, Unable, serve

WELL, UNABLE, BROKEN, DIES = 1, 2, 3, 4


def prepare(task: Task) -> Ready:
    print("a library prints what it likes")
    if task.case.tokens == UNABLE:
        raise Unable("it has no such case")
    if task.case.tokens == BROKEN:
        raise ZeroDivisionError("by 0")

    def run() -> float:
        if task.case.tokens == DIES:
            print("killed by a signal", file=sys.stderr)
            os._exit(1)
        with open(task.folder / "turns", "a") as turns:
            turns.write(f"{task.case.depth}\n")
        return float(task.case.depth)

    return Ready(run, f"{task.threads} threads", {"fake": "1.0"}, step_bytes=1000)


if __name__ == "__main__":
    serve(prepare)

"""One contender in a process of its own: answers JSON lines on stdin with JSON lines on stdout.

{"do": "prepare", "what": "bn", "case": {...}}   make the case of a peer's function; warm it up
{"do": "time", "samples": 5}                                    median seconds of one call
{"do": "memory"}                               most memory since the import, beyond what it took
"""

import gc
import importlib
import json
import os
import resource
import statistics
import sys
import time

# A sample repeats the call for at least this long, so that the clock's grain does not count.
SAMPLE_SECONDS = 2e-3
WARMUP_SECONDS = 0.05


def elapsed(call, number):
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def prepare(peer, what, case):
    call = getattr(peer, what)(**case)
    # Three calls also take a recorded step past its recording.
    for _ in range(3):
        call()
    end = time.perf_counter() + WARMUP_SECONDS
    once = elapsed(call, 1)
    while time.perf_counter() < end:
        once = min(once, elapsed(call, 1))
    return call, max(1, round(SAMPLE_SECONDS / once))


def measure(call, number, samples):
    gc.collect()
    gc.disable()
    try:
        # The first sample finds the caches cold, after another contender's turn.
        elapsed(call, number)
        return statistics.median(elapsed(call, number) for _ in range(samples))
    finally:
        gc.enable()


def most_memory():
    """Largest resident size so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    call, number = None, 1

    def say(**answer):
        answers.write(json.dumps(answer) + "\n")

    try:
        peer = importlib.import_module(f"peers.{sys.argv[1]}")
    except ImportError as error:
        say(error=f"{type(error).__name__}: {error}")
        return
    say(versions=peer.VERSIONS)
    imported = most_memory()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                call = None  # frees the last case first
                call, number = prepare(peer, request["what"], request["case"])
                say(number=number)
            elif request["do"] == "memory":
                say(bytes=most_memory() - imported)
            else:
                say(seconds=measure(call, number, request["samples"]))
        except Exception as error:
            say(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


if __name__ == "__main__":
    main()

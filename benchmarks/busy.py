"""Two threads beside one busy process, under different ways in which OpenMP's threads can wait.

With libgomp's default, threads that wait for each other spin, and beside a busy process they spin
against it. Each pair is one piece of work, alone and beside the busy process. The work is done in a
process of its own, because libgomp reads the variables when it is loaded.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from _common import finish, options, summary

TARGET = 3.0  # times as long as alone, with llmnb's own setting
POLICIES = {
    "default": {},
    "spincount 1000": {"GOMP_SPINCOUNT": "1000"},
    "spincount 5000": {"GOMP_SPINCOUNT": "5000"},
    "spincount 20000": {"GOMP_SPINCOUNT": "20000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
OURS = "spincount 5000"  # what llmnb.hardware.share_the_cpu sets
WORK = """
import json, sys, time
import torch
from llmnb import generation, models
from llmnb.transformer import Decoder
torch.set_num_threads(2)
new_tokens, products = int(sys.argv[1]), int(sys.argv[2])
name = "SmolLM2-135M-Instruct-q4_1"
decoder = Decoder.from_pretrained(name)
ids = models.load_tokenizer(name)("The best films are", return_tensors="pt")["input_ids"]
matrix = torch.ones(512, 512)
def decode():
    generation.generate(decoder, ids, max_new_tokens=new_tokens)
def multiply():
    for _ in range(products):
        matrix @ matrix
seconds = {}
for work in (decode, multiply):
    work()
    start = time.perf_counter()
    work()
    seconds[work.__name__] = time.perf_counter() - start
print(json.dumps(seconds))
"""


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """One process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(policy: str, is_busy: bool, quick: bool) -> dict[str, float]:
    """Seconds of each piece of work, in a new process under this policy."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    size = ["8", "50"] if quick else ["64", "500"]
    with busy_process() if is_busy else contextlib.nullcontext():
        result = subprocess.run(
            [sys.executable, "-c", WORK, *size],
            env=environment | POLICIES[policy],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Interleave the policies, print a table, and summarize our own setting."""
    chosen = options(__doc__)
    rounds = 1 if chosen.quick else 7
    new_tokens = 8 if chosen.quick else 64
    pairs = {policy: [] for policy in POLICIES}  # (alone, beside the busy process)
    for number in range(rounds):
        for policy in POLICIES:
            order = (False, True) if number % 2 == 0 else (True, False)
            seconds = {is_busy: measure(policy, is_busy, chosen.quick) for is_busy in order}
            pairs[policy].append((seconds[False], seconds[True]))
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    rows = []
    print(f"{'':16} {'work':9} {'busy / alone':>13} {'spread':>16} {'alone':>10}")
    for policy, measured in pairs.items():
        for work in ("decode", "multiply"):
            ratios = [busy[work] / alone[work] for alone, busy in measured]
            alone_seconds = statistics.median(alone[work] for alone, _ in measured)
            row = {"policy": policy, "work": work, "ratio": round(statistics.median(ratios), 2)}
            row |= {"low": round(min(ratios), 2), "high": round(max(ratios), 2)}
            row["seconds_alone"] = round(alone_seconds, 3)
            text = f"{alone_seconds:.2f} s"
            if work == "decode":
                row["tokens_per_second_alone"] = round(new_tokens / alone_seconds, 1)
                text = f"{new_tokens / alone_seconds:.1f} tok/s"
            rows.append(row)
            spread = f"{row['low']:.2f} … {row['high']:.2f}"
            print(f"{policy:16} {work:9} {row['ratio']:13.2f} {spread:>16} {text:>10}")
    timed = [(busy["decode"], alone["decode"]) for alone, busy in pairs[OURS]]
    finish(summary("busy", timed, TARGET, rows), chosen.json)


if __name__ == "__main__":
    main()

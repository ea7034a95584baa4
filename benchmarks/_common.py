"""What the benchmarks share: interleaved pairs, the median ratio with its spread, one JSON form."""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llmnb import files
from llmnb.runs import facts


def options(description: str, **flags: str) -> argparse.Namespace:
    """--quick (fewer and smaller pairs), --json FILE, and further flags with their help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller pairs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs(ours: Callable, reference: Callable, n: int) -> list[tuple[float, float]]:
    """n interleaved timings, (ours, reference), after one warm-up of each; the order alternates."""
    ours(), reference()
    timed = []
    for number in range(n):
        if number % 2:
            second, first = seconds(reference), seconds(ours)
        else:
            first, second = seconds(ours), seconds(reference)
        timed.append((first, second))
        print(f"  pair {number + 1} of {n}: {first:.3f} s / {second:.3f} s", file=sys.stderr)
    return timed


def summary(name: str, timed: list[tuple[float, float]], target: float, rows: list[dict]) -> dict:
    """The median of the paired ratios, ours over the reference, with its spread."""
    ratios = sorted(ours / reference for ours, reference in timed)
    result = {
        "name": name,
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "target": target,
        "rows": rows,
        "machine": facts.hardware() | {"host": None, "processor": platform.processor()},
        "versions": facts.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
    }
    if result["low"] <= target <= result["high"]:
        verdict = "inconclusive: the spread spans the target"
    else:
        verdict = "met" if result["high"] < target else "missed"
    spread = f"{result['low']:.3f} … {result['high']:.3f}"
    print(f"{name}: {result['ratio']:.3f} ({spread}), target < {target:g}: {verdict}")
    return result | {"verdict": verdict}


def finish(result: dict, file: Path | None) -> None:
    """Write the result where --json says."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, result)

#!/usr/bin/env python3
"""The table of tests/bench/figure5: figure5_table.py OUT SEED... (Markdown on stdout)."""
import json
import pathlib
import statistics
import sys

ABLATIONS = [
    ("both", "permutation and reflection"),
    ("permute", "permutation only"),
    ("reflect", "reflection only"),
    ("none", "neither"),
]


def newest_result(run):
    """result.json of the attempt with the highest number that has one."""
    attempts = [p for p in run.glob("attempt-*/result.json")]
    if not attempts:
        sys.exit(f"figure5_table: no result in {run}")
    newest = max(attempts, key=lambda p: int(p.parent.name.split("-")[1]))
    result = json.loads(newest.read_text())
    if result["outcome"] != "done":
        sys.exit(f"figure5_table: {run} is not done, but {result['outcome']}")
    return result


def main():
    out, seeds = pathlib.Path(sys.argv[1]), sys.argv[2:]
    top1, kernels, last = {}, {}, None
    for name, _ in ABLATIONS:
        for seed in seeds:
            last = newest_result(out / f"{name}-{seed}")
            top1[name, seed] = 100 * last["final"]["top1"]
        info = json.loads((out / f"{name}-{seeds[0]}.info.json").read_text())
        kernels[name] = info["distinct_kernels"]
    print(f"ResNet-34 of width 8, ring of {last['ring_size']:,} for {last['generated']:,} generated")
    print(f"weights, {last['epochs']} epochs; validation top-1 in % at the last epoch.")
    print()
    print("| ablation | distinct kernels | mean |", *[f"seed {s} |" for s in seeds], end=" ")
    print("difference to both, per seed |")
    print("|---|---|---|" + "---|" * len(seeds) + "---|")
    for name, words in ABLATIONS:
        values = [top1[name, s] for s in seeds]
        differences = [f"{top1[name, s] - top1['both', s]:+.2f}" for s in seeds]
        cells = [words, kernels[name], f"{statistics.mean(values):.2f}"]
        cells += [f"{v:.2f}" for v in values]
        cells.append("" if name == "both" else ", ".join(differences))
        print("| " + " | ".join(str(c) for c in cells) + " |")


if __name__ == "__main__":
    main()

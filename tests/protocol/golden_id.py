#!/usr/bin/env python3
"""Computes the golden job ids of test_ids.c without any of Ringmaster's code: python3 golden_id.py"""
import hashlib
import json


def canonical(v):
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, float):
        return "%.17g" % v
    if isinstance(v, dict):
        return "{" + ",".join(json.dumps(k) + ":" + canonical(v[k]) for k in sorted(v)) + "}"
    if isinstance(v, list):
        return "[" + ",".join(map(canonical, v)) + "]"
    return json.dumps(v, ensure_ascii=False)


spec = {
    "model": {"arch": "resnet18", "stem": "cifar", "width": 64, "classes": 10},
    "rpg": {"scope": "global", "size": 2359296, "permute": True, "reflect": True, "index": "even",
            "include_stem": False, "init_std": 0, "seed": 7},
    "data": {"kind": "cifar10", "size": 32, "subset": 0, "eval_subset": 0, "train_count": 20000,
             "eval_count": 4000, "seed": 1, "augment": "crop", "normalise": "cifar10",
             "on_error": "fail"},
    "train": {"epochs": 200, "batch": 128, "optimiser": "sgd", "lr": 0.1, "momentum": 0.9,
              "nesterov": False, "weight_decay": 5e-4, "decay_on": "all", "schedule": "multistep",
              "milestones": [60, 120, 160], "gamma": 0.1, "decay_epochs": 45, "warmup": 0,
              "seed": "18446744073709551615", "exact": False, "shard": 128, "eval_every": 1,
              "precision": "fp32"},
    "backend": {"name": "auto"},
}
for repeat in (0, 3):
    if repeat:
        spec["repeat"] = repeat
    text = canonical({"data": "00112233445566778899aabbccddeeff" * 2, "spec": spec, "version": 1})
    print(repeat, hashlib.sha256(text.encode()).hexdigest()[:32], text)

"""Profiles made by hand: what each kind of operator costs is known."""

from __future__ import annotations

from advisor.device.profile import _NEEDED, KIND, SCHEMA_VERSION


def profile(**more):
    """A document in which everything takes 1 us a call and 1 ns a FLOP."""
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "machine": "Linux aarch64",
        "torch": "2.10.0",
        "threads": 4,
        "runtime_bytes": 150_000_000,
        "watts": None,
        "slowdown": 1.0,
        "throttled": None,
        "measuring_seconds": 60.0,
        "in_context": {"factor": 1.0, "seconds_per_call": 0.0},
        "operators": [operator(kind, phase) for kind, phase in _NEEDED],
        "samples": [],
    } | more


def operator(kind, phase, **more):
    per = dict.fromkeys(("flop_in_8s", "flop_in_16s", "byte", "new_byte"), 0.0) | {"call": 1e-6, "flop": 1e-9}
    prices = {f"seconds_per_{name}": price for name, price in per.items()}
    return {"kind": kind, "phase": phase, **prices, "median_error": 0.1} | more

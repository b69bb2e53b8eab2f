"""A recommendation as JSON, and back. `schema.json` beside this file documents every key."""

from __future__ import annotations

import json
import os
from typing import Any

from advisor.errors import InputError, first_line
from advisor.names import missing_report
from advisor.plain import decode, encode, shortened
from advisor.records import Recommendation
from advisor.system.files import parse_json, read_text, write_whole

SCHEMA_VERSION = 1


def to_json(recommendation: Recommendation) -> dict[str, Any]:
    """Plain dicts, lists, strings, numbers, booleans and None, in the shape of `schema.json`."""
    encoded = encode(recommendation)
    first: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **{key: encoded[key] for key in ("answer", "outcome", "recommended")},
    }
    return {**first, **encoded}


def from_json(document: object) -> Recommendation:
    """The recommendation that `to_json` wrote. Raises InputError on anything else."""
    if not isinstance(document, dict) or "schema_version" not in document:
        raise _not_ours("it has no schema_version")
    version = document["schema_version"]
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise InputError(
            f"saved recommendation: schema_version is {shortened(version)}, but this release "
            f"reads {SCHEMA_VERSION}; run the advice again, or use the release that wrote the file"
        )
    try:
        recommendation = decode(Recommendation, document)
    except InputError as error:
        raise _not_ours(str(error)) from error
    known = [evaluation.candidate.id for evaluation in recommendation.evaluations]
    if len(set(known)) < len(known):
        raise _not_ours("candidates holds one id twice")
    judged = [evaluation.accuracy for evaluation in recommendation.evaluations if evaluation.accuracy]
    if any(accuracy.seeds < 1 for accuracy in judged):
        raise _not_ours("an accuracy's seeds is below 1")
    for key, ids in (
        ("recommended", [recommendation.recommended]),
        ("front", recommendation.front),
    ):
        for missing in (name for name in ids if name is not None and name not in known):
            raise _not_ours(f"{key} names {shortened(missing)}, which is not among the candidates")
    return recommendation


def dumps(recommendation: Recommendation) -> str:
    """JSON text, indented, without NaN. Raises ValueError on a figure that is not finite."""
    return json.dumps(to_json(recommendation), indent=2, allow_nan=False) + "\n"


def loads(text: str) -> Recommendation:
    """The recommendation in JSON text. Raises InputError."""
    try:
        document = parse_json(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise _not_ours(f"it is not JSON ({first_line(error)})") from error
    return from_json(document)


def write_json(recommendation: Recommendation, path: str | os.PathLike[str]) -> None:
    """Write `dumps` to a file, whole or not at all. Raises InputError where that can't be done."""
    write_whole(path, dumps(recommendation))


def read_json(path: str | os.PathLike[str]) -> Recommendation:
    """The recommendation in a file that `write_json` wrote. Raises InputError."""
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise InputError(missing_report(str(path))) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: can't be read ({reason}); give a file written with --json") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text; give a file written with --json") from error
    try:
        return loads(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _not_ours(reason: str) -> InputError:
    return InputError(f"not a saved recommendation: {reason}; give a file written with --json")

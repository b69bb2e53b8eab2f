"""What `--format json` prints, held against the schema that is published for it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
from referencing import Registry, Resource

import advisor

_ROOT = Path(advisor.__file__).parent
_answers = Resource.from_contents(json.loads((_ROOT / "report" / "schema.json").read_text()))
PRINTED = jsonschema.Draft202012Validator(
    json.loads((_ROOT / "cli" / "schema.json").read_text()),
    registry=Registry().with_resource("../report/schema.json", _answers),
)

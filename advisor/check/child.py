"""Inside the child process: one model's targets are priced. `check.run` starts it, with a job in a file.

A model's import may print, fail, hang or end the process: all that the parent needs is what this one writes.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from advisor.check.configuration import Target
from advisor.check.price import Pricer
from advisor.check.records import Snapshot
from advisor.errors import AdvisorError, first_line
from advisor.plain import decode, encode
from advisor.system.files import write_whole
from advisor.system.machine import end_with_parent


def main(path: str) -> None:
    """Price the targets that the job names, and write what came of each beside the job."""
    end_with_parent()
    torch.set_num_threads(1)  # workspace depends on it: whatever the machine has, the figures are the same
    job = Path(path)
    content = json.loads(job.read_text(encoding="utf-8"))
    pricer = Pricer(ahead=content["ahead"])
    results = [_result(pricer, item, content["to_keep"]) for item in content["targets"]]
    write_whole(job.with_suffix(".result"), json.dumps(results))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever threads the model has started


def _result(pricer: Pricer, item: Any, to_keep: bool) -> dict[str, Any]:
    before = decode(Snapshot, item["before"]) if item["before"] is not None else None
    try:
        return {"checked": encode(pricer.price(decode(Target, item["target"]), before, to_keep=to_keep))}
    except AdvisorError as error:
        return {"error": str(error)}
    except BaseException as error:  # noqa: BLE001 - whatever a user's module does: the parent says it
        traceback.print_exc()  # the parent shows it when it is asked for more
        return {"error": f"{type(error).__name__}: {first_line(error)}"}

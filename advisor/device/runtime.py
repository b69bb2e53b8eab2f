"""What Python, PyTorch and Pillow take on this machine, as a bundle's finetune.py loads them."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from advisor.device.program import program
from advisor.errors import AdvisorError, first_line
from advisor.store import Store
from advisor.system.files import parse_json

_TIMEOUT_SECONDS = 120
_KIND = "runtime"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is resident of the runtime."""

    bytes: int
    kernel_bytes: int  # more for each kernel that is made


_measured: dict[str, Footprint] = {}  # in this process, by key: what was measured stays as it was


class HereRuntime:
    """The runtime of this machine: recalled, or measured in a fresh process that starts at once."""

    def __init__(self, store: Store | None) -> None:
        """Begin, unless it is known."""
        self._store = store
        self._key = {
            "torch": torch.__version__,
            "pillow": _pillow(),
            "python": platform.python_version(),
            "machine": platform.platform(),
            "threads": torch.get_num_threads(),
            "program": hashlib.sha256(program().encode()).hexdigest(),
        }
        self._name = json.dumps(self._key, sort_keys=True)
        self._process: subprocess.Popen[str] | None = None
        known = store.get(_KIND, self._key) if store is not None else None
        if known is not None:
            _measured[self._name] = Footprint(int(known["bytes"]), int(known["kernel_bytes"]))
        elif self._name not in _measured:
            threads = str(torch.get_num_threads())
            with suppress(OSError):
                self._process = subprocess.Popen(  # noqa: S603 - our own
                    [sys.executable, "-P", "-c", program(), "--runtime", "--threads", threads],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # a Ctrl-C is for the run, which ends it
                )

    def footprint(self) -> Footprint:
        """What is resident, once it is measured. Raises AdvisorError where it can't be."""
        if self._name not in _measured:
            if self._process is None:
                raise AdvisorError("what the runtime takes can't be measured: no process can be started")
            try:
                text, _ = self._process.communicate(timeout=_TIMEOUT_SECONDS)
                told = parse_json(text)
                _measured[self._name] = Footprint(int(told["runtime_bytes"]), int(told["kernel_bytes"]))
            except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
                raise AdvisorError(
                    f"what the runtime takes can't be measured: {first_line(error)}; give --runtime-overhead"
                ) from error
        if self._store is not None:
            self._store.put(_KIND, self._key, asdict(_measured[self._name]))
        return _measured[self._name]

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()


def _pillow() -> str:
    try:
        return version("pillow")
    except PackageNotFoundError:
        return ""

"""A board, as far as this machine can be one: an interpreter that finds torch and Pillow and nothing else.

As a program it runs the fine-tunes of several bundles, each in a process of its own, forked after torch was
imported, with what `finetune.py` sets before that: `python bare.py JOBS.json`, each job a list of the bundle,
the photos, the output, more arguments, and after how many updates the power is cut (0: never). It prints a
line of JSON for each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

# torch, what it imports, and Pillow; not numpy, which torch does without.
_PACKAGES = (
    "torch",
    "torchgen",
    "functorch",
    "nvidia",
    "triton",
    "typing_extensions.py",
    "filelock",
    "sympy",
)
_PACKAGES += ("mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "PIL", "pillow.libs")


def run_bare(jobs, folder):
    """What each job came to: exit code, output, errors, modules that were loaded, peak memory."""
    from advisor.costs.process import GIVE_BACK  # here: the bare interpreter has none but a bundle's own

    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    for place in map(Path, sys.path):
        for name in _PACKAGES:
            if (place / name).exists() and not (packages / name).exists():
                (packages / name).symlink_to(place / name)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-P", __file__, str(folder / "jobs.json")],
        env=GIVE_BACK | {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _fine_tune(bundle, photos, output, arguments, cut_after):
    sys.path.insert(0, bundle)
    sys.argv = ["finetune.py", photos, "--output", output, *arguments]
    if cut_after:
        from advisor.training import loop

        updates, run = iter(range(1, cut_after + 1)), loop.update

        def update(*args, **more):
            if next(updates, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(*args, **more)

        loop.update = update
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(f"{bundle}/finetune.py", run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
    loaded = [name for name, module in sys.modules.items() if getattr(module, "__file__", None)]
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "loaded": loaded}


def _main():
    import PIL.Image  # noqa: F401
    import torch  # noqa: F401 - once for all

    for job in json.loads(Path(sys.argv[1]).read_text()):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writer, json.dumps(_fine_tune(*job)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            text = told.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write((text or json.dumps({"code": status})) + "\n")


if __name__ == "__main__":
    _main()

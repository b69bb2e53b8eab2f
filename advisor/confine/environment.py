"""What a process apart sees of the environment: what programs need in order to run, and no secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

_KEPT = {
    *("PATH", "HOME", "USER", "LOGNAME", "PWD", "TZ", "LANG", "LANGUAGE", "TMPDIR", "TMP", "TEMP"),
    *("TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE"),
    # Of Windows: without these Python doesn't start, or finds no home.
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "APPDATA", "LOCALAPPDATA"),
    *("NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"),
}
# What libraries read when they are loaded, and options of our own.
_KEPT_PREFIXES = (
    *("LC_", "LD_", "DYLD_", "PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_"),
    *("TORCH", "PYTORCH_", "KINETO_", "CUDA_", "NVIDIA_", "MALLOC_", "PEFT_ADVISOR_"),
)
_SECRET = re.compile("TOKEN|SECRET|PASS|CREDENTIAL|KEY|AUTH|COOKIE|PRIVATE", re.IGNORECASE)


def stripped(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are known to be harmless; whatever else there is, its name is not looked at."""
    return {
        name: value
        for name, value in environment.items()
        if (name.upper() in _KEPT or name.upper().startswith(_KEPT_PREFIXES)) and not _SECRET.search(name)
    }

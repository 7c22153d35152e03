"""Prefect's temporary server: it gets minutes to start, and ends with the process that needs it.

Prefect's own gives up after 20 s, which a busy machine exceeds, and survives a `kill -9` of its parent. This module,
run as `python -m flows.server PORT PARENT_PID`, is the server's process.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rass_core.errors import RassError
from rass_core.units import duration
from tasks.progress import PROGRESS

TIMEOUT_VARIABLE = "RASS_SERVER_TIMEOUT_S"
"""Environment variable with the seconds that the server may take to start."""
TIMEOUT_S = 300.0
QUIET_S = 5.0
"""A start that takes no longer is not worth a line."""
STOP_S = 5.0
ASK_EVERY_S = 0.1
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks without a proxy."""


class ServerError(RassError, RuntimeError):
    """Prefect's temporary server did not start."""


class TemporaryServer:
    """A Prefect server of this process alone; it starts while the caller continues.

    Args:
        settings: Environment variables with the settings of this process.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.api_url = f"http://127.0.0.1:{port}/api"
        self._started = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the server
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(port), str(os.getpid())],
            env={**os.environ, **settings, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1",
                 "PREFECT__SERVER_FINAL": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors,
            start_new_session=True,  # Ctrl-C ends the run, which then writes how it ended to this server
        )  # fmt: skip

    def wait(self, timeout_s: float) -> None:
        """Return once the server answers; if that takes long, print what is waited for.

        Raises:
            ServerError: It ended, or does not answer in time.
        """
        deadline = self._started + timeout_s
        if self._answers_before(min(deadline, time.monotonic() + QUIET_S)):
            return
        with PROGRESS.running("starting Prefect's temporary server"):
            if self._answers_before(deadline):
                return
            state = self._process.poll()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            last = f": {lines[-1].strip()[:200]}" if lines else ""
            what = "does not answer" if state is None else f"ended with code {state}{last}"
            self._process.kill()
            taken = duration(time.monotonic() - self._started)
            raise ServerError(
                f"Prefect's temporary server {what} after {taken} at {self.api_url}; set {TIMEOUT_VARIABLE} to more "
                "seconds, or start one with `prefect server start` and set PREFECT_API_URL"
            )

    def stop(self) -> None:
        """End the server."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _answers_before(self, deadline: float) -> bool:
        """Ask until it answers, it ends, or the deadline is over; ask once in any case."""
        while self._process.poll() is None:
            try:
                _LOCAL.open(f"{self.api_url}/health", timeout=STOP_S).close()
                return True
            except OSError:  # urllib's errors too
                if time.monotonic() > deadline:
                    return False
                time.sleep(ASK_EVERY_S)
        return False


@contextmanager
def prefect_server() -> Iterator[Callable[[], None]]:
    """Inside, flows run on the server of the settings, or on a temporary one where they name none.

    Yields:
        What waits until the temporary one answers; it raises ServerError where that does not start.
    """
    from prefect.settings import get_current_settings, temporary_settings

    settings = get_current_settings()
    if settings.api.url:
        yield lambda: None
        return
    server = TemporaryServer(settings.to_environment_variables(exclude_unset=True))
    # Registered before the flow's modules are imported, so it runs after what Prefect still sends at exit.
    atexit.register(server.stop)
    with temporary_settings({"PREFECT_API_URL": server.api_url}):
        yield lambda: server.wait(float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_S)))


def _serve(port: int, parent: int) -> None:
    """Run the server until it gets a signal to stop or its parent is gone."""
    import uvicorn

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import prefect

    uvicorn.run(
        "prefect.server.api.server:create_app", factory=True, app_dir=str(Path(prefect.__file__).parent),
        host="127.0.0.1", port=port, log_level="error", lifespan="on",
    )  # fmt: skip


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))

"""Run a command and print its time and peak memory: `python benchmarks/peak_memory.py rass demo --lake out/x`.

Memory is the proportional set size summed over the command and all it starts, sampled twice a second.
"""

import subprocess
import sys
import time

import psutil


def summed_pss(root: psutil.Process) -> int:
    """Return the bytes that a process and its children hold now."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it ended between listing and reading
            continue
    return total


def main() -> None:
    started = time.monotonic()
    command = subprocess.Popen(sys.argv[1:])
    root, peak = psutil.Process(command.pid), 0
    while command.poll() is None:
        peak = max(peak, summed_pss(root))
        time.sleep(0.5)
    print(f"{time.monotonic() - started:.0f} s, peak {peak / 1e9:.2f} GB, exit code {command.returncode}")
    raise SystemExit(command.returncode)


if __name__ == "__main__":
    main()

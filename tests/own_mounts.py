"""Real mounts, such as full or read-only disks, for the tests that are allowed to make them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest


def in_own_mounts(script: str, *arguments: str) -> list[str]:
    """Run a shell script as root of its own user and mount namespace; returns its lines. Skips where that is forbidden."""
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    may_mount = (
        shutil.which("unshare")
        and not subprocess.run(
            [*own, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"], capture_output=True, check=False
        ).returncode
    )
    if not may_mount:
        pytest.skip("this machine lets us mount nothing")
    result = subprocess.run(
        [*own, "sh", "-ec", script, "sh", sys.executable, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()

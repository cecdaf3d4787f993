"""Exit 1 unless `dvc status` reports nothing but the always-changed record stage."""

from __future__ import annotations

import json
import subprocess
import sys

ALWAYS = {"record": ["always changed"]}


def main() -> int:
    """Ask DVC and compare."""
    shown = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=True).stdout
    status = json.loads(shown)
    if status in ({}, ALWAYS):
        print("dvc status: up to date")
        return 0
    print(f"dvc status reports more than the always-changed stage:\n{json.dumps(status, indent=1)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

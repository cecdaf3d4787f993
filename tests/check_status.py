"""Exit 1 unless `dvc status` reports nothing."""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Ask DVC."""
    status = json.loads(subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=True).stdout)
    if status:
        print(f"dvc status reports stale stages:\n{json.dumps(status, indent=1)}", file=sys.stderr)
    return bool(status)


if __name__ == "__main__":
    sys.exit(main())

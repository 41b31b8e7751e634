"""Asks pip-audit for known vulnerabilities of what is installed: python tests/audit.py PIP_AUDIT SITE_PACKAGES

Exit code 0: none is known; 1: some are; 2: the advisory database is out of reach, and nothing is known. pip-audit
itself has no code for the last, and of packages that a mirror of the index does not know it reports no vulnerability.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def audit(tool: str, site: str, seconds: float = 900) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file, reason = Path(folder) / "found.json", ""
        command = [tool, "--path", site, "--progress-spinner", "off", "--format", "json", "--output", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
            found = json.loads(file.read_text())["dependencies"]
        except subprocess.TimeoutExpired:
            found, reason = [], f"no answer in {seconds:g} s"
        except (OSError, ValueError, KeyError):
            found = []
    known = [one for one in found if "skip_reason" not in one]
    if not known:
        if found:
            reason = f"it knows none of {len(found)} packages, as a mirror of the index does"
        print(f"audit: the advisory database is out of reach ({reason}): nothing is known of vulnerabilities")
        return 2
    for one in known:
        for of in one["vulns"]:
            print(f"{one['name']} {one['version']}: {of['id']}, mended in {', '.join(of['fix_versions']) or 'none'}")
    some = sum(bool(one["vulns"]) for one in known)
    shares = f"{some} of {len(known)} packages have known vulnerabilities; asked for {len(known)} of {len(found)}"
    others = sorted(one["name"] for one in found if "skip_reason" in one)
    told = f", not {', '.join(others)}" if others else ""
    print(f"audit: {shares}{told}")
    return int(some > 0)


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1], sys.argv[2]))

"""Looks up what is known of vulnerabilities in the locked packages. Exit code 1 where there are some.

Where the service is out of reach that is said and is no failure. One that does not concern this project is passed to
pip-audit below as --ignore-vuln ID, with the reason beside it.
"""

import json
import subprocess
import sys

COMMAND = "uvx --quiet pip-audit --disable-pip --require-hashes --requirement .ci/requirements.txt --format json"
QUIET = "--progress-spinner off --timeout 20"


def main() -> int:
    """Runs pip-audit and says what came of it."""
    done = subprocess.run([*COMMAND.split(), *QUIET.split()], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        unreachable = "connect" in done.stderr.lower()
        print(f"{'nothing was audited' if unreachable else 'pip-audit failed'}: {done.stderr.strip()[-1000:]}")
        return 0 if unreachable else 1
    # Without its database the service answers that it has never heard of a package, and pip-audit calls that success.
    audited = [package for package in packages if "skip_reason" not in package]
    reached = "" if audited else ": the service of vulnerabilities cannot be reached"
    print(f"audited {len(audited)} of {len(packages)} packages{reached}")
    vulnerable = [package for package in audited if package["vulns"]]
    for package in vulnerable:
        for found in package["vulns"]:
            mended = ", ".join(found["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {found['id']}, mended in {mended}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())

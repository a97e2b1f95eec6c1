"""``python -m bench``: what this project costs beside stock diffusers, measured in the same run.

Exits with 1 if a ratio is below its guard.
"""

import sys

from bench import mux, passes

BENCHES = (mux, passes)


def main() -> int:
    """Run every bench and print one table."""
    rows = [row for bench in BENCHES for row in bench.rows()]
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  {'stock':>9}  {'ours':>9}  {'':5}  {'ratio':>7}  guard")
    for row in rows:
        guard = "" if row.guard is None else f">= {row.guard:g} {'met' if row.meets_guard else 'MISSED'}"
        print(f"{row.name:{width}}  {row.stock:9.2f}  {row.ours:9.2f}  {row.unit:5}  {row.ratio:6.1f}x  {guard}")
    return 0 if all(row.meets_guard for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""python benchmarks/claims.py RUN: every claim of speed beside what the run has measured; exit code 1 where one does not hold."""

import sys

import tyro

from jaxseg.benchmark.claims import claims
from jaxseg.errors import InputError

if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(claims))
    except InputError as error:
        print(f"claims: error: {error}", file=sys.stderr)
        sys.exit(2)

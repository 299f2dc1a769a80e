"""python benchmarks/compare.py NOW BEFORE: exit code 1 where a step has become slower, the machine's speed apart."""

import sys

import tyro

from jaxseg.benchmark.compare import compare
from jaxseg.errors import InputError

if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(compare))
    except InputError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        sys.exit(2)

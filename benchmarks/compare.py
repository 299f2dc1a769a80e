"""python benchmarks/compare.py NOW BEFORE: exit code 1 where a step has become slower, the machine's speed apart."""

from jaxseg.benchmark.compare import compare
from jaxseg.cli import script

if __name__ == "__main__":
    script(compare)

"""python benchmarks/claims.py RUN: every claim of speed beside what the run has measured; exit code 1 where one does not hold."""

from jaxseg.benchmark.claims import claims
from jaxseg.cli import script

if __name__ == "__main__":
    script(claims)

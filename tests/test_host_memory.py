"""Freed memory is kept: a second block of the same size takes no new pages."""

import os
import subprocess
import sys

import pytest

from jaxseg.host_memory import KEEPING

FAULTS = """
import resource, numpy as np
from jaxseg.host_memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
def step():
    np.empty(1 << 26, np.uint8).fill(1)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_a_block_that_comes_back_takes_no_new_pages():
    def faults(keep, environment):
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
        return int(done.stdout)

    assert faults(True, {}) < 100
    assert faults(False, KEEPING) < 100
    assert faults(False, {}) > 100

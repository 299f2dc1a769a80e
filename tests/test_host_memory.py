"""Freed memory is kept: a second block of the same size takes no new pages. Or its pages are huge ones."""

import os
import subprocess
import sys

import pytest

from jaxseg.host_memory import KEEPING, with_huge_pages

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


PLAIN = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
needs_huge_pages = pytest.mark.skipif(with_huge_pages({}) is None, reason="this system has no huge pages to ask for")


def faults(keep, environment):
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_a_block_that_comes_back_takes_no_new_pages():
    assert faults(True, PLAIN) < 100
    assert faults(False, PLAIN | KEEPING) < 100
    assert faults(False, PLAIN) > 100


@needs_huge_pages
def test_huge_pages_take_fewer_faults():
    plain = PLAIN | {"NUMPY_MADVISE_HUGEPAGE": "0"}  # NumPy asks for them itself; XLA does not
    assert faults(False, with_huge_pages(plain)) < faults(False, plain) / 10


def test_what_is_set_already_stays():
    assert with_huge_pages({"GLIBC_TUNABLES": ""}) is None


COMMAND = """
import os, sys
import jaxseg.cli
jaxseg.cli.main = lambda: print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
jaxseg.cli.program()
"""


@needs_huge_pages
def test_the_command_begins_anew_with_huge_pages_and_all_of_its_words():
    def run(*words, **environment):
        command = [sys.executable, "-c", COMMAND, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=PLAIN | environment).stdout.strip()

    assert run("predict", "a b", "--out", "'c'") == """['predict', 'a b', '--out', "'c'"] glibc.malloc.hugetlb=1"""
    assert run("predict", GLIBC_TUNABLES="glibc.malloc.hugetlb=0") == "['predict'] glibc.malloc.hugetlb=0"
    assert run("benchmark") == "['benchmark'] None"

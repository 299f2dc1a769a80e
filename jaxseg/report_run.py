"""The report of a finished run: its best checkpoint over the test split, with the best and the worst images."""
from pathlib import Path
from jaxseg.data import Dataset

def report_run(workdir: Path, dataset: Dataset) -> None:
    pass

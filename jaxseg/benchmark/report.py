"""results.md and its plots, from the records of a run."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxseg.benchmark import pictures
from jaxseg.benchmark.operators import PHASES
from jaxseg.benchmark.pictures import number
from jaxseg.benchmark.results import Results, gradient_speedup

TORCH = ("torch eager", "torch compiled")


def write_report(results: Results) -> Path:
    """results.md beside results.json, with speedup.png and throughput.png for the parts that were measured; returns its path."""
    out = results.path.parent
    operators, models, networks = (
        {key.removeprefix(prefix): record for key, record in results.cases.items() if key.startswith(prefix)}
        for prefix in ("operators/", "models/", "networks/")
    )
    title = "# Upsampling: what it costs" if "features" in results.header else "# Models: what they cost"
    lines = [title, "", *_header(results.header), ""]
    if networks:
        (out / "throughput.png").write_bytes(pictures.throughput(networks))
        lines += [*_models(networks, results.header), "", "![images a second by model](throughput.png)", ""]
    if models:
        (out / "throughput.png").write_bytes(pictures.throughput(models))
        lines += ["## Models", "", *_models(models, results.header), "", "![images a second by method](throughput.png)", ""]
    if operators:
        (out / "speedup.png").write_bytes(pictures.speedups(operators))
        lines += ["## Operators, in short", "", *_summary(operators), "", "![times faster, by operator](speedup.png)", ""]
        lines += ["## Operators, every figure", "", *_operators(operators), ""]
    notes = [f"* {key}: {note}" for key, record in results.cases.items() for note in record["notes"]]
    lines += ["## Notes", "", *notes, ""] if notes else []
    path = out / "results.md"
    path.write_text("\n".join(lines))
    return path


def _header(header: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {v}" for name, v in header["versions"].items())
    environment = header.get("environment", {})
    compiled = "" if header["torch_compile"] in (True, None) else "; no C++ compiler, so nothing of torch.compile"
    features = f", features {header['features']}" if "features" in header else ""
    return [
        f"* device: {header['device']} ({header['platform']}; {header['cpu']}, {header['cores']} cores), by {header['parallel']}",
        f"* versions: {versions}; torch: {header['torch'] or 'not measured'}{compiled}",
        *([f"* environment: {' '.join(f'{k}={v}' for k, v in environment.items())}"] if environment else []),
        f"* dtype: {header['dtype']}; date: {header['date']}",
        f"* models: batch {header['batch']} of {header['size']} x {header['size']} pixels" + features,
        "",
        "Times are medians of warm steps, ± their interquartile range, in processes that keep what they free (with glibc); all that stand "
        "in one row were measured in alternation. "
        "Ratios are another's time over ours (median over the rounds): above 1, ours is faster. "
        "Shares are of this machine's own matrix product and copy, measured beside each case.",
    ]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> list[str]:
    head = list(head)
    rule = ["---" if i < left else "--:" for i in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def _models(models: Mapping[str, Any], header: Mapping[str, Any]) -> list[str]:
    head = ["model", "by", "inference images/s", "ms ±", "ratio", "training images/s", "ms ±", "ratio", "compile s"]
    head += ["peak MiB", "GFLOP an image", "of matmul"]

    def rows() -> Iterator[list[str]]:
        for key, record in models.items():
            inference, training = record["phases"]["inference"], record["phases"]["training"]
            for who in inference:
                row = [key.replace("/", ", "), who]
                for phase in (inference, training):
                    m = phase.get(who, {})
                    ratio = "" if who == "ours" else number(m.get("ratio"))
                    row += [number(m.get("images_per_s")), spread(m), ratio]
                m = training.get(who, {})
                both = [phase[who].get("compile_s") for phase in (inference, training) if who in phase]
                row.append("" if who == "torch eager" else " + ".join(number(s) for s in both))
                gflop = m["flops"] / header["batch"] / 1e9 if m.get("flops") else None
                row += [number(m["peak_bytes"] / 2**20 if m.get("peak_bytes") else None), number(gflop), percent(m.get("matmul_share"))]
                yield row

    return [*_table(head, rows(), 2), "", "Compile s: inference + training. Peak MiB, GFLOP and share: of the training step."]


def _summary(operators: Mapping[str, Any]) -> list[str]:
    head = ["operator", "forward", "gradients", "forward and gradients", "torch eager", "torch compiled", "differs by"]

    def rows() -> Iterator[list[str]]:
        for name, record in operators.items():
            phases = record["phases"]
            both = phases["both"]
            ratios = [phases["fwd"].get("stock", {}).get("ratio"), gradient_speedup(phases), both.get("stock", {}).get("ratio")]
            errors = [e for errors in record["errors"].values() for e in errors.values()]
            row = [name, *map(number, ratios), *(number(both.get(who, {}).get("ratio")) for who in TORCH)]
            yield [*row, f"{max(errors):.0e}" if errors else ""]

    text = "The first three ratios are those of stock JAX/Flax, the last two of torch for forward and gradients. "
    text += "Differs by: the largest difference between the implementations' results, as a share of the largest value."
    return [*_table(head, rows()), "", text]


def _operators(operators: Mapping[str, Any]) -> list[str]:
    peers = ("stock", *TORCH)
    head = ["operator", "what", "ours ms ±", *(f"{who} ms ±" for who in peers), *(f"{who} / ours" for who in peers)]
    head += ["of matmul", "of copy", "peak MiB"]

    def rows() -> Iterator[list[str]]:
        for name, record in operators.items():
            for phase, found in record["phases"].items():
                ours = found["ours"]
                row = [name, PHASES[phase], *(spread(found.get(who, {})) for who in ("ours", *peers))]
                row += [number(found.get(who, {}).get("ratio")) for who in peers]
                yield [*row, percent(ours["matmul_share"]), percent(ours["copy_share"]), number(ours["peak_bytes"] / 2**20)]

    return _table(head, rows(), 2)


def spread(measured: Mapping[str, Any]) -> str:
    return f"{number(measured['step_ms'])} ± {number(measured['spread_ms'])}" if measured else ""


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"

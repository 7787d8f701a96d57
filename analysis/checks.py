"""The doctor: are numbers measured on this model and these data to be trusted?

Letters: D parameters, N rows.

Each finding compares two channels that must agree: the gradient with central differences of the loss, u.Hv with v.Hu, one pass over the rows with another,
the loss now with the loss recorded. And it names the parts of the model that measurements treat specially.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objectives import Objective, dtype_name, free_memory
from landscape.results import Result
from landscape.seeds import generator

OK, NOTE, FAIL = "ok", "note", "fail"


@dataclass(frozen=True, kw_only=True)
class Checkup(Result):
    """Findings: dicts with `check`, `status` (ok, note or fail), `value`, `allowed` (None where nothing is compared) and `words`."""

    subject: str
    findings: list[dict[str, Any]]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed."""
        return all(finding["status"] != FAIL for finding in self.findings)

    def summary(self) -> str:
        """See Result."""
        counts = Counter(finding["status"] for finding in self.findings)
        failed = ", ".join(finding["check"] for finding in self.findings if finding["status"] == FAIL)
        return f"{self.subject}: {counts[OK]} checks passed, {counts[NOTE]} notes, {counts[FAIL]} failed{': ' + failed if failed else ''}."

    def panels(self) -> tuple[str, ...]:
        """See Result: the answer is a table."""
        return ()

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        return [("check", "status", "finding"), *((f["check"], f["status"], f["words"]) for f in self.findings)]


def check(
    f: Objective, point: Tensor, module: nn.Module, *, subject: str, recorded: float | None = None, seed: int = 0
) -> Checkup:
    """Examine an objective at a point (D,), best in float64; `recorded` is the loss over all rows that a run's metrics hold for this point.

    Nothing is raised for an ill patient: what went wrong is a finding.
    """
    findings: list[dict[str, Any]] = []

    def add(name: str, status: str, words: str, value: float | None = None, allowed: float | None = None) -> None:
        findings.append({"check": name, "status": status, "value": value, "allowed": allowed, "words": words})

    def compare(name: str, value: float, allowed: float, words: str, advice: str) -> None:
        good = value <= allowed  # NaN is not
        add(
            name,
            OK if good else FAIL,
            f"{words}: {value:.1e} (allowed {allowed:.0e})" + ("" if good else f". {advice}"),
            value,
            allowed,
        )

    bad = int((~torch.isfinite(point)).sum())
    add(
        "weights",
        FAIL if bad else OK,
        f"{bad} of {point.numel():,} parameters are NaN or infinite" if bad else f"{point.numel():,} finite parameters",
    )
    inputs = list(_floating(f))
    bad_rows = sum(int((~torch.isfinite(tensor)).sum()) for tensor in inputs)
    add(
        "data",
        FAIL if bad_rows else OK,
        f"{bad_rows} input entries are NaN or infinite: clean the data"
        if bad_rows
        else f"{len(f.rows):,} rows, all finite",
    )
    _parts(f, module, add)
    if bad or bad_rows:
        add("derivatives", NOTE, "not examined, since weights or data are not finite")
        return _checkup(subject, findings, f, seed)

    loss = f(point)
    again = f(point)
    compare(
        "two passes agree",
        abs(float(loss - again)),
        0.0,
        "difference of the loss between two passes over the same rows",
        "The model or the loss draws random numbers or keeps state: make it a function of its inputs.",
    )
    if recorded is not None:
        # float32 logits of size 10 carry errors of 1e-6: that is what a recorded loss is known to, whatever its size below 0.1
        compare(
            "recorded loss",
            abs(float(loss) - recorded) / max(abs(recorded), 0.1),
            2e-5,
            f"difference of the loss now ({float(loss):.6g}) from the recorded ({recorded:.6g}), relative to it or to 0.1",
            "Data, code or versions differ from those of the run.",
        )
    else:
        add("recorded loss", NOTE, f"none is known for this point; the loss now is {float(loss):.6g}")
    _derivatives(f, point, compare, add, seed)
    return _checkup(subject, findings, f, seed)


def _checkup(subject: str, findings: list[dict[str, Any]], f: Objective, seed: int) -> Checkup:
    provenance = {
        "seed": seed,
        "dtype": dtype_name(f.dtype),
        "device": f.device.type,
        "rows": len(f.rows),
    }
    failed = tuple(
        f"check failed: {finding['check']}: {finding['words']}" for finding in findings if finding["status"] == FAIL
    )
    return Checkup(question={}, provenance=provenance, warnings=failed, subject=subject, findings=findings)


def _floating(f: Objective) -> list[Tensor]:
    tensors = f.rows.inputs
    found = (
        [tensors]
        if isinstance(tensors, Tensor)
        else list(tensors.values())
        if isinstance(tensors, dict)
        else list(tensors)
    )
    return [tensor for tensor in [*found, f.rows.targets] if tensor.is_floating_point()]


def _derivatives(f: Objective, point: Tensor, compare: Any, add: Any, seed: int) -> None:
    started = time.perf_counter()
    gradient = f.gradient(point)
    gradient_seconds = time.perf_counter() - started
    eps = torch.finfo(f.dtype).eps
    # central differences: truncation h^2 |f'''| / 6 against roundoff eps |f| / h balance at h = eps^(1/3), where the error is about eps^(2/3)
    scale = float(point.norm()) / math.sqrt(point.numel()) or 1.0
    worst = 0.0
    for index in range(3):
        direction = torch.randn(point.numel(), generator=generator(seed, "check", index), dtype=torch.float64).to(point)
        direction /= direction.norm()
        step = eps ** (1 / 3) * scale * math.sqrt(point.numel())
        slope = float(f(point + step * direction) - f(point - step * direction)) / (2 * step)
        size = max(float(gradient.norm()) / math.sqrt(point.numel()), eps ** (2 / 3) * abs(float(f(point))) / step)
        worst = max(worst, abs(slope - float(gradient @ direction)) / size)
    # smooth models agree to about eps^(2/3); kinks (ReLU, max) inside the step cost its order, eps^(1/3): 6e-6 in float64, 5e-3 in float32
    compare(
        "gradient",
        worst,
        1e-3 if f.dtype == torch.float64 else 0.05,
        "error against central differences, relative to a typical slope",
        "The backward pass is not the derivative of the forward pass.",
    )
    try:
        matrix = f.hessian(point)
        v = torch.randn(point.numel(), generator=generator(seed, "check", 9), dtype=torch.float64).to(point)
        matrix @ v  # the first product pays for what the later ones reuse
        started = time.perf_counter()
        matrix @ v
        product_seconds = time.perf_counter() - started
        compare(
            "Hessian symmetry",
            matrix.asymmetry(generator(seed, "symmetry")),
            1e4 * eps,
            "relative difference of u.Hv and v.Hu",
            "A layer's second derivative is wrong or missing.",
        )
        graph, free = f.graph_bytes(point), free_memory(f.device)
        kept = (
            "kept between products"
            if graph <= free / 2
            else "too much to keep: products take 2 to 3 times as long; measure fewer rows (--rows)"
        )
        add(
            "Hessian memory", OK, f"the gradient's graph of all rows takes {_size(graph)} of {_size(free)} free: {kept}"
        )
        add(
            "cost",
            OK,
            f"one gradient over all rows takes {1e3 * gradient_seconds:.3g} ms, one Hessian product {1e3 * product_seconds:.3g} ms",
        )
    except Exception as error:
        add("Hessian symmetry", FAIL, f"no second derivative: {type(error).__name__}: {str(error)[:200]}")


def _parts(f: Objective, module: nn.Module, add: Any) -> None:
    kinds = Counter(type(part).__name__ for part in module.modules() if not list(part.children()))
    add("layers", OK, ", ".join(f"{count} {name}" for name, count in kinds.most_common(8)))
    norms = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms:
        add(
            "BatchNorm",
            NOTE,
            f"{len(norms)} layers ({norms[0]}, ...): measured with the recorded running statistics; paths between points need a policy (--bn)",
        )
    dropouts = [
        name for name, part in module.named_modules() if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
    ]
    if dropouts:
        add(
            "dropout", NOTE, f"{len(dropouts)} layers ({dropouts[0]}, ...): off in every measurement, on while training"
        )
    attention = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.MultiheadAttention) or "attention" in type(part).__name__.lower()
    ]
    if attention:
        add(
            "attention",
            NOTE,
            f"{len(attention)} layers ({attention[0]}, ...): second derivatives use the MATH kernel, since the fused ones have none",
        )
    layout = f.model.layout
    if layout.aliases:
        alias, name = next(iter(layout.aliases.items()))
        add(
            "tied parameters",
            NOTE,
            f"{len(layout.aliases)} ({alias} is {name}, ...): each shared tensor is counted once",
        )
    frozen = layout.of("frozen")
    floating = [entry for entry in frozen if entry.dtype.startswith(("float", "bfloat"))]
    if floating:
        add(
            "frozen parameters",
            NOTE,
            f"{len(floating)} ({floating[0].name}, ...; {sum(entry.size for entry in floating):,} numbers): held fixed, not part of the landscape",
        )
    if len(frozen) > len(floating):
        other = [entry for entry in frozen if entry not in floating]
        add("non-float parameters", NOTE, f"{len(other)} ({other[0].name}: {other[0].dtype}, ...): held fixed")
    dtypes = {entry.dtype for entry in layout.of("parameter")} - {"float32", "float64"}
    if dtypes:
        add(
            "low precision",
            NOTE,
            f"parameters of dtype {', '.join(sorted(dtypes))} are measured in {str(f.dtype).removeprefix('torch.')}",
        )
    vector = f.dim * torch.finfo(f.dtype).bits // 8
    add(
        "memory",
        OK,
        f"one vector {_size(vector)}, Lanczos about {_size(60 * vector)} for 10 eigenvalues (up to 500 vectors, {_size(500 * vector)}, where they are close)",
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"

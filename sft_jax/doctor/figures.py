"""The figures of programs compiled for a device: memory, arithmetic, traffic, and the times that these allow."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sft_jax.doctor.largest import Found, Need
from sft_jax.runtime.chips import TARGETS, Target
from sft_jax.runtime.devices import AbsentDevices
from sft_jax.runtime.estimate import bytes_needed, size_text
from sft_jax.runtime.hlo import count_step

WORDS = {"bfloat16": "bfloat16", "tf32": "TF32 (float32 rounded to 10 bits)", "float32": "float32"}
STEP_KEYS = (
    "bytes_accessed",
    "bytes_by",
    "seconds_bandwidth",
    "seconds_arithmetic",
    "precision",
    "products",
    "kernels",
    "transposes",
    "copies",
    "all_reduces",
    "host_transfers",
    "loops",
)


class Programs(NamedTuple):
    """The compiled training and evaluation programs, each with the bytes of other arrays on the device; or None."""

    train: tuple[Any, int] | None
    evaluate: tuple[Any, int] | None


def figures(
    name: str,
    devices: AbsentDevices,
    programs: Programs,
    batch_size: int,
    needs: Mapping[int, Need | None],
    largest: Found | None,
    flops: float,
    refused: str | None,
) -> dict[str, Any]:
    """Returns what `doctor --target --json` prints. Bytes are those of one device, figures of a step likewise.

    Args:
      name: the target.
      devices: what it consists of.
      programs: of the recipe's batch size.
      batch_size: the recipe's.
      needs: by batch size; None where the compiler refused.
      largest: the search for the largest batch that fits.
      flops: of a step, on one device.
      refused: why the compiler refused; None if it did not.
    """
    target, needed = TARGETS[name], needs.get(batch_size)
    report: dict[str, Any] = {
        "target": name,
        "devices": str(devices),
        "compiles": refused is None,
        "reason": refused,
        "batch_size": batch_size,
        "memory_bytes": devices.free_bytes(),
        "fits": needed is not None and needed.bytes <= devices.free_bytes(),
        "batches": {str(batch): need and need.bytes for batch, need in sorted(needs.items())},
        "largest_batch": None if largest is None else largest.batch,
        "smallest_batch_too_large": None if largest is None else largest.too_large,
        "flops": flops,
    }
    step = dict.fromkeys(STEP_KEYS)
    if programs.train is not None:
        program, others = programs.train
        step = step_figures(target, program, flops)
        report |= {
            "train_bytes": bytes_needed(program),
            "temp_bytes": program.memory_analysis().temp_size_in_bytes,
            "other_bytes": others,
        }
    if programs.evaluate is not None:
        program, others = programs.evaluate
        report |= {
            "eval_bytes": bytes_needed(program),
            "eval_temp_bytes": program.memory_analysis().temp_size_in_bytes,
            "eval_other_bytes": others,
        }
    missing = ("train_bytes", "temp_bytes", "other_bytes", "eval_bytes", "eval_temp_bytes", "eval_other_bytes")
    return dict.fromkeys(missing) | report | step


def step_figures(target: Target, program: Any, flops: float) -> dict[str, Any]:
    """Returns the figures of a step, with the names `STEP_KEYS`, of a compiled training program.

    `flops` are those of a step on one device.
    """
    counts, cost = count_step(program.as_text()), program.cost_analysis()
    if cost is None:  # XLA has no cost analysis for a GPU that is not there
        moved, by = counts.bytes, "operands and results of all kernels"
    else:
        moved, by = cost["bytes accessed"], "the compiler"
    used = precision_of(target, counts.products)
    values = (
        moved,
        by,
        moved / target.bandwidth,
        None if used is None else flops / getattr(target.peak, used),
        used,
        counts.products,
        counts.kernels,
        counts.transposes,
        counts.copies,
        counts.all_reduces,
        counts.host_transfers,
        counts.loops,
    )
    return dict(zip(STEP_KEYS, values, strict=True))


def precision_of(target: Target, products: Mapping[str, int]) -> str | None:
    """Returns the field of `Peak` with which most of a program's products are computed; None without products.

    JAX's default precision for float32 is not float32: a TPU rounds the factors to bfloat16, an NVIDIA GPU to TF32 from
    compute capability 8.0 on.
    """
    if not products:
        return None
    kind, *asked = max(products, key=lambda product: products[product]).split()
    if kind == "bf16":
        return "bfloat16" if target.has_bfloat16 else "float32"
    if "highest" in asked:
        return "float32"
    if target.platform == "tpu":
        return "bfloat16"
    return "float32" if target.peak.tf32 is None else "tf32"


def text_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the report for people."""
    if not report["compiles"]:
        yield f"compiles   no: {report['reason']}"
    else:
        warning = "" if report["fits"] else "; warning: it does not fit into the memory, use a smaller batch_size"
        yield f"compiles   yes: training and evaluation{warning}"
    usable = f"{size_text(report['memory_bytes'])} can be used"
    if report["train_bytes"] is not None:
        yield (
            f"memory     {size_text(report['train_bytes'])} on each device for training, of it "
            f"{size_text(report['temp_bytes'])} temporary, besides {size_text(report['other_bytes'])} of other images"
        )
    if report["eval_bytes"] is not None:
        yield (
            f"           {size_text(report['eval_bytes'])} for evaluation, besides "
            f"{size_text(report['eval_other_bytes'])} of other images and the optimiser's state; {usable}"
        )
    yield f"largest    {_largest(report)}"
    if report["bytes_accessed"] is None:
        return
    yield (
        f"a step     {report['flops'] / 1e9:,.1f} GFLOP and {report['bytes_accessed'] / 1e9:,.2f} GB moved on each "
        f"device (by {report['bytes_by']})"
    )
    if report["seconds_arithmetic"] is not None:
        arithmetic, bandwidth = report["seconds_arithmetic"], report["seconds_bandwidth"]
        bound = "bandwidth" if bandwidth > arithmetic else "arithmetic"
        fastest = report["batch_size"] / max(arithmetic, bandwidth)
        yield (
            f"           {1e3 * arithmetic:.2f} ms at peak arithmetic, {1e3 * bandwidth:.2f} ms at peak bandwidth: "
            f"bound by {bound}, {fastest:,.0f} images/s at the very most"
        )
        yield f"precision  most products in {WORDS[report['precision']]}: {_products(report['products'])}"
    yield (
        f"program    {report['kernels']} kernels, {report['transposes']} transposes, {report['copies']} copies, "
        f"{report['all_reduces']} all-reduces, {report['loops']} inner loops, {report['host_transfers']} transfers "
        f"to or from the host a step"
    )


def _largest(report: Mapping[str, Any]) -> str:
    tried, refused = len(report["batches"]), report["smallest_batch_too_large"]
    how = f"of {tried} batch sizes compiled" + ("" if refused is None else f"; {refused:,} does not fit")
    batch = report["largest_batch"]
    return f"no batch size fits ({how})" if batch is None else f"batch {batch:,} fits ({how})"


def _products(products: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {kinds}" for kinds, count in products.items())

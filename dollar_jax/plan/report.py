"""The plan of an iteration as a dictionary for JSON, and as tables."""

import math
from collections import Counter
from typing import Any

import jax
from ml_collections import ConfigDict

from dollar_jax.columns import aligned
from dollar_jax.plan.chips import Chip
from dollar_jax.plan.estimate import Cost, resident_bytes
from dollar_jax.plan.programs import Iteration

LARGEST = 10  # rows in the table of costs


def summarize(
    iteration: Iteration, costs: list[Cost], chip: Chip, sides: tuple[int, ...], mesh: dict[str, int]
) -> dict[str, Any]:
    """The plan as a dictionary: bytes per device, FLOPs over all devices, and lower bounds in seconds.

    `network` is the size of the whole teacher in bytes, `use` what `use_of_peak` returns.
    """
    devices = math.prod(mesh.values())
    resident = resident_bytes(iteration)
    largest = max(costs, key=lambda cost: cost.temporary)
    needed = sum(size["device"] for size in resident.values()) + largest.temporary
    network = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(iteration.resident["teacher"]))
    programs = [
        cost.as_dict()
        | {
            "bounds": bounds,
            "seconds": max(bounds.values()) if bounds else None,
            "predicted": cost.predicted(chip, sides),
        }
        for cost, bounds in ((cost, cost.bounds(chip, sides, devices)) for cost in costs)
    ]
    predicted = None
    if all(program["predicted"] for program in programs):
        predicted = sum(program["times"] * program["predicted"] for program in programs)
    flops = Counter()
    for cost in costs:
        for (_, part), value in cost.flops.items():
            flops[part] += cost.times * value
    plan = {
        "devices": devices,
        "mesh": mesh,
        "estimate": any(cost.estimate for cost in costs),
        "memory": {
            "resident": resident,
            "temporary": {cost.name: cost.temporary for cost in costs},
            "largest": largest.name,
            "needed": needed,
            "host": sum(size["host"] for size in resident.values()),
            "available": chip.memory,
            "missing": None if chip.memory is None else max(0, math.ceil(needed - chip.memory)),
        },
        "flops": {"total": flops.total(), "parts": dict(flops)},
        "programs": programs,
        "network": network,
        "seconds": sum(p["times"] * p["seconds"] for p in programs) if chip.flops else None,
        "predicted": predicted,
        "peak": chip.flops and devices * chip.flops,
        "clock": chip.clock,
    }
    return plan | {"use": use_of_peak(plan)}


def use_of_peak(plan: dict[str, Any]) -> tuple[float, float] | None:
    """Shares of the peak rate at the predicted time: of all arithmetic, and without what is computed again."""
    if not plan["predicted"]:
        return None
    again = sum(program["times"] * program["recomputed"] for program in plan["programs"])
    done = plan["flops"]["total"], plan["flops"]["total"] - again
    return tuple(flops / plan["predicted"] / plan["peak"] for flops in done)


def remedies(plan: dict[str, Any], config: ConfigDict) -> list[str]:
    """Settings to change first, if the config does not fit into memory."""
    mesh, memory = plan["mesh"], plan["memory"]
    resident = sum(size["device"] for size in memory["resident"].values())
    state = [
        "--config.mesh.data=1 --config.mesh.fsdp=-1: parameters and Adam split over all devices"
        if mesh["data"] > 1
        else "more devices: fsdp splits parameters and Adam over them",
    ]
    if not config.offload:
        state.append("--config.offload: average and Adam's moments are kept in the host's memory")
    if not config.lora.rank:
        state.append("--config.lora.rank=64: adapters are trained instead of all weights, see docs/lora.md")
    activations = []
    if config.remat != "nothing_saveable":
        activations.append("--config.remat=nothing_saveable: activations are recomputed instead of stored")
    shares = mesh["data"] * mesh["fsdp"]
    pieces = config.generator.batch_size // shares
    if pieces > config.generator.accumulate:
        activations.append(f"--config.generator.accumulate={pieces}: one video per device at a time")
    activations.append("--config.mesh.context=2 or more: the tokens of a video split over devices")
    return state + activations if resident > memory["needed"] - resident else activations + state


def tables(plan: dict[str, Any], advice: list[str]) -> str:
    """The plan for the terminal."""
    sections = [_memory(plan, advice), _flops(plan), _links(plan), _time(plan)]
    if plan["predicted"]:
        sections.append(_predicted(plan))
    elif unknown := sum(program["unmeasured"] for program in plan["programs"]):
        sections.append(
            f"no time is predicted: {unknown} runs of kernels whose cycles are not in dollar_jax/plan/chips.py"
        )
    if plan["estimate"]:
        sections.append(
            "ESTIMATE: temporary memory and collectives come from a program compiled for CPUs, which stores in float32"
            "\nmany arrays that are bfloat16 on a GPU, and has no attention kernel. The bounds on the time therefore"
            "\ncount half of the bytes over the links, and only arguments and results as memory traffic."
            '\nWith pip install "jax[cuda12]" the plan comes from the compiler for GPUs; no GPU is needed.'
        )
    return "\n\n".join(sections)


def _memory(plan: dict[str, Any], advice: list[str]) -> str:
    memory = plan["memory"]
    rows = [("memory of a device", "GB", "host GB")]
    for name, size in memory["resident"].items():
        rows.append((name, _gb(size["device"]), _gb(size["host"]) if size["host"] else ""))
    rows += [(f"temporary, {name}", _gb(size), "") for name, size in memory["temporary"].items()]
    rows.append((f"needed, while {memory['largest']} runs", _gb(memory["needed"]), _gb(memory["host"])))
    lines = [aligned(rows)]
    if memory["available"] is not None:
        verdict = f"does not fit: {_gb(memory['missing'])} GB missing" if memory["missing"] else "fits"
        lines.append(f"{verdict} ({_gb(memory['needed'])} of {_gb(memory['available'])} GB)")
        lines += [f"  {number}. {text}" for number, text in enumerate(advice, 1) if memory["missing"]]
    return "\n".join(lines)


def _flops(plan: dict[str, Any]) -> str:
    total = plan["flops"]["total"]
    rows = [("arithmetic of an iteration", "objective", "part", "TFLOP", "share")]
    for program in plan["programs"]:
        for row in sorted(program["flops"], key=lambda row: -row["flops"]):
            flops = program["times"] * row["flops"]
            label = f"{program['times']} x {program['name']}"
            rows.append((label, row["objective"], row["part"], f"{flops / 1e12:.4g}", f"{flops / total:.1%}"))
    parts = sorted(plan["flops"]["parts"].items(), key=lambda item: -item[1])
    text = ", ".join(f"{part} {value / total:.1%}" for part, value in parts)
    lines = [aligned(rows), f"{total:.4g} FLOP over all devices: {text}"]
    if unknown := sum(program["unbounded"] for program in plan["programs"]):
        lines.append(f"{unknown} loops of unknown length are counted once")
    return "\n".join(lines)


def _links(plan: dict[str, Any]) -> str:
    rows = [("collectives of one run", "kind", "instructions", "runs", "GB a device")]
    for program in plan["programs"]:
        for kind, total in program["collectives"].items():
            counts = f"{total['instructions']:.0f}", f"{total['runs']:.0f}"
            rows.append((program["name"], kind, *counts, _gb(total["bytes"])))
    if len(rows) == 1:
        return "no collectives"
    gathers = ", ".join(
        f"{program['name']} {program['largest_gather'] / plan['network']:.1%}" for program in plan["programs"]
    )
    return f"{aligned(rows)}\nlargest all-gather, relative to the whole teacher of {_gb(plan['network'])} GB: {gathers}"


def _time(plan: dict[str, Any]) -> str:
    compiling = f"compiled in {plan['compile_seconds']:.0f} s"
    if plan["seconds"] is None:
        return f"no data sheet: no bound on the time; {compiling}"
    rows = [("time at least", "compute s", "memory s", "links s", "x", "s", "share")]
    for program in plan["programs"]:
        bounds = (f"{value:.3g}" for value in program["bounds"].values())
        seconds = program["times"] * program["seconds"]
        rows.append(
            (program["name"], *bounds, str(program["times"]), f"{seconds:.3g}", f"{seconds / plan['seconds']:.1%}")
        )
    return f"{aligned(rows)}\nan iteration takes at least {plan['seconds']:.3g} s; {compiling}"


def _predicted(plan: dict[str, Any]) -> str:
    programs, whole = plan["programs"], plan["predicted"]
    rows = [("time that the compiler expects", "s", "x", "s", "share", "of peak", "without recomputation")]
    costs = Counter()
    for program in programs:
        once, times = program["predicted"], program["times"]
        useful = sum(row["flops"] for row in program["flops"])
        use = (f"{work / once / plan['peak']:.1%}" for work in (useful, useful - program["recomputed"]))
        seconds = f"{once:.3g}", str(times), f"{times * once:.3g}", f"{times * once / whole:.1%}"
        rows.append((program["name"], *seconds, *use))
        for row in program["cycles"]:
            costs[row["part"], row["pass"], row["place"]] += times * row["cycles"] / plan["clock"]
    largest = [("largest costs", "pass", "where", "s", "share")]
    largest += [(*names, f"{seconds:.3g}", f"{seconds / whole:.1%}") for names, seconds in costs.most_common(LARGEST)]
    use, use_once = plan["use"]
    total = f"an iteration takes {whole:.3g} s, {use:.1%} of peak, {use_once:.1%} without recomputation"
    return f"{aligned(rows)}\n{total}; transfers are added as if nothing overlapped\n\n{aligned(largest)}"


def _gb(size: int | float) -> str:
    return f"{size / 1e9:.2f}"

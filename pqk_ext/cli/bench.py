"""``pqk bench``: how fast a file runs on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli.bench_peers import check_installed, compare_peers, peers_table
from pqk_ext.cli.bench_profile import launches, measure
from pqk_ext.cli.bench_roofline import check_picture, draw_roofline
from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.options import DeviceName, JsonPath, Network, Threads, load_network
from pqk_ext.cli.output import check_json, emit, table
from pqk_ext.timing import interleaved

if TYPE_CHECKING:
    from pqk_ext.runtime import Model


def bench(
    file: Network,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples a call.")] = 1,
    threads: Threads = 1,
    device: DeviceName = "cpu",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; each gives one figure.")] = 50,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="A second file, timed in turn with the first.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also each layer: kernel, shape, time, share of the peak.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also ONNX Runtime and OpenVINO, those installed, on the same network.")
    ] = False,
    roofline: Annotated[
        Path | None,
        typer.Option(
            "--roofline", metavar="PICTURE", help="Also draw the layers under the machine's limits: .png, .svg."
        ),
    ] = None,
    json: JsonPath = None,
) -> None:
    """Time a file. Needs no torch.

    After a warm-up, rounds of about 20 ms; with --against the files take turns, so that both meet the same machine. A
    round's figure is its mean; shown are median and least over the rounds.
    """
    import numpy as np

    check_json(json)
    if device != "cpu" and (peers or roofline is not None):
        raise Failure(ExitCode.USAGE, "--peers and --roofline compare on the CPU: leave out --device")
    if peers:
        check_installed()
    if roofline is not None:
        check_picture(roofline)
    networks = [load_network(path, threads=threads, device=device) for path in (file, against) if path is not None]
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal((batch, *n.input_shape)).astype(np.float32) for n in networks]
    calls = [_call(network, x) for network, x in zip(networks, inputs, strict=True)]
    seconds = interleaved(calls, rounds)
    values = _values(networks[0], str(file), batch, seconds[0])
    rows = [_row(file, values)]
    if against is not None:
        other = _values(networks[1], str(against), batch, seconds[1])
        ratios = [b / a for a, b in zip(*seconds, strict=True)]
        values["against"] = other | {"ratio": statistics.median(ratios)}
        rows.append((*_row(against, other)[:-1], f"{statistics.median(ratios):.2f}x the first"))
    where = networks[0].device if device != "cpu" else f"{threads} thread{'s' if threads > 1 else ''}"
    title = f"{networks[0].isa}, batch {batch}, {where}, {rounds} rounds"
    columns = ("file", ">median us", ">least us", ">us/sample", "")
    shown = [table(title, columns, rows)]
    if profile and networks[0].device != "cpu":
        values["launches"], shown_launches = launches(networks[0], inputs[0])
        shown.append(shown_launches)
    elif profile or roofline is not None:
        layers = measure(networks[0], inputs[0])
        values |= {"profile": layers.values(), "layers": layers.layer_values()}
        if profile:
            shown.append(layers.table())
        if roofline is not None:
            values["roofline"] = draw_roofline(layers, file, roofline)
    if peers:
        values["peers"] = compare_peers(networks[0], batch, rounds)
        shown.append(peers_table(values["peers"], title))
    emit(values, json, *shown)


def _call(network: Model, x: Any) -> Callable[[], object]:
    out = network(x)
    return lambda: network.run(x, out)


def _values(network: Model, file: str, batch: int, seconds: list[float]) -> dict[str, Any]:
    return {
        "file": file,
        "batch": batch,
        "threads": network.num_threads,
        "device": network.device,
        "isa": network.isa,
        "rounds": len(seconds),
        "median_us": 1e6 * statistics.median(seconds),
        "min_us": 1e6 * min(seconds),
        "median_us_per_sample": 1e6 * statistics.median(seconds) / batch,
        "activation_bytes": network.activation_bytes,
    }


def _row(file: Path, values: dict[str, Any]) -> tuple[object, ...]:
    figures = (f"{values[name]:.1f}" for name in ("median_us", "min_us", "median_us_per_sample"))
    return (file, *figures, "")

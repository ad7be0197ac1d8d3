"""`pom-export build`."""

from __future__ import annotations

import click

from pom_export.cli.output import Progress, common_options, human_bytes, print_result


@click.command("build")
@click.argument("model")
@click.option("-o", "--output", required=True, help="Where the engine goes; its manifest is OUTPUT.json.")
@click.option(
    "--backend", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]), default="auto", show_default=True,
    help="auto: the full TensorRT where installed.",
)  # fmt: skip
@click.option("--targets", help="GPU architectures, such as sm86,sm120 (tensorrt-rtx); default: the GPU here.")
@click.option("--minShapes", "min_shapes", help="Smallest shapes, such as x:1x1x64.")
@click.option("--optShapes", "opt_shapes", help="Most frequent shapes.")
@click.option("--maxShapes", "max_shapes", help="Largest shapes.")
@click.option("--timing-cache", help="A file to read and update (full TensorRT only).")
@click.option("--embed-plugin/--no-embed-plugin", default=True, show_default=True, help="Carry the plugin inside.")
@common_options
def command(
    model: str,
    output: str,
    backend: str,
    targets: str | None,
    min_shapes: str | None,
    opt_shapes: str | None,
    max_shapes: str | None,
    timing_cache: str | None,
    embed_plugin: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Build a TensorRT engine of MODEL. TensorRT for RTX needs no GPU for that."""
    progress = Progress(verbose or not as_json)
    progress(f"reading {model}")
    from pom_export.engine import build_engine, parse_shapes, parse_targets

    info = build_engine(
        model,
        output,
        backend=backend,
        targets=parse_targets(targets),
        min_shapes=parse_shapes(min_shapes, "--minShapes"),
        opt_shapes=parse_shapes(opt_shapes, "--optShapes"),
        max_shapes=parse_shapes(max_shapes, "--maxShapes"),
        timing_cache=timing_cache,
        embed_plugin=embed_plugin,
        progress=progress,
    )
    shapes = (
        f"{name} {' / '.join('x'.join(map(str, sizes)) for sizes in profile.values())}"
        for name, profile in info.profiles.items()
    )
    lines = [
        ("engine", f"{info.engine} ({human_bytes(info.bytes)})"),
        ("manifest", info.manifest),
        ("backend", f"{info.backend} {info.backend_version}"),
        ("targets", ", ".join(info.targets)),
        ("plugin layers", f"{info.plugin_layers} of {info.aggregations} aggregations"),
        ("plugin", "embedded" if info.plugin_embedded else "to be loaded before the engine"),
        ("shapes (min / opt / max)", "; ".join(shapes)),
        ("seconds", f"{info.seconds:.1f}"),
    ]
    print_result(info.to_dict(), as_json, lines)

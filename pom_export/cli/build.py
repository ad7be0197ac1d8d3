"""`pom-export build`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from pom_export.cli.options import common_options
from pom_export.cli.output import human_bytes, print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE, FOLDER, Choice, Parsed
from pom_export.cli.progress import stages
from pom_export.engine.backend import AUTO, BACKENDS
from pom_export.engine.targets import DEFAULT_TARGETS, parse_targets

_SHOWN: Final = 3


@click.command("build")
@click.argument("model", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="Where the engine goes; its manifest is OUTPUT.json.")
@click.option(
    "--backend", type=Choice([AUTO, *BACKENDS]), default=AUTO, show_default=True,
    help="auto: the full TensorRT if installed.",
)  # fmt: skip
@click.option(
    "--targets", type=Parsed(parse_targets, DEFAULT_TARGETS),
    help="GPU architectures, such as sm86,sm120, also as sm_86 or 8.6 (tensorrt-rtx); default: the GPU here, or "
    f"without one {','.join(DEFAULT_TARGETS)}, as far as they multiply the model's types.",
)  # fmt: skip
@click.option(
    "--minShapes", "min_shapes", help="Smallest shapes, such as x:1x1x64; default: 1 for each dynamic dimension."
)
@click.option("--optShapes", "opt_shapes", help="Most frequent shapes; default: batch 1, 256 tokens.")
@click.option("--maxShapes", "max_shapes", help="Largest shapes; default: batch 8, 4096 tokens.")
@click.option("--timing-cache", type=FILE, help="A file to read and update (full TensorRT only).")
@click.option("--cache", type=FOLDER, help="A folder that keeps engines for reuse.")
@click.option(
    "--plugin/--no-plugin", "use_plugin", default=True, show_default=True,
    help="Compute aggregations with the plugin, or with standard ops.",
)  # fmt: skip
@click.option("--embed-plugin/--no-embed-plugin", default=True, show_default=True, help="Carry the plugin inside.")
@common_options
@writes("output")
def command(
    model: str,
    output: str,
    targets: tuple[str, ...] | None,
    min_shapes: str | None,
    opt_shapes: str | None,
    max_shapes: str | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Build a TensorRT engine from MODEL. TensorRT for RTX can do this without a GPU."""
    with stages(f"reading {model}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.engine import build_engine, parse_shapes

        info = build_engine(
            model,
            output,
            targets=targets or (),
            min_shapes=parse_shapes(min_shapes, "--minShapes"),
            opt_shapes=parse_shapes(opt_shapes, "--optShapes"),
            max_shapes=parse_shapes(max_shapes, "--maxShapes"),
            **options,
            progress=progress,
        )
    print_result(info.to_dict(), as_json, engine_lines(info.to_dict()))


def engine_lines(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return lines that describe an engine, from the values of its manifest."""
    shapes = (f"{name} {' / '.join(map(_sizes, profile.values()))}" for name, profile in manifest["profiles"].items())
    return [
        ("engine", f"{manifest['engine']} ({human_bytes(manifest['bytes'])})"),
        ("manifest", manifest["manifest"]),
        ("backend", f"{manifest['backend']} {manifest['backend_version']}"),
        ("targets", ", ".join(manifest["targets"])),
        ("plugin layers", _plugin_layers(manifest)),
        ("plugin", _plugin(manifest)),
        *_products(manifest),
        ("layers that compute", _counts(manifest["precisions"])),
        ("shapes (min / opt / max)", "; ".join(shapes)),
        ("seconds", f"{manifest['seconds']:.1f}{' (from the cache)' if manifest['cached'] else ''}"),
        ("command line", manifest["command_line"]),
    ]


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _plugin_layers(manifest: Mapping[str, Any]) -> str:
    if not manifest["aggregations"]:
        return "0: the model is inlined, and has nothing for the plugin to compute"
    return f"{manifest['plugin_layers']} of {manifest['aggregations']} aggregations"


def _plugin(manifest: Mapping[str, Any]) -> str:
    if manifest["plugin_sha256"] is None:
        return "not used: the aggregations are standard ops"
    return "embedded" if manifest["plugin_embedded"] else "to be loaded before the engine"


def _products(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield lines about matrix products; manifests of earlier versions do not say what the engine got."""
    yield "matrix products", _counts(manifest["matrix_products"])
    got = manifest.get("engine_products")
    if got is not None:
        yield "matrix products as built", _counts(got)
    otherwise = manifest.get("not_as_asked") or {}
    shown = [f"{name}: {types}" for name, types in otherwise.items()]
    if shown:
        more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        yield "not as asked", f"{'; '.join(shown[:_SHOWN])}{more}"


def _counts(by_type: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in by_type.items())

#!/usr/bin/env python3
"""Run files of every kind in every runtime that is installed here, and write the differences to docs/runtimes.md.

    python tools/runtimes.py                      # all that Python and Node find, or that .deps holds
    python tools/runtimes.py --only openvino iree # some of them; nothing is written

Each file is tried as `export` writes it and as `inline` does, with the same inputs as in ONNX Runtime with our kernels,
whose outputs are the reference. A runtime gets the file without any help, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pom_export.parity.tolerances import MODELS  # noqa: E402 (of this folder, not of an installed package)

PAGE = ROOT / "docs" / "runtimes.md"
BEGIN, END = "<!-- tools/runtimes.py writes what follows -->", "<!-- tools/runtimes.py wrote this -->"
DEPS = ROOT / ".deps"
GOLDEN = ROOT / "tests" / "data" / "golden"
BYTE_LM = ROOT / "samples" / "checkpoints" / "byte_lm.safetensors"

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Infer = Callable[[Feed], Sequence[Array]]

# The kinds of files, in the order of the columns: a name, the checkpoint, and the options of its export.
FILES: Final[Mapping[str, tuple[Path, dict[str, Any]]]] = {
    "language model": (BYTE_LM, {}),
    "the same, stateful": (BYTE_LM, {"stateful": True}),
    "no mask": (GOLDEN / "v2_no_heads", {"mask": "none"}),
    "causal": (GOLDEN / "v2_no_heads", {"mask": "causal"}),
    "padding": (GOLDEN / "v2_no_heads", {"mask": "padding"}),
    "full mask": (GOLDEN / "v2_no_heads", {"mask": "full"}),
    "heads": (GOLDEN / "v2_heads", {"mask": "causal"}),
    "version 1": (GOLDEN / "v1_degree3", {"mask": "causal"}),
    "rotary": (GOLDEN / "rope1d", {"mask": "causal"}),
}
BATCH, TOKENS = 2, 67
# What some runtimes begin their messages with.
TIME = re.compile(r"^\[[\d:. ]+\][\s:\d]*")
LONGEST_S = 600


def onnxruntime_alone(path: Path) -> Infer:
    """ONNX Runtime without our library."""
    from pom_export import inference_session

    session = inference_session(path, kernels=False)
    return lambda feed: session.run(None, feed)


def onnx_reference(path: Path) -> Infer:
    """The onnx package's evaluator."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return lambda feed: evaluator.run(None, feed)  # type: ignore[return-value]


def openvino(path: Path, **settings: str) -> Infer:
    """OpenVINO on the CPU, in its own precision or in the one that the settings ask for."""
    from openvino import Core

    core = Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def infer(feed: Feed) -> list[Array]:
        results = request.infer(feed)
        return [np.array(results[name]) for name in names_of(path)[1]]

    return infer


def openvino_float32(path: Path) -> Infer:
    """OpenVINO on the CPU, told to compute in float32."""
    return openvino(path, INFERENCE_PRECISION_HINT="f32")


def javascript(package: str) -> Callable[[Path], Infer]:
    """Return how to load a file in one of ONNX Runtime's npm packages."""

    def load(path: Path) -> Infer:
        from pom_export.graph.exported_model import read_model
        from pom_export.runtime.node import NodeRunner

        runner = NodeRunner(package, read_model(path)).__enter__()  # until the process ends
        return lambda feed: [runner.infer(feed)[name] for name in names_of(path)[1]]

    return load


def iree(path: Path) -> Infer:
    """IREE, compiled for this CPU."""
    import iree.compiler
    from iree import runtime

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.mlir"
        command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", str(path), "-o", str(graph)]
        subprocess.run(command, check=True, capture_output=True)
        name = re.search(r"func\.func @(\w+)", graph.read_text())
        assert name is not None
        target = ["--iree-llvmcpu-target-cpu=host"]
        code = iree.compiler.compile_file(
            str(graph), target_backends=["llvm-cpu"], input_type="onnx", extra_args=target
        )
    context = runtime.SystemContext(config=runtime.Config("local-task"))
    context.add_vm_module(runtime.VmModule.copy_buffer(context.instance, code))
    function = context.modules.module[name[1]]

    def infer(feed: Feed) -> list[Array]:
        outputs = function(*(feed[each] for each in names_of(path)[0]))
        return [np.asarray(each) for each in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]

    return infer


def mnn(path: Path) -> Infer:
    """MNN, after its converter; it has no int64."""
    from MNN import expr, nn

    inputs, outputs = names_of(path)
    folder = Path(tempfile.mkdtemp())
    converted = folder / "model.mnn"
    converter = Path(sys.executable).with_name("mnnconvert")
    command = [converter, "-f", "ONNX", "--modelFile", path, "--MNNModel", converted, "--bizCode", "model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not converted.exists():  # the converter's exit code is 0 then too
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(next((line for line in lines if "not support" in line.lower()), lines[-1]))
    module = nn.load_module_from_file(str(converted), inputs, outputs)
    kinds = {"f": expr.float, "i": expr.int, "b": expr.int}

    def infer(feed: Feed) -> list[Array]:
        given = [feed[name].astype(np.int32) if feed[name].dtype.kind in "ib" else feed[name] for name in inputs]
        values = [
            expr.const(array.flatten().tolist(), list(array.shape), expr.NCHW, kinds[array.dtype.kind])
            for array in given
        ]
        return [np.array(value.read()).reshape(value.shape) for value in module.forward(values)]

    return infer


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        title: its name in the table.
        load: loads a file and returns how to run it.
        found: returns its version; raises an exception if it is not installed.
    """

    title: str
    load: Callable[[Path], Infer]
    found: Callable[[], str]


def of_module(module: str, package: str) -> Callable[[], str]:
    """Return how to find a Python package's version."""

    def find() -> str:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(module)
        return version(package)

    return find


def of_npm(package: str) -> Callable[[], str]:
    """Return how to find an npm package's version."""

    def find() -> str:
        from pom_export.runtime.node import find_package, package_version

        return package_version(find_package(package))

    return find


WEB, NODE = "onnxruntime-web", "onnxruntime-node"
RUNTIMES: Final[Mapping[str, Runtime]] = {
    "onnxruntime": Runtime("ONNX Runtime, no library", onnxruntime_alone, of_module("onnxruntime", "onnxruntime")),
    WEB: Runtime("onnxruntime-web", javascript(WEB), of_npm(WEB)),
    NODE: Runtime("onnxruntime-node", javascript(NODE), of_npm(NODE)),
    "openvino": Runtime("OpenVINO, told float32", openvino_float32, of_module("openvino", "openvino")),
    "openvino-default": Runtime("OpenVINO, as it is", openvino, of_module("openvino", "openvino")),
    "onnx": Runtime("onnx.reference", onnx_reference, of_module("onnx", "onnx")),
    "iree": Runtime("IREE", iree, of_module("iree.compiler", "iree-base-compiler")),
    "mnn": Runtime("MNN", mnn, of_module("MNN", "mnn")),
}  # fmt: skip


def names_of(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of a file's inputs and outputs."""
    from pom_export.graph.exported_model import read_model

    model = read_model(path)
    return [spec.name for spec in model.inputs], [spec.name for spec in model.outputs]


def write_files(folder: Path) -> None:
    """Export every file, as it is and inlined, with inputs and with the outputs of our kernels."""
    import pom_export
    from pom_export.graph.exported_model import read_model
    from pom_export.parity.inputs import ComparisonPlan, draw

    for index, (checkpoint, options) in enumerate(FILES.values()):
        path = folder / f"{index}.onnx"
        pom_export.export(checkpoint, path, **options)
        pom_export.inline(path, folder / f"{index}.inlined.onnx")
        model = read_model(path)
        plan = ComparisonPlan("trial", BATCH, TOKENS, TOKENS)
        feed = draw(model.inputs, plan, model.limits, np.random.default_rng(0))
        outputs = pom_export.inference_session(path).run(None, feed)
        arrays = {f"in/{name}": array for name, array in feed.items()}
        arrays |= {f"out/{spec.name}": array for spec, array in zip(model.outputs, outputs, strict=True)}
        np.savez(folder / f"{index}.npz", **arrays)  # type: ignore[arg-type]


def difference(load: Callable[[Path], Infer], path: Path, data: Path) -> float:
    """Return the largest difference of an output from the reference, over the reference's largest magnitude.

    It is infinite if an output is not finite. A state's sum is compared, not the two numbers that it is stored as.

    Raises:
        ValueError: an output has another shape.
    """
    with np.load(data) as arrays:
        feed = {name.removeprefix("in/"): array for name, array in arrays.items() if name.startswith("in/")}
        expected = {name.removeprefix("out/"): array for name, array in arrays.items() if name.startswith("out/")}
    made = load(path)(feed)
    worst = 0.0
    for (name, reference), array in zip(expected.items(), made, strict=True):
        if array.shape != reference.shape:
            raise ValueError(f"{name} has the shape {list(array.shape)}, not {list(reference.shape)}")
        pair = (array.astype(np.float64), reference.astype(np.float64))
        if name == "present_state":
            pair = (pair[0].sum(axis=-2), pair[1].sum(axis=-2))
        found = float(np.abs(pair[0] - pair[1]).max() / max(np.abs(pair[1]).max(), np.finfo(np.float32).tiny))
        worst = max(worst, found if np.isfinite(found) else np.inf)
    return worst


def reason_in(text: str) -> str:
    """Return the line of a runtime's message that says why it refused a file, without times and places."""
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error: " in line] or [line for line in lines if "pom" in line.lower()]
    line = [*telling, *lines[-1:], ""][0].rpartition("error: ")[2]
    return TIME.sub("", line.partition(": %")[0])  # compilers then quote the operation, with the names of its values


def work(name: str, folder: Path, kind: str) -> None:
    """Run one file in one runtime, and print the difference or the reason as JSON."""
    try:
        found = difference(RUNTIMES[name].load, folder / f"{kind}.onnx", folder / f"{kind.partition('.')[0]}.npz")
        print(json.dumps({"difference": found}))
    except Exception as error:  # noqa: BLE001 (whatever a runtime raises)
        print(json.dumps({"reason": reason_in(str(error)) or type(error).__name__}))


def environment() -> dict[str, str]:
    """Return an environment in which Python also finds what `make test-all` has fetched."""
    fetched = sorted(map(str, DEPS.glob("openvino-*")))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), *fetched[-1:]]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "POM_RUNTIMES_WORKER": "1"}


def cell(name: str, folder: Path, kind: str, where: Path) -> dict[str, Any]:
    """Run one file in one runtime, in a new process; a process that dies or takes too long is a reason too."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, str(folder), kind]
    try:
        done = subprocess.run(
            command, env=environment(), cwd=where, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"reason": f"the process ended with code {done.returncode}"}
    except subprocess.TimeoutExpired:
        return {"reason": f"no result after {LONGEST_S} s"}
    return answer


def text_of(answer: Mapping[str, Any]) -> str:
    """Return a cell of the table; a difference beyond the tolerance is in bold."""
    if "difference" not in answer:
        return "refused"
    number = f"{answer['difference']:.0e}"
    return number if answer["difference"] <= MODELS["float32"].relative else f"**{number}**"


def tables(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], versions: Mapping[str, str]) -> str:
    """Return the tables as Markdown, with the reasons for what was refused below them."""
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    for way in ("as exported", "inlined"):
        lines += [f"## {way.capitalize()}", "", "| runtime | " + " | ".join(FILES) + " |"]
        lines += ["|---|" + "---|" * len(FILES)]
        for name, by_way in results.items():
            title = f"{RUNTIMES[name].title} {versions[name]}"
            lines.append(f"| {title} | " + " | ".join(map(text_of, by_way[way])) + " |")
            for file, answer in zip(FILES, by_way[way], strict=True):
                if "reason" in answer:
                    reasons.setdefault(f"{title}, {way}: {answer['reason'][:200]}", []).append(file)
        lines.append("")
    if reasons:
        lines += ["## What was refused", ""]
        for reason, files in reasons.items():
            lines.append(f"- {reason} ({', '.join(files) if len(files) < len(FILES) else 'all files'})")
        lines.append("")
    return "\n".join(lines)


def processor() -> str:
    """Return the processor's name, and whether it computes in bfloat16."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return f"{name[1] if name else 'unknown'}, {'with' if 'bf16' in text else 'without'} bfloat16"


def main() -> int:
    """Run the runtimes, print the tables and write them to the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(RUNTIMES), help="print the tables of these, and write nothing"
    )
    parser.add_argument("--packages", type=Path, help="the folder whose node_modules hold ONNX Runtime's npm packages")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, folder, kind = arguments.worker
        work(name, Path(folder), kind)
        return 0
    if "POM_RUNTIMES_WORKER" not in os.environ:  # again, with the paths of what was fetched
        return subprocess.call([sys.executable, *sys.argv], env=environment())
    fetched = sorted(DEPS.glob("onnxruntime-web-*"))
    os.chdir(arguments.packages or (fetched[-1] if fetched else ROOT))
    versions, results = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder)
        for name in arguments.only or RUNTIMES:
            try:
                versions[name] = RUNTIMES[name].found()
            except Exception as error:  # noqa: BLE001 (not installed, in whatever way)
                print(f"{name} is not installed: {error}", file=sys.stderr)
                continue
            print(f"{name} {versions[name]}", file=sys.stderr)
            results[name] = {
                way: [cell(name, folder, f"{index}{suffix}", Path.cwd()) for index in range(len(FILES))]
                for way, suffix in (("as exported", ""), ("inlined", ".inlined"))
            }
    written = tables(results, versions)
    print(written)
    if not arguments.only:
        head, begin, rest = PAGE.read_text().partition(BEGIN)
        _, end, tail = rest.partition(END)
        if not begin or not end:
            sys.exit(f"{PAGE} lacks the lines between which the tables go")
        made = f"\nMade on {date.today().isoformat()} on {processor()}.\n\n"
        PAGE.write_text(f"{head}{BEGIN}\n{made}{written}\n{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What model repositories for Triton have in common, whatever the backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pom_export.bench.options import KERNEL
from pom_export.errors import InputError
from pom_export.files import AnyPath
from pom_export.graph.exported_model import ExportedModel
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.triton.batch_sizes import preferred_sizes
from pom_export.packaging.triton.batches import has_batch_axis
from pom_export.packaging.triton.config import Word, as_text, tensor

SERVED: Final = Path(__file__).parent / "served"
"""The programs that are copied into packages."""
COMMAND: Final = "tritonserver --model-repository=models"
MOST_SEQUENCES: Final = 1024
MOST_TOGETHER: Final = 64
IDLE_SECONDS: Final = 600


def write_repository(folder: PackageFolder, name: str, backend: str, config: Mapping[str, Any]) -> None:
    """Write a model's configuration, and the programs for its users.

    Args:
        folder: the package.
        name: the model's name.
        backend: the server's backend.
        config: the other entries of the configuration.
    """
    folder.write(f"models/{name}/config.pbtxt", as_text({"name": name, "backend": backend, **config}))
    folder.copy_programs(SERVED, "preflight.py", "client.py")


def batched_config(
    model: ExportedModel, bench: AnyPath | None, backend: str = KERNEL, most: int | None = None
) -> dict[str, Any]:
    """Return the configuration of a model without a state, whose requests are batched if it has a batch axis.

    Args:
        model: the file.
        bench: results of `pom-export bench`; None: all that waits is batched, up to a number. A size that is preferred
            for no reason would only delay requests.
        backend: which of the backends that `bench` timed runs the model in the server.
        most: the largest batch that can be run; None: no limit.
    """
    batched = has_batch_axis(model)
    if bench is not None and not batched:
        raise InputError(f"`bench` does not apply: {model.path.name} has no batch axis of any size", "Leave it out")
    tensors = {
        "input": [tensor(spec, batched=batched) for spec in model.inputs],
        "output": [tensor(spec, batched=batched) for spec in model.outputs],
    }
    if not batched:
        return {"max_batch_size": 0, **tensors}
    preferred = [] if bench is None else [n for n in preferred_sizes(bench, backend) if most is None or n <= most]
    largest = preferred[-1] if preferred else min(MOST_TOGETHER, most or MOST_TOGETHER)
    batching = {"preferred_batch_size": preferred} if preferred else {}
    return {"max_batch_size": largest, **tensors, "dynamic_batching": batching}


def sequences_config(most: int = MOST_SEQUENCES, together: int = MOST_TOGETHER, **more: Any) -> dict[str, Any]:
    """Return the configuration of how sequences are batched.

    Args:
        most: the most sequences at a time.
        together: the most in a call.
        more: further entries of `sequence_batching`.
    """
    idle = IDLE_SECONDS * 1_000_000
    oldest = {"max_candidate_sequences": most}
    batching = {"max_sequence_idle_microseconds": idle, **more, "oldest": oldest}
    return {"max_batch_size": together, "sequence_batching": batching}


def on_cpu() -> dict[str, Any]:
    """Return the configuration of one instance on the CPU."""
    return {"instance_group": [{"count": 1, "kind": Word("KIND_CPU")}]}

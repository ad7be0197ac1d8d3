"""How many replicas there are, and what keeps others from a cluster of ours. Read before Ray is imported."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import Any

from pom_export.errors import InputError


@dataclass(frozen=True)
class RaySettings:
    """How many replicas there are, and what each takes.

    Attributes:
        replicas: number of replicas; with `most_replicas`, the fewest.
        most_replicas: the most replicas; 0: as many as `replicas`.
        aimed_requests: with `most_replicas`, how many requests each replica should have at a time.
        replica_cpus: processors that Ray reserves for each.

    Raises:
        InputError: there are more replicas at least than at most.
    """

    replicas: int = 1
    most_replicas: int = 0
    aimed_requests: int = 32
    replica_cpus: float = 1.0

    def __post_init__(self) -> None:
        if 0 < self.most_replicas < self.replicas:
            raise InputError(
                f"{self.replicas} replicas are more than the most, {self.most_replicas}", "Choose other numbers"
            )

    @property
    def scaling(self) -> dict[str, Any]:
        """The options of a deployment for the number of its replicas."""
        if not self.most_replicas:
            return {"num_replicas": self.replicas}
        bounds = {"min_replicas": self.replicas, "initial_replicas": self.replicas, "max_replicas": self.most_replicas}
        return {"autoscaling_config": {**bounds, "target_ongoing_requests": self.aimed_requests}}


def joins_cluster() -> bool:
    """Return whether there is a cluster to join, which RAY_ADDRESS names; otherwise one is started on this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


def keep_to_ourselves() -> None:
    """Let nobody else use a cluster that is started here: Ray listens on every network, whatever it is told.

    Ray reads this when it is imported.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

"""What examples/serving holds is what Docker and KServe can read; nothing is built or run."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client
import pytest
import yaml

SERVING = Path(__file__).resolve().parents[2] / "examples" / "serving"
KINDS = {
    "InferenceService": kserve.models.V1beta1InferenceService,
    "ServingRuntime": kserve.models.V1alpha1ServingRuntime,
}
MANIFESTS = list(yaml.safe_load_all((SERVING / "kserve.yaml").read_text()))


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "info", SERVING / "Dockerfile"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: one["kind"])
def test_kserve_knows_every_field_of_the_manifest(manifest):
    assert list(unknown(manifest, KINDS[manifest["kind"]])) == []


def test_a_field_that_kserve_does_not_know_would_be_found():
    changed = copy.deepcopy(MANIFESTS[1])
    changed["spec"]["containers"][0]["readinessProbe"]["httpGet"]["novelty"] = 1
    found = list(unknown(changed, KINDS["ServingRuntime"]))
    assert found == [".spec.containers[0].readinessProbe.httpGet.novelty"]


def unknown(value: Any, kind: Any, path: str = "") -> Iterator[str]:
    """Paths of a manifest's fields that the classes of KServe's and Kubernetes' clients lack."""
    names = {key: attribute for attribute, key in kind.attribute_map.items()}
    for key, content in value.items():
        if key not in names:
            yield f"{path}.{key}"
            continue
        name = kind.openapi_types[names[key]]
        inner = re.fullmatch(r"(?:list|List)\[(\w+)\]", name)
        below = class_of(inner[1] if inner else name)
        if below is None:
            continue
        for place, each in enumerate(content if inner else [content]):
            yield from unknown(each, below, f"{path}.{key}{f'[{place}]' if inner else ''}")


def class_of(name: str) -> Any:
    """The class of a name, None for a plain type."""
    found = getattr(kserve.models, name, None) or getattr(kubernetes.client, name, None)
    return found if hasattr(found, "openapi_types") else None

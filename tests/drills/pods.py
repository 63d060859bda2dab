"""The pods of configs/kubernetes.yaml, as Kubernetes would make them of it."""

import functools
from typing import Any

import yaml

from . import runs

_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@functools.cache
def objects() -> dict[str, Any]:
    """The manifest's objects by their kind."""
    text = (runs.REPOSITORY / "configs" / "kubernetes.yaml").read_text()
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


def pod() -> Any:
    """The specification of a pod."""
    return objects()["Job"]["spec"]["template"]["spec"]


def service() -> str:
    return str(objects()["Service"]["metadata"]["name"])


def hostname(index: int) -> str:
    """As the Job controller names the pods of an Indexed Job; with the Service's name behind it, in the DNS."""
    return f"{objects()['Job']['metadata']['name']}-{index}"


def environment(index: int) -> dict[str, str]:
    """The variables of a pod: those that the manifest sets, and Kubernetes' own."""
    own = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "JOB_COMPLETION_INDEX": str(index)}
    for variable in pod()["containers"][0]["env"]:
        if "value" in variable:
            own[variable["name"]] = variable["value"]
        else:
            assert variable["valueFrom"]["fieldRef"]["fieldPath"] == _INDEX
            own[variable["name"]] = str(index)
    return own


def arguments() -> list[str]:
    return [str(argument) for argument in pod()["containers"][0]["args"]]


def grace() -> int:
    """Seconds between SIGTERM and SIGKILL."""
    return int(pod()["terminationGracePeriodSeconds"])

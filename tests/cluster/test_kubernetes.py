"""configs/kubernetes.yaml: what Kubernetes' API accepts, and what makes its pods find each other."""

import copy
import os

import kubernetes_validate
import pytest
from drills import pods

from distmlp import Config
from distmlp.cluster.place import Place, find_place
from launch import flags
from launch.cli import VERBS

VERSIONS = ["1.31", kubernetes_validate.latest_version()]  # the first with podFailurePolicy for all


@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_accepts_it(version: str) -> None:
    assert pods.objects().keys() == {"Service", "Job"}
    for item in pods.objects().values():
        kubernetes_validate.validate(item, version, strict=True)


def test_the_api_would_not_accept_anything() -> None:
    job = copy.deepcopy(pods.objects()["Job"])
    job["spec"]["completion"] = job["spec"].pop("completions")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_the_pods_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    service, job, pod = pods.objects()["Service"]["spec"], pods.objects()["Job"]["spec"], pods.pod()
    count = job["completions"]
    assert (job["completionMode"], job["parallelism"]) == ("Indexed", count)
    assert pod["subdomain"] == pods.service()
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert service["selector"] == {"batch.kubernetes.io/job-name": pods.objects()["Job"]["metadata"]["name"]}
    coordinator = f"{pods.hostname(0)}.{pods.service()}:{service['ports'][0]['port']}"
    for index in range(count):
        monkeypatch.setattr(os, "environ", {"PATH": ""} | pods.environment(index))
        assert find_place(Config()) == Place(coordinator, count, index, 0, 1)


def test_the_pods_command_line_is_right_and_what_they_write_is_on_the_volume() -> None:
    verb, *rest = pods.arguments()
    assert verb in VERBS
    config = flags.parse([verb, *rest])
    config.validate()
    container, (volume,) = pods.pod()["containers"][0], pods.pod()["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    for path in (config.workdir, config.data_dir):
        assert path is not None
        assert path.startswith(mount["mountPath"] + "/")
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert config.expect_devices == gpus * pods.objects()["Job"]["spec"]["completions"]


def test_pods_are_started_again_and_may_save_before_they_are_killed() -> None:
    job = pods.objects()["Job"]["spec"]
    assert pods.pod()["restartPolicy"] == "Never"  # the Job makes new ones; podFailurePolicy asks for it
    assert job["backoffLimit"] >= 10
    assert pods.grace() >= 60
    ignored, failed = job["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert failed["onExitCodes"]["values"] == [3]
    assert failed["onExitCodes"]["containerName"] == pods.pod()["containers"][0]["name"]

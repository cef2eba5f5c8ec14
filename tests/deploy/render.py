"""Renders the Helm chart with each set of values and checks every object against Kubernetes' own schemas.

Run by an interpreter that has `helm-python-sdk` and `kubernetes-validate` (400 MB, so an environment of their own):

    python tests/deploy/render.py deploy/helm/farebox

Prints one line a set of values, and what is wrong; exits 1 then."""

import sys

import helm_python
import kubernetes_validate
import yaml

SECRET = {"existingSecret": "farebox"}
VALUES = {
    "least": SECRET,
    "all": {
        **SECRET,
        "engine": {"enabled": True, "replicas": 2},
        "ingress": {"enabled": True, "className": "nginx", "tlsSecretName": "tls"},
        "gateway": {
            "autoscaling": {"enabled": True},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "journal": {"storageClassName": "fast"},
        },
    },
    "keda": {
        **SECRET,
        "gateway": {"autoscaling": {"keda": {"enabled": True}}},
        "engine": {"enabled": True, "join": "own", "autoscaling": {"keda": {"enabled": True}}},
        "metrics": {"podMonitor": True},
    },
}
LEADER = ["sh", "-c", "multi-node-serving.sh leader --ray_cluster_size=$(LWS_GROUP_SIZE); vllm serve m -tp 8 -pp 2"]
VALUES["sharded"] = {
    **SECRET,
    "engine": {"enabled": True, "tensorParallel": 2, "resources": {"limits": {"nvidia.com/gpu": 2}}},
    "shardedEngine": {
        "enabled": True,
        "replicas": 2,
        "leader": LEADER,
        "worker": ["sh", "-c", "multi-node-serving.sh worker --ray_address=$(LWS_LEADER_ADDRESS)"],
        "join": "own",
        "models": ["m"],
        "resources": {"limits": {"nvidia.com/gpu": 8}},
        "nodeSelector": {"gpu": "h100"},
    },
}
# What the values' schema has to refuse, by its path.
REFUSED = {
    "gateway.replica": {"gateway": {"replica": 3}},
    "gateway.replicas": {"gateway": {"replicas": "three"}},
    "engine.models.size": {"engine": {"models": {"size": "20"}}},
    "shardedEngine.size": {"shardedEngine": {"size": 1}},
    "shardedEngine: say the commands": {"shardedEngine": {"enabled": True}},
    "gateway.terminationGracePeriodSeconds": {"gateway": {"terminationGracePeriodSeconds": 5}},
}
# Kinds of other people's operators have no schema in Kubernetes.
FOREIGN = {"ScaledObject", "PodMonitor"}
# Of a LeaderWorkerSet the pods have one: each is looked at as a Deployment's would be.
GROUPS = "LeaderWorkerSet"
VERSIONS = ("1.30", "1.36")


def objects(chart: "helm_python.Chart", values: dict) -> list[dict]:
    rendered = chart.render(values, name="farebox", namespace="farebox", is_install=True)
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def wrong_with(found: dict) -> list[str]:
    name = f"{found['kind']}/{found['metadata']['name']}"
    if found["kind"] in FOREIGN:
        return []
    if found["kind"] == GROUPS:
        return [problem for pod in pods_of(found) for problem in [*wrong_pod(name, pod), *cut_short(name, pod)]]
    wrong = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{name} ({version}): {error.message}")
    template = found.get("spec", {}).get("template", {}).get("spec", {})
    for container in template.get("containers", []):
        context = container.get("securityContext", {})
        if not (context.get("readOnlyRootFilesystem") and template["securityContext"]["runAsNonRoot"]):
            wrong.append(f"{name}: may write to its root, or be root")
    return wrong


def pods_of(group: dict) -> list[dict]:
    both = group["spec"]["leaderWorkerTemplate"]
    return [both["leaderTemplate"], both["workerTemplate"]]


def wrong_pod(name: str, template: dict) -> list[str]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "x"},
        "spec": template["spec"],
    }
    wrong = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(pod, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{name} ({version}): {error.message}")
    return wrong


def cut_short(name: str, template: dict) -> list[str]:
    """Engines of other makes end at once when they are told to."""
    spec = template["spec"]
    [engine] = [each for each in spec["containers"] if each["name"] == "engine"]
    lingers = engine.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])
    lasts_s = int(lingers[-1].split()[-1])
    fits = 0 < lasts_s < spec.get("terminationGracePeriodSeconds", 30)
    return [] if fits else [f"{name}: what its engine answers is cut short when its pod goes"]


def main(path: str) -> int:
    said = helm_python.lint(path, SECRET, strict=True)["messages"]
    wrong = [f"lint: {message['error']}" for message in said if message["severity"] > 1]
    chart = helm_python.Chart.load(path)
    for name, values in VALUES.items():
        found = objects(chart, values)
        wrong += [problem for each in found for problem in wrong_with(each)]
        print(f"{name}: {', '.join(sorted(f['kind'] for f in found))}")
    for path_in_values, values in REFUSED.items():
        try:
            objects(chart, {**SECRET, **values})
            wrong.append(f"rendered with a bad {path_in_values}")
        except helm_python.HelmError as error:
            print(f"{path_in_values}: {str(error).splitlines()[-1][:100]}")
    try:
        objects(chart, {})
        wrong.append("rendered without a Secret")
    except helm_python.HelmError as error:
        print(f"without a Secret: {str(error).rpartition('existingSecret')[2][:60]}")
    for problem in wrong:
        print(f"WRONG {problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))

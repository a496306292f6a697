"""Checks deploy/: schemas of Kubernetes and compose, settings that exist, times that fit together, the systemd unit.

Usage: manifests.py PROGRAM    PROGRAM stands for the server in the unit. Prints "skipped: ..." for a tool that is missing.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.executable).parent
KUBERNETES = "1.32"
SETTINGS = tomllib.loads((ROOT / "configs/server.toml").read_text())


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def check_setting(where, name):
    _, section, key = name.split("__")
    assert key.lower() in SETTINGS.get(section.lower(), {}), f"{where}: no setting is called {name}"


def drain_seconds(given):
    """Seconds from SIGTERM to the end at the latest, with the environment `given`."""
    server = SETTINGS["server"]
    notice = float(given.get("SHIPREID__SERVER__DRAIN_NOTICE_SECONDS", server["drain_notice_seconds"]))
    return notice + float(given.get("SHIPREID__SERVER__DRAIN_SECONDS_MAX", server["drain_seconds_max"]))


def by_name(documents, kind, name):
    return next(one for one in documents if one["kind"] == kind and one["metadata"]["name"].startswith(name))


def check_overlay(overlay):
    rendered = list(yaml.safe_load_all(run(TOOLS / "kubectl", "kustomize", overlay)))
    # Schemas of operators' own kinds are not at hand.
    for document in (one for one in rendered if one["apiVersion"] != "postgresql.cnpg.io/v1"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    general = by_name(rendered, "ConfigMap", "shipreid")["data"]
    stateful = [("StatefulSet", one["metadata"]["name"]) for one in rendered if one["kind"] == "StatefulSet"]
    for kind, name in [("Deployment", "shipreid-encode"), *stateful]:
        where = f"{overlay.name}: {name}"
        pod = by_name(rendered, kind, name)["spec"]["template"]["spec"]
        container = pod["containers"][0]
        given = general | {one["name"]: one["value"] for one in container["env"] if "value" in one}
        for setting in given:
            check_setting(where, setting)
        assert drain_seconds(given) < pod["terminationGracePeriodSeconds"], where
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", where
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", where
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        declared = {volume["name"] for volume in pod["volumes"]} | ({"data"} if kind == "StatefulSet" else set())
        assert mounted == declared, where
    check_one_state(by_name(rendered, "StatefulSet", "shipreid-state"))
    if overlay.name == "shared":
        check_shared(rendered)
    container = by_name(rendered, "StatefulSet", "shipreid-state")["spec"]["template"]["spec"]["containers"][0]
    given = {one["name"]: one.get("value") for one in container["env"]}
    job = int(given["SHIPREID__TRAINING__MEMORY_BYTES_MAX"])
    limit = container["resources"]["limits"]["memory"]
    assert job <= int(limit.removesuffix("Gi")) * 2**30 // 2 and limit.endswith("Gi"), "a job must leave room to serve"
    recorded = (DEPLOY / "prometheus/rules/recording.yml").read_text()
    adapter = yaml.safe_load((DEPLOY / "kubernetes/components/autoscaling/adapter.yaml").read_text())["rules"]["custom"][0]
    scaler = by_name(rendered, "HorizontalPodAutoscaler", "shipreid-encode")["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == adapter["name"]["as"]
    assert f'record: {adapter["seriesQuery"].split("{")[0]}\n' in recorded


def check_shared(rendered):
    """Every server with galleries has the database's URL, trusts its authority, and may reach it; connections suffice."""
    database = by_name(rendered, "Cluster", "shipreid-db")
    name, replicas = database["metadata"]["name"], 0
    policy = by_name(rendered, "NetworkPolicy", "shipreid-database")["spec"]
    reached = policy["egress"][0]["to"][0]["podSelector"]["matchLabels"]
    assert reached == {"cnpg.io/cluster": name}
    for server in (one for one in rendered if one["kind"] == "StatefulSet"):
        pod = server["spec"]["template"]
        assert pod["metadata"]["labels"]["app.kubernetes.io/component"] in policy["podSelector"]["matchExpressions"][0]["values"]
        container = pod["spec"]["containers"][0]
        env = {one["name"]: one for one in container["env"]}
        assert env["DATABASE"]["valueFrom"]["secretKeyRef"] == {"name": f"{name}-app", "key": "uri"}
        authority = re.fullmatch(r"\$\(DATABASE\)\?sslmode=verify-full&sslrootcert=(.+)", env["SHIPREID__STORE__URL"]["value"])[1]
        mount = next(one for one in container["volumeMounts"] if authority.startswith(one["mountPath"] + "/"))
        volume = next(one for one in pod["spec"]["volumes"] if one["name"] == mount["name"])
        assert volume["secret"]["secretName"] == f"{name}-ca"
        # One that stops and one that starts may overlap.
        replicas += server["spec"]["replicas"] + 1
    assert database["spec"]["postgresql"]["synchronous"]["number"] >= 1 < database["spec"]["instances"] - 1
    assert int(database["spec"]["postgresql"]["parameters"]["max_connections"]) > 16 * replicas


def check_one_state(state):
    schema = json.loads((DEPLOY / "kubernetes/state.schema.json").read_text())
    jsonschema.validate(state, schema)
    for replicas in (2, 10):
        more = state | {"spec": state["spec"] | {"replicas": replicas}}
        try:
            jsonschema.validate(more, schema)
        except jsonschema.ValidationError:
            continue
        raise AssertionError(f"{replicas} replicas of state pass the schema")


def check_training(program):
    """A run in several pods: every rank exists, all find the first one, and the program takes the configuration."""
    folder = DEPLOY / "kubernetes/training"
    rendered = list(yaml.safe_load_all(run(TOOLS / "kubectl", "kustomize", folder)))
    for document in rendered:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    job, service = by_name(rendered, "Job", "shipreid")["spec"], by_name(rendered, "Service", "shipreid")
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    given = {one["name"]: one.get("value") for one in container["env"]}
    assert job["completions"] == job["parallelism"] == int(given["WORLD_SIZE"])
    name = by_name(rendered, "Job", "shipreid")["metadata"]["name"]
    assert given["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}" and pod["subdomain"] == service["metadata"]["name"]
    assert int(given["MASTER_PORT"]) == service["spec"]["ports"][0]["port"]
    labels = job["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    # The data are elsewhere, and nothing else is wrong.
    arguments = [argument.replace("/etc/shipreid/", f"{ROOT}/configs/") for argument in container["args"]]
    arguments = [argument for argument in arguments if not argument.startswith(("--out", "--device"))]
    checked = subprocess.run([program, *arguments, "--validate-only"], capture_output=True, text=True)
    complaints = re.findall(r"(\S+) cannot be used", checked.stderr)
    assert checked.returncode == 2 and complaints == ["data.root", "start.path"], checked.stderr


def check_compose(path):
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    services = yaml.safe_load(path.read_text())["services"]
    ours = [name for name in services if name.startswith("shipreid")]
    assert ours, path
    for name in ours:
        given = services[name]["environment"]
        for setting in [*given, *re.findall(r"# (SHIPREID__\w+):", path.read_text())]:
            check_setting(path.name, setting)
        assert drain_seconds(given) < float(services[name]["stop_grace_period"].removesuffix("s"))
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), f"{name} is open to everybody"
        assert "healthcheck" in service, name
        assert name in ours or re.search(r":v?\d+(\.\d+){1,2}$", service["image"]), f"{name} is not pinned"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("..") or (path.parent / source).exists(), f"{name}: there is no {source}"


def check_balancer():
    """HAProxy accepts its files, and balances over the servers of the compose file."""
    path = DEPLOY / "haproxy/shared.cfg"
    services = yaml.safe_load((DEPLOY / "compose/shared.yaml").read_text())["services"]
    named = set(re.findall(r"^  server (\S+) \1:50051 ", path.read_text(), re.M))
    assert named == {name for name in services if name.startswith("shipreid")}, named
    if not shutil.which("haproxy"):
        print("skipped: haproxy -c: no haproxy (make operators)", file=sys.stderr)
        return
    for one in sorted((DEPLOY / "haproxy").glob("*.cfg")):
        run("haproxy", "-c", "-q", "-f", one)


def check_roles():
    """The roles of the compose file are those of the document."""
    document = (ROOT / "docs/scaling.md").read_text().split("```sql\n")[1].split("```")[0]
    made = (DEPLOY / "postgres/roles.sh").read_text().split("<<'SQL'\n")[1].split("SQL\n")[0]
    given = document.replace("'change-me'", ":'password'").replace("'change-me-too'", ":'reader_password'")
    assert made == given, "deploy/postgres/roles.sh and docs/scaling.md differ"


def check_unit(program):
    path = DEPLOY / "systemd/shipreid.service"
    text = path.read_text()
    assert drain_seconds({}) < float(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)[1])
    for setting in re.findall(r"--set (\w+\.\w+)=", text):
        section, key = setting.split(".")
        assert key in SETTINGS[section], f"{path.name}: no setting is called {setting}"
    if not shutil.which("systemd-analyze"):
        print("skipped: systemd-analyze verify: no systemd-analyze", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / path.name
        unit.write_text(text.replace("/usr/local/bin/shipreid", program))
        run("systemd-analyze", "verify", unit)


def check_yaml():
    """Everything else is at least YAML without doubled keys."""
    class Strict(yaml.SafeLoader):
        pass

    def once(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(map(str, keys))), f"a key is given twice: {node.start_mark}"
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, once)
    found = [path for end in ("yaml", "yml") for path in DEPLOY.rglob(f"*.{end}")]
    assert len(found) > 15
    for path in found:
        list(yaml.load_all(path.read_text(), Strict))


def main(program):
    check_yaml()
    for overlay in sorted((DEPLOY / "kubernetes/overlays").iterdir()):
        check_overlay(overlay)
    check_training(program)
    for path in sorted((DEPLOY / "compose").glob("*.yaml")):
        check_compose(path)
    check_balancer()
    check_roles()
    check_unit(program)


if __name__ == "__main__":
    main(sys.argv[1])

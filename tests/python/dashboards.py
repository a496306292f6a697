"""Runs every query of deploy/ against a real Prometheus that scrapes a real server, and promtool's tests of the rules.

Usage: dashboards.py METRICS_ADDRESS

Prints "calls" whenever the server should be given work, and waits for a line that says it was.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RUNBOOKS = ROOT / "docs/operations.md"
# What Prometheus itself adds, and the collector of the process, which docs/metrics.md does not list one by one.
FOREIGN = {"up": {}, "ALERTS": {"alertname": set(), "alertstate": set()}}
TARGET_LABELS = {"job", "instance"}
CHAINED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\b\s*(?:\([^)]*\))?")
SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?!\s*\(|\w)")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
WORDS = {"or", "and", "unless", "offset", "bool"}
SCRAPES_MIN = 4


def documented():
    """Every metric of docs/metrics.md with its labels and, of each, the values that the document names."""
    found = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 6 or not cells[1].startswith("`"):
            continue
        labels = {}
        for part in re.split(r"; (?=`\w+`: )", cells[4]):
            if label := re.match(r"`(\w+)`: (.*)", part):
                labels[label[1]] = set(re.findall(r"`([^`]+)`", label[2]))
        name = cells[1].strip("`")
        found[name] = labels
        if cells[2].startswith("histogram"):
            found |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le": set()}}
    assert len(found) > 50, "docs/metrics.md reads differently than it used to"
    return found


def selectors(expression):
    """(name, labels in braces) of each selector of an expression."""
    plain = CHAINED.sub(" ", expression)
    return [(name, braces or "") for name, braces in SELECTOR.findall(plain) if name not in WORDS]


def check_names(where, expression, known):
    for name, braces in selectors(expression):
        assert name in known, f"{where}: no metric is called {name}"
        for label, operator, value in MATCHER.findall(braces):
            if label in TARGET_LABELS:
                continue
            assert label in known[name], f"{where}: {name} has no label {label}"
            values = known[name][label]
            # Reasons and outcomes of errors are too many for the document, which then names some.
            if operator == "=" and label in ("limit", "state"):
                assert value in values, f"{where}: {name} is never {label}={value}"


class Prometheus:
    """A Prometheus of its own, with the shipped configuration but for the address and the intervals."""

    def __init__(self, target, folder):
        shutil.copytree(PROMETHEUS / "rules", folder / "rules")
        text = (PROMETHEUS / "prometheus.yml").read_text()
        assert "shipreid:9090" in text and "15s" in text
        config = folder / "prometheus.yml"
        config.write_text(text.replace("shipreid:9090", target).replace("15s", "1s"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:%d" % probe.getsockname()[1]
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.address}"], stdout=self.log, stderr=self.log)

    def ask(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        return self.ask("query", query=expression)["result"]

    def wait_until(self, reached):
        """Polls, giving the server work in between."""
        while True:
            assert self.process.poll() is None, Path(self.log.name).read_text()
            print("calls", flush=True)
            assert sys.stdin.readline(), "nobody gives the server work any more"
            try:
                if reached():
                    return
            except OSError:
                pass  # It has only just been started.
            time.sleep(0.1)

    def end(self):
        self.process.terminate()
        self.process.wait()


def scraped_often(prometheus):
    found = prometheus.query("count_over_time(shipreid_ready[1m])")
    return bool(found) and int(found[0]["value"][1]) >= SCRAPES_MIN


def rules(prometheus):
    return [rule | {"group": group["name"]} for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]


def evaluated_since(prometheus, scraped):
    groups = prometheus.ask("rules")["groups"]
    return all(rule["lastEvaluation"] > scraped for group in groups for rule in group["rules"])


def check_rules(prometheus, known):
    tested = (PROMETHEUS / "tests/alerts.yml").read_text()
    anchors = {re.sub(r"[^\w-]", "", line.lstrip("# ").lower().replace(" ", "-"))
               for line in RUNBOOKS.read_text().splitlines() if line.startswith("#")}
    for rule in rules(prometheus):
        where = f"{rule['group']}: {rule['name']}"
        assert rule["health"] == "ok", f"{where}: {rule.get('lastError')}"
        check_names(where, rule["query"], known)
        if rule["type"] == "recording":
            check_answers(prometheus, where, rule["query"])
            continue
        assert f'alertname="{rule["name"]}"' in tested, f"{where} has no test in deploy/prometheus/tests"
        assert rule["labels"].get("severity") in ("warning", "critical"), where
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert ROOT / page == RUNBOOKS and anchor in anchors, f"{where}: {page} has no section {anchor}"
        assert rule["annotations"]["summary"] and rule["annotations"]["description"], where


def check_answers(prometheus, where, expression):
    """An expression must parse and, where every metric in it has data, have an answer. The answer's series."""
    answer = prometheus.query(expression)
    if all(prometheus.query(name + braces) for name, braces in selectors(expression)):
        assert answer, f"{where}: every metric in it has data, but it has no answer: {expression}"
    return answer


def check_dashboard(prometheus, path, known):
    dashboard = json.loads(path.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    answered = 0
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m")
            expression = expression.replace("$job", "shipreid").replace("$instance", ".+")
            where = f"{path.name}: {panel['title']} {target['refId']}"
            check_names(where, expression, known)
            answer = check_answers(prometheus, where, expression)
            answered += bool(answer)
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                missing = [series for series in answer if label not in series["metric"]]
                assert not missing, f"{where}: the legend names {label}, which {missing[0]['metric']} lacks"
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"])
            assert prometheus.ask(f"label/{metric[2]}/values", **{"match[]": metric[1]}), variable["name"]
    print(f"{len(panels)} panels, {answered} of their queries with data", file=sys.stderr)


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def check_files(folder):
    run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    run("promtool", "test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml")))
    run(sys.executable, ROOT / "deploy/grafana/dashboard.py", "--check")
    # Debian's Prometheus is built without the discovery of Kubernetes: what is left is the relabelling.
    text = (PROMETHEUS / "prometheus-kubernetes.yml").read_text()
    discovery = "kubernetes_sd_configs:\n      - role: pod\n"
    assert discovery in text
    shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    (folder / "kubernetes.yml").write_text(text.replace(discovery, "static_configs: [{targets: []}]\n"))
    run("promtool", "check", "config", folder / "kubernetes.yml")


def main(target):
    known = documented() | FOREIGN
    with tempfile.TemporaryDirectory() as folder:
        check_files(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        prometheus = Prometheus(target, Path(folder))
        try:
            prometheus.wait_until(lambda: scraped_often(prometheus))
            seen = prometheus.ask("label/__name__/values")
            known |= {name: {} for name in seen if name.startswith("process_")}
            known |= {rule["name"]: {"resource": set()} for rule in rules(prometheus) if rule["type"] == "recording"}
            scraped = prometheus.ask("targets")["activeTargets"][0]["lastScrape"]
            prometheus.wait_until(lambda: evaluated_since(prometheus, scraped))
            check_rules(prometheus, known)
            for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
                check_dashboard(prometheus, path, known)
        finally:
            prometheus.end()


if __name__ == "__main__":
    main(sys.argv[1])

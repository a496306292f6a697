"""Writes dashboards/shipreid.json, Grafana's dashboard of the server: rows of panels, each a few queries.

Usage: dashboard.py [--check]    With --check nothing is written; exit code 1 says that the file is not what this makes.
"""

import json
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("dashboards") / "shipreid.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

OF = 'job=~"$job", instance=~"$instance"'
# Probes and reflection are no work.
WORK = f'{OF}, grpc_service=~"shipreid[.].+"'
# Codes that are the server's fault.
FAULT = 'grpc_code=~"Internal|Unknown|DataLoss|Unavailable"'
COLOURS = {"good": "green", "doubtful": "yellow", "bad": "red"}


def rate(metric, labels=OF):
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def quantile(share, metric, by="", labels=OF):
    groups = ", ".join(filter(None, [by, "le"]))
    return f"histogram_quantile({share}, sum by ({groups}) ({rate(metric + '_bucket', labels)}))"


def mean(metric, by="instance"):
    return f"sum by ({by}) ({rate(metric + '_sum')}) / (sum by ({by}) ({rate(metric + '_count')}) > 0)"


def used(metric, limit, value=None):
    return f'{value or f"{metric}{{{OF}}}"} / ignoring (limit) shipreid_limit{{{OF}, limit="{limit}"}}'


def steps(*bounds):
    """Thresholds from (colour, value) in rising order; the first value is None."""
    return {"mode": "absolute", "steps": [{"color": COLOURS[name], "value": value} for name, value in bounds]}


PLAIN = {"mode": "absolute", "steps": [{"color": "green", "value": None}]}
LOW_IS_GOOD = steps(("good", None), ("doubtful", 0.7), ("bad", 0.9))
NONE_IS_GOOD = steps(("good", None), ("bad", 1))


def panel(title, says, queries, unit="short", kind="timeseries", **more):
    """A panel; `queries` are (expression, legend) pairs."""
    defaults = {"unit": unit, "thresholds": more.pop("thresholds", PLAIN)}
    defaults.update({key: more.pop(key) for key in ("min", "max", "decimals", "mappings") if key in more})
    made = {
        "title": title,
        "description": says,
        "type": kind,
        "datasource": DATASOURCE,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend,
             "range": kind != "stat", "instant": kind == "stat",
             "format": "heatmap" if kind == "heatmap" else "time_series"}
            for index, (expression, legend) in enumerate(queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }
    made.update(DRAWN[kind](defaults, **more))
    return made


def drawn_as_lines(defaults, stacked=False, log=False):
    shown = defaults["thresholds"] is not PLAIN
    defaults["custom"] = {
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": 40 if stacked else 8, "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none"},
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
        "thresholdsStyle": {"mode": "dashed" if shown else "off"},
    }
    # A logarithm of nothing has no place on the axis.
    if not log:
        defaults.setdefault("min", 0)
    return {"options": {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}}}


def drawn_as_number(defaults):
    defaults["color"] = {"mode": "thresholds"}
    return {"options": {
        "reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none", "textMode": "auto"}}


def drawn_as_heat(defaults):
    return {"options": {
        "calculate": False, "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "steps": 64},
        "yAxis": {"unit": defaults["unit"]}, "cellGap": 1, "filterValues": {"le": 1e-9},
        "tooltip": {"mode": "single"}, "legend": {"show": True}}}


def drawn_as_states(defaults):
    defaults["color"] = {"mode": "thresholds"}
    defaults["custom"] = {"fillOpacity": 70, "lineWidth": 0}
    return {"options": {
        "mergeValues": True, "showValue": "auto", "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "single"}}}


DRAWN = {"timeseries": drawn_as_lines, "stat": drawn_as_number, "heatmap": drawn_as_heat,
         "state-timeline": drawn_as_states}


def overview():
    ready = steps(("bad", None), ("good", 1))
    failed = steps(("good", None), ("doubtful", 0.005), ("bad", 0.05))
    return [
        panel("Ready servers", "Servers that accept calls (/readyz).", [(f"sum(shipreid_ready{{{OF}}})", "ready")],
              kind="stat", thresholds=ready),
        panel("Alerts", "Firing alerts; docs/operations.md says what to do about each.",
              [('count(ALERTS{alertname=~"Shipreid.+", alertstate="firing"}) or vector(0)', "firing")],
              kind="stat", thresholds=NONE_IS_GOOD),
        panel("Chips", "Chips embedded or rejected as invalid, per second.",
              [(f"sum({rate('shipreid_chips_total')})", "chips")], "cps", "stat", decimals=1),
        panel("Failed calls", "Calls that ended with Internal, Unknown, DataLoss or Unavailable, of all calls.",
              [(f"(sum({rate('grpc_server_handled_total', f'{WORK}, {FAULT}')}) or vector(0)) "
                f"/ (sum({rate('grpc_server_handled_total', WORK)}) > 0)", "failed")],
              "percentunit", "stat", thresholds=failed),
        panel("Embed, p99", "One Embed call of a hundred takes longer.",
              [(quantile(0.99, "grpc_server_handling_seconds", labels=f'{OF}, grpc_method="Embed"'), "p99")],
              "s", "stat", thresholds=steps(("good", None), ("doubtful", 1), ("bad", 2.5))),
        panel("Device busy", "Share of the device threads' time that forward passes take. At 100 % chips wait.",
              [(f"max({used('', 'device_threads', rate('shipreid_forward_duration_seconds_sum'))})", "busy")],
              "percentunit", "stat", thresholds=LOW_IS_GOOD),
        panel("Jobs running", "Training jobs that run now.",
              [(f'sum(shipreid_jobs{{{OF}, state="running"}})', "running")], kind="stat"),
        panel("Version", "Servers by the program's version.",
              [(f"count by (version) (shipreid_build_info{{{OF}}})", "{{version}}")], kind="stat"),
    ]


def traffic():
    return [
        panel("Calls begun", "Calls that arrived, by method.",
              [(f"sum by (grpc_method) ({rate('grpc_server_started_total', WORK)})", "{{grpc_method}}")], "reqps"),
        panel("Calls ended", "Calls that ended, by code. Canceled: the caller left.",
              [(f"sum by (grpc_code) ({rate('grpc_server_handled_total', WORK)})", "{{grpc_code}}")], "reqps",
              stacked=True),
        panel("Chips", "Chips answered, by modality and outcome.",
              [(f"sum by (modality, outcome) ({rate('shipreid_chips_total')})", "{{modality}} {{outcome}}")], "cps",
              stacked=True),
        panel("Warnings", "Warnings about embedded chips: their callers should check how they crop them.",
              [(f"sum by (code) ({rate('shipreid_chip_warnings_total')})", "{{code}}")], "cps"),
        panel("Calls in flight and connections", "Calls that hold a permit, and open gRPC connections.",
              [(f"sum by (instance) (shipreid_calls_in_flight{{{OF}}})", "calls {{instance}}"),
               (f"sum by (instance) (shipreid_connections{{{OF}}})", "connections {{instance}}")]),
        panel("Health and reflection", "Calls of probes and tools.",
              [('sum by (grpc_service) ('
                + rate("grpc_server_started_total", f'{OF}, grpc_service!~"shipreid[.].+"') + ")",
                "{{grpc_service}}")], "reqps"),
    ]


def latency():
    stages = [("decode", "shipreid_decode_duration_seconds"), ("queue", "shipreid_queue_wait_duration_seconds"),
              ("forward", "shipreid_forward_duration_seconds"), ("search wait", "shipreid_search_wait_duration_seconds"),
              ("search", "shipreid_search_duration_seconds")]
    unary = f'{OF}, grpc_method=~"Embed|Match"'
    return [
        panel("Calls, p50 and p99", "From a call's headers to its end. Of Embed and Match alone: streams last as long "
              "as their callers like.",
              [(quantile(share, "grpc_server_handling_seconds", "grpc_method", unary), f"{{{{grpc_method}}}} {name}")
               for share, name in ((0.5, "p50"), (0.99, "p99"))], "s", log=True),
        panel("Stages, mean", "Where a chip's or query's time goes.",
              [(mean(metric, "job"), name) for name, metric in stages], "s", log=True),
        panel("Stages, p99", "The slowest of a hundred, by stage.",
              [(quantile(0.99, metric), name) for name, metric in stages], "s", log=True),
        panel("Wait for the device", "How long chips wait between queue and device. It grows before anything is "
              "refused; the autoscaler of `encode` follows its mean.",
              [(f"sum by (le) (increase(shipreid_queue_wait_duration_seconds_bucket{{{OF}}}[$__rate_interval]))",
                "{{le}}")], "s", "heatmap"),
    ]


def saturation():
    limits = [("calls", used("shipreid_calls_in_flight", "calls")),
              ("connections", used("shipreid_connections", "connections")),
              ("receiving", used("shipreid_receiving_bytes", "receiving_bytes")),
              ("queue, chips", used("shipreid_admitted_chips", "queue_chips")),
              ("queue, bytes", used("shipreid_admitted_bytes", "queue_bytes"))]
    threads = [("decode", used("shipreid_decoding_chips", "decode_threads")),
               ("device", used("", "device_threads", rate("shipreid_forward_duration_seconds_sum"))),
               ("search", used("shipreid_searches_running", "search_threads"))]
    return [
        panel("Limits used", "What is in use over what the configuration allows. At 100 % the next one is refused.",
              [(expression, f"{name} {{{{instance}}}}") for name, expression in limits], "percentunit",
              thresholds=LOW_IS_GOOD, max=1),
        panel("Threads used", "Busy threads over all. At 100 % work waits. Decode and search as seen at each scrape.",
              [(expression, f"{name} {{{{instance}}}}") for name, expression in threads], "percentunit",
              thresholds=LOW_IS_GOOD),
        panel("Processor", "Cores that each server uses, training jobs not counted.",
              [(rate("process_cpu_seconds_total"), "{{instance}}")], "short", decimals=2),
        panel("Memory", "Resident memory of each server, training jobs not counted.",
              [(f"process_resident_memory_bytes{{{OF}}}", "{{instance}}")], "bytes"),
        panel("Open files", "Descriptors in use over those allowed.",
              [(f"process_open_fds{{{OF}}} / process_max_fds{{{OF}}}", "{{instance}}")], "percentunit",
              thresholds=LOW_IS_GOOD, max=1),
        panel("Threads", "Threads of each server.", [(f"process_threads{{{OF}}}", "{{instance}}")]),
    ]


def batching():
    return [
        panel("Batch size", "Chips in one forward pass. 1 while the device is idle; batches form under load.",
              [(mean("shipreid_batch_size_chips"), "mean {{instance}}"),
               (quantile(0.95, "shipreid_batch_size_chips", "instance"), "p95 {{instance}}"),
               (f'shipreid_limit{{{OF}, limit="batch_chips"}}', "limit {{instance}}")]),
        panel("Queue", "Chips that wait for the device, and chips in the server from admission to response.",
              [(f"shipreid_queue_depth_chips{{{OF}}}", "waiting {{instance}}"),
               (f"shipreid_admitted_chips{{{OF}}}", "admitted {{instance}}")]),
        panel("Forward passes", "Forward passes a second.",
              [(rate("shipreid_forward_duration_seconds_count"), "{{instance}}")], "ops"),
        panel("Device time of one chip", "Forward time over chips; batching lowers it.",
              [(f"sum by (instance) ({rate('shipreid_forward_duration_seconds_sum')}) "
                f"/ (sum by (instance) ({rate('shipreid_batch_size_chips_sum')}) > 0)", "{{instance}}")], "s"),
        panel("Dropped and late", "Dropped: left the queue without taking device time. Late: embedded after the "
              "deadline, which should stay at zero.",
              [(f"sum by (reason) ({rate('shipreid_dropped_chips_total')})", "dropped {{reason}}"),
               (f"sum({rate('shipreid_late_chips_total')}) or vector(0)", "late")], "cps"),
        panel("Latest pass past a deadline", "The longest since each server's start.",
              [(f"shipreid_late_seconds_max{{{OF}}}", "{{instance}}")], "s"),
    ]


def galleries():
    return [
        panel("Searches", "Match calls searched, by ranking.",
              [(f"sum by (ranking) ({rate('shipreid_search_duration_seconds_count')})", "{{ranking}}"),
               (f"sum by (reason) ({rate('shipreid_searches_stopped_total')})", "aborted, {{reason}}")], "ops"),
        panel("Search time", "Filtering, searching and ranking the queries of one Match call; and its wait for a thread.",
              [(quantile(0.5, "shipreid_search_duration_seconds", "ranking"), "p50 {{ranking}}"),
               (quantile(0.99, "shipreid_search_duration_seconds", "ranking"), "p99 {{ranking}}"),
               (quantile(0.99, "shipreid_search_wait_duration_seconds"), "p99 wait")], "s", log=True),
        panel("Enrolments", "Items enrolled, by outcome.",
              [(f"sum by (outcome) ({rate('shipreid_enrolled_total')})", "{{outcome}}")], "cps", stacked=True),
        panel("Enrolment time", "One enrolment from its turn to its acknowledgement, and one commit (a sync of the disk).",
              [(quantile(0.5, "shipreid_enroll_duration_seconds"), "p50 enrolment"),
               (quantile(0.99, "shipreid_enroll_duration_seconds"), "p99 enrolment"),
               (quantile(0.5, "shipreid_commit_duration_seconds"), "p50 commit"),
               (quantile(0.99, "shipreid_commit_duration_seconds"), "p99 commit")], "s", log=True),
        panel("Operations in one commit", "Writers that share one sync.",
              [(mean("shipreid_commit_size_operations"), "mean {{instance}}")]),
        panel("Entries", "Entries of all galleries together.",
              [(f"shipreid_gallery_entries{{{OF}}}", "{{instance}}")]),
        panel("Bytes", "Entries, embeddings and kept chips of all galleries; the files are larger.",
              [(f"shipreid_gallery_bytes{{{OF}}}", "{{instance}}")], "bytes"),
        panel("Galleries", "By state. Read-only: the disk failed. Refused: cannot be opened. Stalled: cannot move to the "
              "active model.",
              [(f"sum by (state) (shipreid_galleries{{{OF}}})", "{{state}}"),
               (f"sum(shipreid_stalled_galleries{{{OF}}})", "stalled")]),
        panel("Re-embedding", "Entries embedded by a newly active model, galleries that are re-embedded by it, and what is left "
              "of the one at work.",
              [(f"sum by (instance) ({rate('shipreid_reembedded_entries_total')})", "entries per second {{instance}}"),
               (f"shipreid_following_galleries{{{OF}}}", "galleries {{instance}}"),
               (f"shipreid_following_entries_left{{{OF}}}", "entries left {{instance}}")]),
    ]


def shared():
    return [
        panel("Database", "Servers with shared galleries that reach their database.",
              [(f"shipreid_database_reached{{{OF}}}", "{{instance}}")], max=1),
        panel("Copies behind, in commits", "What the copy furthest behind lacked when copies last followed.",
              [(f"shipreid_copy_lag_commits_max{{{OF}}}", "{{instance}}")]),
        panel("Copies behind, in time", "Since when the oldest copy is not known to be up to date.",
              [(f"shipreid_copy_age_seconds_max{{{OF}}}", "{{instance}}")], "s", log=True),
        panel("Wait for a gallery's lock", "Writers of all servers take turns; with the round trip to the database.",
              [(quantile(0.5, "shipreid_database_lock_wait_duration_seconds", "instance"), "p50 {{instance}}"),
               (quantile(0.99, "shipreid_database_lock_wait_duration_seconds", "instance"), "p99 {{instance}}")], "s", log=True),
        panel("Connections to the database", "In use over those allowed, and work that waits for one.",
              [(f'shipreid_database_connections{{{OF}, state="used"}} / ignoring (limit, state) '
                f'shipreid_limit{{{OF}, limit="database_connections"}}', "used {{instance}}"),
               (f"shipreid_database_waiting{{{OF}}}", "waiting {{instance}}")], "percentunit", thresholds=LOW_IS_GOOD),
        panel("Failed transactions", "By cause; their callers were answered UNAVAILABLE.",
              [(f"sum by (cause, instance) ({rate('shipreid_database_failures_total')})", "{{cause}} {{instance}}")], "ops",
              stacked=True),
        panel("Copies loaded", "Since each server's start. Other than new ones were too far behind or damaged.",
              [(f"sum by (reason, instance) (shipreid_copies_loaded_total{{{OF}}})", "{{reason}} {{instance}}")]),
        panel("Leases lost", "Times that another server took over re-embedding, since each server's start.",
              [(f"shipreid_move_leases_lost_total{{{OF}}}", "{{instance}}")], thresholds=NONE_IS_GOOD),
        panel("Jobs taken over", "Put back into the queue since their server stopped or was lost, and what such a server still had to "
              "say of them, since each server's start.",
              [(f"shipreid_jobs_taken_over_total{{{OF}}}", "jobs {{instance}}"),
               (f"shipreid_job_writes_refused_total{{{OF}}}", "writes refused {{instance}}")]),
        panel("Outdated models", "Servers on which the model that is active on all cannot serve.",
              [(f"shipreid_model_outdated{{{OF}}}", "{{instance}}")], thresholds=NONE_IS_GOOD),
        panel("Clock", "By how much each server's clock is ahead of the database's.",
              [(f"shipreid_database_clock_skew_seconds{{{OF}}}", "{{instance}}")], "s"),
    ]


def training():
    return [
        panel("Jobs", "Training jobs by state.",
              [(f"sum by (state, instance) (shipreid_jobs{{{OF}}})", "{{state}} {{instance}}")], stacked=True),
        panel("Step time", "One training step, by slot.",
              [(quantile(0.5, "shipreid_job_step_duration_seconds", "slot"), "p50 slot {{slot}}"),
               (quantile(0.95, "shipreid_job_step_duration_seconds", "slot"), "p95 slot {{slot}}")], "s"),
        panel("Images", "Images per second that jobs train on.",
              [(f"shipreid_job_images_per_second{{{OF}}}", "slot {{slot}}")], "cps"),
        panel("Loss", "Of each job's last step. `shipreid jobs report` draws whole curves.",
              [(f"shipreid_job_loss{{{OF}}}", "slot {{slot}}")]),
        panel("mAP", "Of each job's last evaluation.",
              [(f"shipreid_job_map{{{OF}}}", "slot {{slot}}")], "percentunit"),
        panel("Models on disk", "Models of the registry over their limits, in number and bytes.",
              [(used("shipreid_models_stored", "models_stored"), "number {{instance}}"),
               (used("shipreid_models_stored_bytes", "models_stored_bytes"), "bytes {{instance}}")], "percentunit",
              thresholds=LOW_IS_GOOD, max=1),
    ]


def errors():
    states = {"serving": "green", "warming": "blue", "draining": "yellow", "failing": "orange", "outdated": "purple",
              "device_lost": "red"}
    state = " or ".join(
        f'{value} * (shipreid_health{{{OF}, state="{name}"}} == 1)' for value, name in enumerate(states))
    names = {str(value): {"text": name, "color": colour} for value, (name, colour) in enumerate(states.items())}
    return [
        panel("Health", "The state that each server is in.", [(f"max by (instance) ({state})", "{{instance}}")],
              kind="state-timeline", mappings=[{"type": "value", "options": names}]),
        panel("Failed calls", "Share of calls that end by the server's fault, by code.",
              [(f"sum by (grpc_code) ({rate('grpc_server_handled_total', f'{WORK}, {FAULT}')}) "
                f"/ ignoring (grpc_code) group_left sum({rate('grpc_server_handled_total', WORK)})", "{{grpc_code}}")],
              "percentunit", thresholds=steps(("good", None), ("doubtful", 0.005), ("bad", 0.05))),
        panel("Refusals", "Refused at once, by reason. QUEUE_TOO_LONG: it would have waited past its deadline.",
              [(f"sum by (reason) ({rate('shipreid_refused_total')})", "{{reason}}")], "reqps", stacked=True),
        panel("Device", "Forward passes that ran out of memory or panicked, since each server's start.",
              [(f"sum(shipreid_out_of_memory_total{{{OF}}}) or vector(0)", "out of memory"),
               (f"sum(shipreid_encoder_panics_total{{{OF}}}) or vector(0)", "panics")]),
        panel("Canaries", "The server's own chips that go through each idle device thread.",
              [(f"sum by (outcome, thread) ({rate('shipreid_canaries_total')})", "{{thread}} {{outcome}}")], "cps"),
        panel("Last good pass", "Age of the last forward pass that succeeded, a caller's or a canary's.",
              [(f"time() - shipreid_last_forward_timestamp_seconds{{{OF}}}", "{{instance}}")], "s"),
        panel("Activations", "Changes of the active model since each server's start, and how long the last one took.",
              [(f"sum by (outcome) (shipreid_activations_total{{{OF}}})", "{{outcome}}"),
               (f"shipreid_activation_seconds{{{OF}}}", "seconds {{instance}}")]),
        panel("Resident models", "Servers by the model in their memory. Two while one follows another.",
              [(f"count by (digest, precision, device) (shipreid_model_info{{{OF}}} == 1)",
                "{{digest}} {{precision}} {{device}}")]),
    ]


def row(title, panels, across, height, top):
    """A row's heading and its panels, `across` of them beside each other; and where the next row begins."""
    made = [{"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place(0, top, WIDTH, 1)}]
    width = WIDTH // across
    for index, one in enumerate(panels):
        down, right = divmod(index, across)
        made.append({**one, "gridPos": place(right * width, top + 1 + down * height, width, height)})
    return made, top + 1 + -(-len(panels) // across) * height


def place(x, y, width, height):
    return {"x": x, "y": y, "w": width, "h": height}


def variable(name, label, query, **more):
    return {"name": name, "label": label, "type": "query", "datasource": DATASOURCE, "refresh": 2, "sort": 1,
            "query": {"query": query, "refId": name}, "definition": query, **more}


def dashboard():
    panels, top = [], 0
    for title, of_row, across, height in (
            ("Overview", overview(), 8, 4), ("Traffic", traffic(), 3, 8), ("Latency by stage", latency(), 2, 9),
            ("Saturation", saturation(), 3, 8), ("Batching", batching(), 3, 8), ("Galleries", galleries(), 3, 8), ("Shared galleries", shared(), 3, 8),
            ("Training and models", training(), 3, 8), ("Errors and health", errors(), 2, 8)):
        made, top = row(title, of_row, across, height, top)
        panels += made
    for index, one in enumerate(panels):
        one["id"] = index + 1
    return {
        "uid": "shipreid", "title": "shipreid", "tags": ["shipreid"], "schemaVersion": 42, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "15s", "timezone": "utc",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
            variable("job", "Job", "label_values(shipreid_ready, job)"),
            variable("instance", "Server", 'label_values(shipreid_ready{job=~"$job"}, instance)', multi=True,
                     includeAll=True, allValue=".+", current={"text": ["All"], "value": ["$__all"]}),
        ]},
        "annotations": {"list": [{
            "name": "Starts", "datasource": DATASOURCE, "enable": True, "iconColor": "blue",
            "expr": f"changes(process_start_time_seconds{{{OF}}}[$__rate_interval]) > 0",
            "titleFormat": "{{instance}} started"}]},
        "panels": panels,
    }


def main():
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        sys.exit(0 if TARGET.read_text() == text else f"{TARGET} is not what {Path(__file__).name} makes; run it")
    TARGET.write_text(text)


if __name__ == "__main__":
    main()

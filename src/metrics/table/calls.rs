//! Metrics of calls, connections and health.

use super::metric::{Group, Kind, metric};

pub const STARTED: &str = "grpc_server_started_total";
pub const HANDLED: &str = "grpc_server_handled_total";
pub const HANDLING: &str = "grpc_server_handling_seconds";
pub const CALLS: &str = "shipreid_calls_in_flight";
pub const CONNECTIONS: &str = "shipreid_connections";
pub const CONNECTIONS_ENDED: &str = "shipreid_connections_ended_total";
pub const ACCEPT_PAUSES: &str = "shipreid_accept_pauses_total";
pub const RELOADS: &str = "shipreid_reloads_total";
pub const CERTIFICATE_END: &str = "shipreid_certificate_end_timestamp_seconds";
pub const REVOCATIONS_END: &str = "shipreid_revocations_end_timestamp_seconds";
pub const RECEIVING: &str = "shipreid_receiving_bytes";
pub const REFUSED: &str = "shipreid_refused_total";
pub const LIMIT: &str = "shipreid_limit";
pub const LOG_LINES_LOST: &str = "shipreid_log_lines_lost_total";
pub const READY: &str = "shipreid_ready";
pub const HEALTH: &str = "shipreid_health";
pub const CANARIES: &str = "shipreid_canaries_total";
pub const DEVICE_THREAD_FAILING: &str = "shipreid_device_thread_failing";
pub const LAST_FORWARD: &str = "shipreid_last_forward_timestamp_seconds";
pub const BUILD: &str = "shipreid_build_info";

const CALL_SECONDS: Kind =
    Kind::Histogram(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
const SERVICE: (&str, &str) =
    ("grpc_service", "a service of the contract, of health or reflection; `unknown`");
const METHOD: (&str, &str) = ("grpc_method", "its method; `unknown`");
const THREAD: (&str, &str) = ("thread", "`device-0` and so on, one for each of `encoder.workers`");

pub(super) const CALLS_AND_CONNECTIONS: Group = Group {
    title: "Calls and connections",
    metrics: &[
        metric(STARTED, Kind::Counter, "calls", &[SERVICE, METHOD], "Calls that arrived."),
        metric(
            HANDLED,
            Kind::Counter,
            "calls",
            &[
                SERVICE,
                METHOD,
                ("grpc_code", "`OK`, `Canceled`, `InvalidArgument`, ... as go-grpc names them"),
            ],
            "Calls that ended. A caller that left counts as `Canceled`.",
        ),
        metric(HANDLING, CALL_SECONDS, "seconds", &[SERVICE, METHOD], "From a call's headers to its end."),
        metric(CALLS, Kind::Gauge, "calls", &[], "Calls that hold a permit."),
        metric(CONNECTIONS, Kind::Gauge, "connections", &[], "Open gRPC connections."),
        metric(
            CONNECTIONS_ENDED,
            Kind::Counter,
            "connections",
            &[(
                "reason",
                "`NO_CALL`, `IDLE`, `AGE`, `DISPLACED` (closed for another connection), `DISTRUSTED` (its certificate was revoked), `SHUTDOWN`",
            )],
            "gRPC connections that the server closed gracefully.",
        ),
        metric(
            ACCEPT_PAUSES,
            Kind::Counter,
            "pauses",
            &[("port", "`grpc`, `status`")],
            "Pauses in accepting connections because the system is out of descriptors or memory.",
        ),
        metric(
            RELOADS,
            Kind::Counter,
            "reloads",
            &[("subject", "`certificates`, `keys`"), ("outcome", "`ok`, `failed`")],
            "Changed files that were reloaded. If that failed, the old ones stay in use.",
        ),
        metric(
            CERTIFICATE_END,
            Kind::Gauge,
            "Unix time in seconds",
            &[],
            "When the certificate of the gRPC port, or one in its chain, expires.",
        ),
        metric(
            REVOCATIONS_END,
            Kind::Gauge,
            "Unix time in seconds",
            &[],
            "When the first of the revocation lists of callers' authorities is past its next update.",
        ),
        metric(
            RECEIVING,
            Kind::Gauge,
            "bytes",
            &[],
            "Bytes that have arrived of messages that are being received.",
        ),
        metric(
            REFUSED,
            Kind::Counter,
            "refusals",
            &[(
                "reason",
                "`CALLS`, `CONNECTIONS`, `MESSAGE_SIZE`, `RECEIVING_BYTES`, `QUEUE_FULL`, `QUEUE_BYTES_FULL`, \
                 `QUEUE_TOO_LONG`, `DEADLINE_EXCEEDED` (too soon for an idle device), `SEARCHES_TOO_LONG`, `DRAINING`, `RATE`, `KEY_MISSING`, `KEY_INVALID`, `KEY_EXPIRED`, `KEYS_REJECTED`, \
                 `ROLE_MISSING`, `HANDSHAKES` (the oldest gave way), `HANDSHAKE_FAILED`, `HANDSHAKE_TIME`, \
                 `MESSAGE_TOO_SLOW`, `STREAM_IDLE`, `STREAM_DISPLACED` (another call has its place), `LOOKS` (reflection \
                 and health streams)",
            )],
            "Calls, connections, or chips of a call that were refused or ended by a limit.",
        ),
        metric(
            LIMIT,
            Kind::Gauge,
            "as what it bounds",
            &[(
                "limit",
                "`calls`, `connections`, `receiving_bytes`, `queue_chips`, `queue_bytes`, `decode_threads`, \
                 `device_threads`, `batch_chips`, `search_threads`, `jobs_running`, `models_stored`, \
                 `models_stored_bytes`, `uploads`, `upload_bytes`, `database_connections`",
            )],
            "The configured limit. Saturation is usage divided by it.",
        ),
        metric(
            LOG_LINES_LOST,
            Kind::Counter,
            "lines",
            &[],
            "Log lines that were dropped because standard error was not read for too long.",
        ),
    ],
};

pub(super) const HEALTH_GROUP: Group = Group {
    title: "Health",
    metrics: &[
        metric(READY, Kind::Gauge, "0 or 1", &[], "1 while the server answers calls."),
        metric(
            HEALTH,
            Kind::Gauge,
            "0 or 1",
            &[(
                "state",
                "`warming`, `serving`, `failing` (canaries do not pass), `outdated` (the model that is active on all servers \
                 cannot serve here), `draining`, `device_lost`",
            )],
            "1 for the state that the server is in.",
        ),
        metric(
            CANARIES,
            Kind::Counter,
            "canaries",
            &[THREAD, ("outcome", "`ok`, `failed`, `late`")],
            "The server's own chips that went through an idle device thread.",
        ),
        metric(
            DEVICE_THREAD_FAILING,
            Kind::Gauge,
            "0 or 1",
            &[THREAD],
            "1 for a device thread whose last canary did not succeed.",
        ),
        metric(
            LAST_FORWARD,
            Kind::Gauge,
            "Unix time in seconds",
            &[],
            "When a forward pass last succeeded, a caller's or a canary's.",
        ),
        metric(
            BUILD,
            Kind::Gauge,
            "1",
            &[("version", "the program's version")],
            "1 for the running version.",
        ),
    ],
};

//! What every metric is: name, kind, unit, labels and meaning. `docs/metrics.md` is written from here.

/// One metric, as Prometheus and its readers know it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: &'static str,
    /// Each with its possible values.
    pub labels: &'static [(&'static str, &'static str)],
    pub meaning: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// Metrics of one subject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub title: &'static str,
    pub metrics: &'static [Metric],
}

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
pub const CHIPS: &str = "shipreid_chips_total";
pub const WARNINGS: &str = "shipreid_chip_warnings_total";
pub const DECODING: &str = "shipreid_decoding_chips";
pub const DECODE: &str = "shipreid_decode_duration_seconds";
pub const QUEUE_DEPTH: &str = "shipreid_queue_depth_chips";
pub const ADMITTED: &str = "shipreid_admitted_chips";
pub const ADMITTED_BYTES: &str = "shipreid_admitted_bytes";
pub const QUEUE_WAIT: &str = "shipreid_queue_wait_duration_seconds";
pub const FORWARD: &str = "shipreid_forward_duration_seconds";
pub const BATCH: &str = "shipreid_batch_size_chips";
pub const DROPPED: &str = "shipreid_dropped_chips_total";
pub const LATE: &str = "shipreid_late_chips_total";
/// Read by `shipreid bench`.
pub const LATE_MAX: &str = "shipreid_late_seconds_max";
pub const OUT_OF_MEMORY: &str = "shipreid_out_of_memory_total";
pub const PANICS: &str = "shipreid_encoder_panics_total";
pub const SEARCHING: &str = "shipreid_searches_running";
pub const SEARCH_WAIT: &str = "shipreid_search_wait_duration_seconds";
pub const SEARCH: &str = "shipreid_search_duration_seconds";
pub const SEARCH_STOPPED: &str = "shipreid_searches_stopped_total";
pub const ENROLLED: &str = "shipreid_enrolled_total";
pub const ENROLL: &str = "shipreid_enroll_duration_seconds";
pub const COMMIT: &str = "shipreid_commit_duration_seconds";
pub const COMMIT_SIZE: &str = "shipreid_commit_size_operations";
pub const GALLERIES: &str = "shipreid_galleries";
pub const ENTRIES: &str = "shipreid_gallery_entries";
pub const GALLERY_BYTES: &str = "shipreid_gallery_bytes";
pub const UPLOADS: &str = "shipreid_uploads";
pub const UPLOAD_BYTES: &str = "shipreid_upload_bytes";
pub const UPLOADS_ENDED: &str = "shipreid_uploads_ended_total";
pub const READY: &str = "shipreid_ready";
pub const HEALTH: &str = "shipreid_health";
pub const CANARIES: &str = "shipreid_canaries_total";
pub const DEVICE_THREAD_FAILING: &str = "shipreid_device_thread_failing";
pub const LAST_FORWARD: &str = "shipreid_last_forward_timestamp_seconds";
pub const BUILD: &str = "shipreid_build_info";
pub const MODEL: &str = "shipreid_model_info";
pub const LINEAR: &str = "shipreid_linear_kernel_info";
pub const LINEAR_TIME: &str = "shipreid_linear_timing_seconds";
pub const ACTIVATIONS: &str = "shipreid_activations_total";
pub const ACTIVATION: &str = "shipreid_activation_seconds";
pub const FOLLOWING: &str = "shipreid_following_galleries";
pub const FOLLOWING_LEFT: &str = "shipreid_following_entries_left";
pub const STALLED: &str = "shipreid_stalled_galleries";
pub const REEMBEDDED: &str = "shipreid_reembedded_entries_total";
pub const MODELS_STORED: &str = "shipreid_models_stored";
pub const MODELS_STORED_BYTES: &str = "shipreid_models_stored_bytes";
pub const JOBS: &str = "shipreid_jobs";
pub const JOB_STEP: &str = "shipreid_job_step_duration_seconds";
pub const JOB_IMAGES: &str = "shipreid_job_images_per_second";
pub const JOB_LOSS: &str = "shipreid_job_loss";
pub const JOB_MAP: &str = "shipreid_job_map";

const CALL_SECONDS: Kind =
    Kind::Histogram(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
const STAGE_SECONDS: Kind =
    Kind::Histogram(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]);
const STEP_SECONDS: Kind =
    Kind::Histogram(&[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0]);
const BATCH_CHIPS: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]);
const COMMIT_OPERATIONS: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0]);

const SERVICE: (&str, &str) =
    ("grpc_service", "a service of the contract, of health or reflection; `unknown`");
const METHOD: (&str, &str) = ("grpc_method", "its method; `unknown`");
const KERNEL: (&str, &str) = ("kernel", "`aten`, `onednn`, `int8`");
const PRECISION: (&str, &str) = ("precision", "`f32`, `bf16`, `int8`");
const BATCH_SIZE: (&str, &str) =
    ("batch", "chips, `1` to `encoder.batch_max`; it stands for smaller ones down to the next");
const THREAD: (&str, &str) = ("thread", "`device-0` and so on, one for each of `encoder.workers`");
const SLOT: (&str, &str) = ("slot", "`0` to `training.jobs_concurrent_max` - 1");

/// Every metric of ours, by subject, in the order of a chip's way.
pub const TABLE: &[Group] = &[
    Group {
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
            metric(
                HANDLING,
                CALL_SECONDS,
                "seconds",
                &[SERVICE, METHOD],
                "From a call's headers to its end.",
            ),
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
                     `models_stored_bytes`, `uploads`, `upload_bytes`",
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
    },
    Group {
        title: "Chips and batches",
        metrics: &[
            metric(
                CHIPS,
                Kind::Counter,
                "chips",
                &[("modality", "`optical`, `sar`"), ("outcome", "`ok`, or the reason of the chip's error")],
                "Chips answered.",
            ),
            metric(
                WARNINGS,
                Kind::Counter,
                "warnings",
                &[("code", "the code of the warning")],
                "Warnings about embedded chips.",
            ),
            metric(DECODING, Kind::Gauge, "chips", &[], "Chips that are being decoded and resized."),
            metric(DECODE, STAGE_SECONDS, "seconds", &[], "Decoding and resizing one chip."),
            metric(ADMITTED, Kind::Gauge, "chips", &[], "Chips in the server, from admission to response."),
            metric(ADMITTED_BYTES, Kind::Gauge, "bytes", &[], "Bytes of the chips in the server."),
            metric(QUEUE_DEPTH, Kind::Gauge, "chips", &[], "Chips that wait for a device."),
            metric(QUEUE_WAIT, STAGE_SECONDS, "seconds", &[], "One chip's wait between queue and device."),
            metric(FORWARD, STAGE_SECONDS, "seconds", &[], "One forward pass."),
            metric(BATCH, BATCH_CHIPS, "chips", &[], "Chips in one forward pass."),
            metric(
                DROPPED,
                Kind::Counter,
                "chips",
                &[("reason", "`DEADLINE`, `CANCELLED`")],
                "Chips that left the queue without taking device time.",
            ),
            metric(LATE, Kind::Counter, "chips", &[], "Chips whose forward pass ended after their deadline."),
            metric(
                LATE_MAX,
                Kind::Gauge,
                "seconds",
                &[],
                "The longest time by which a forward pass ended past a deadline.",
            ),
            metric(
                OUT_OF_MEMORY,
                Kind::Counter,
                "passes",
                &[],
                "Forward passes that ran out of device memory.",
            ),
            metric(PANICS, Kind::Counter, "passes", &[], "Forward passes that panicked."),
        ],
    },
    Group {
        title: "Galleries",
        metrics: &[
            metric(SEARCHING, Kind::Gauge, "threads", &[], "Threads that search or read galleries now."),
            metric(SEARCH_WAIT, STAGE_SECONDS, "seconds", &[], "One Match call's wait for such a thread."),
            metric(
                SEARCH,
                STAGE_SECONDS,
                "seconds",
                &[("ranking", "`cosine`, `reranked`, `fused`")],
                "Filtering, searching and ranking the queries of one Match call.",
            ),
            metric(
                SEARCH_STOPPED,
                Kind::Counter,
                "searches",
                &[("reason", "`DEADLINE`, `CANCELLED`")],
                "Searches that were aborted because their caller no longer waited.",
            ),
            metric(
                ENROLLED,
                Kind::Counter,
                "items",
                &[("outcome", "`created`, `replaced`, `unchanged`, or the reason of the item's error")],
                "Enrolments answered.",
            ),
            metric(
                ENROLL,
                STAGE_SECONDS,
                "seconds",
                &[],
                "One enrolment, from its turn to its acknowledgement.",
            ),
            metric(
                COMMIT,
                STAGE_SECONDS,
                "seconds",
                &[],
                "One group of operations made durable and published.",
            ),
            metric(COMMIT_SIZE, COMMIT_OPERATIONS, "operations", &[], "Operations that share one commit."),
            metric(
                GALLERIES,
                Kind::Gauge,
                "galleries",
                &[("state", "`writable`, `read_only` (the disk failed), `refused` (cannot be opened)")],
                "Galleries, of all tenants together.",
            ),
            metric(ENTRIES, Kind::Gauge, "entries", &[], "Entries of all galleries together."),
            metric(
                GALLERY_BYTES,
                Kind::Gauge,
                "bytes",
                &[],
                "Bytes of entries, embeddings and kept chips of all galleries together; the files are larger.",
            ),
        ],
    },
    Group {
        title: "Uploads",
        metrics: &[
            metric(UPLOADS, Kind::Gauge, "uploads", &[], "Uploads that are neither imported nor deleted."),
            metric(UPLOAD_BYTES, Kind::Gauge, "bytes", &[], "Their bytes on disk."),
            metric(
                UPLOADS_ENDED,
                Kind::Counter,
                "uploads",
                &[("outcome", "`imported`, `deleted`, `expired`")],
                "Uploads that are gone.",
            ),
        ],
    },
    Group {
        title: "Health",
        metrics: &[
            metric(READY, Kind::Gauge, "0 or 1", &[], "1 while the server answers calls."),
            metric(
                HEALTH,
                Kind::Gauge,
                "0 or 1",
                &[(
                    "state",
                    "`warming`, `serving`, `failing` (canaries do not pass), `draining`, `device_lost`",
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
    },
    Group {
        title: "Models",
        metrics: &[
            metric(
                MODEL,
                Kind::Gauge,
                "1",
                &[("digest", "the model's digest"), PRECISION, ("device", "`cpu`, `cuda:0`, ...")],
                "1 for each resident model; the series ends when it is unloaded.",
            ),
            metric(
                LINEAR,
                Kind::Gauge,
                "0 or 1",
                &[
                    KERNEL,
                    PRECISION,
                    (
                        "isa",
                        "`avx2`, `avx2_vnni_2`, `avx512`, `avx512_vnni`, `avx512_bf16`, `amx`: what the CPU has",
                    ),
                    BATCH_SIZE,
                ],
                "1 for the kernel that computes the linear layers at that batch size on the CPU, for the model loaded last.",
            ),
            metric(
                LINEAR_TIME,
                Kind::Gauge,
                "seconds",
                &[KERNEL, PRECISION, BATCH_SIZE],
                "CPU time of one thread for the linear layers of one MLP at that batch size, measured when kernels were chosen.",
            ),
            metric(
                ACTIVATIONS,
                Kind::Counter,
                "activations",
                &[("outcome", "`ok`, or the reason of the error")],
                "Activations of a model.",
            ),
            metric(ACTIVATION, Kind::Gauge, "seconds", &[], "Duration of the last successful one."),
            metric(
                FOLLOWING,
                Kind::Gauge,
                "galleries",
                &[],
                "Galleries that are being re-embedded by the active model.",
            ),
            metric(
                FOLLOWING_LEFT,
                Kind::Gauge,
                "entries",
                &[],
                "Entries of these galleries that have yet to be re-embedded.",
            ),
            metric(
                STALLED,
                Kind::Gauge,
                "galleries",
                &[],
                "Galleries that should be re-embedded by the active model but cannot.",
            ),
            metric(REEMBEDDED, Kind::Counter, "entries", &[], "Entries that were re-embedded."),
            metric(MODELS_STORED, Kind::Gauge, "models", &[], "Models on disk."),
            metric(MODELS_STORED_BYTES, Kind::Gauge, "bytes", &[], "Bytes of the models on disk."),
        ],
    },
    Group {
        title: "Training",
        metrics: &[
            metric(
                JOBS,
                Kind::Gauge,
                "jobs",
                &[(
                    "state",
                    "`queued`, `running`, `cancelling`, `cancelled`, `failed`, `finished`, `interrupted`, `damaged`",
                )],
                "Training jobs.",
            ),
            metric(JOB_STEP, STEP_SECONDS, "seconds", &[SLOT], "One training step."),
            metric(
                JOB_IMAGES,
                Kind::Gauge,
                "images per second",
                &[SLOT],
                "Images that a job trains on; 0 without a job.",
            ),
            metric(JOB_LOSS, Kind::Gauge, "1", &[SLOT], "Loss of a job's last step; NaN without a job."),
            metric(
                JOB_MAP,
                Kind::Gauge,
                "share",
                &[SLOT],
                "mAP of a job's last evaluation; NaN before the first.",
            ),
        ],
    },
];

const fn metric(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [(&'static str, &'static str)],
    meaning: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, meaning }
}

/// Every metric of ours.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    TABLE.iter().flat_map(|group| group.metrics)
}

#[cfg(test)]
mod tests;

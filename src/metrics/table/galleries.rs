//! Metrics of galleries and uploads.

use super::metric::{Group, Kind, STAGE_SECONDS, metric};

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

const COMMIT_OPERATIONS: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0]);

pub(super) const GALLERIES_GROUP: Group = Group {
    title: "Galleries",
    metrics: &[
        metric(SEARCHING, Kind::Gauge, "threads", &[], "Threads that search or read galleries now."),
        metric(SEARCH_WAIT, STAGE_SECONDS, "seconds", &[], "One Match call's wait for such a thread."),
        metric(
            SEARCH,
            STAGE_SECONDS,
            "seconds",
            &[("ranking", "`cosine`, `reranked`, `fused`, `reciprocal_rank`")],
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
        metric(ENROLL, STAGE_SECONDS, "seconds", &[], "One enrolment, from its turn to its acknowledgement."),
        metric(COMMIT, STAGE_SECONDS, "seconds", &[], "One group of operations made durable and published."),
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
};

pub(super) const UPLOADS_GROUP: Group = Group {
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
};

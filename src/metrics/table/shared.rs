//! Metrics of galleries, jobs and models that several servers share.

use super::metric::{Group, Kind, STAGE_SECONDS, metric};

pub const DATABASE_REACHED: &str = "shipreid_database_reached";
pub const DATABASE_SKEW: &str = "shipreid_database_clock_skew_seconds";
pub const DATABASE_CONNECTIONS: &str = "shipreid_database_connections";
pub const DATABASE_WAITING: &str = "shipreid_database_waiting";
pub const DATABASE_FAILURES: &str = "shipreid_database_failures_total";
pub const LOCK_WAIT: &str = "shipreid_database_lock_wait_duration_seconds";
pub const COPY_LAG: &str = "shipreid_copy_lag_commits_max";
pub const COPY_AGE: &str = "shipreid_copy_age_seconds_max";
pub const COPIES_LOADED: &str = "shipreid_copies_loaded_total";
pub const LEASES_LOST: &str = "shipreid_move_leases_lost_total";
pub const JOBS_TAKEN_OVER: &str = "shipreid_jobs_taken_over_total";
pub const MODEL_OUTDATED: &str = "shipreid_model_outdated";
pub const JOB_WRITES_REFUSED: &str = "shipreid_job_writes_refused_total";

pub(super) const SHARED_GROUP: Group = Group {
    title: "Shared galleries, jobs and models",
    metrics: &[
        metric(
            DATABASE_REACHED,
            Kind::Gauge,
            "0 or 1",
            &[],
            "1 while the database of the shared galleries answers; absent without `store.url` or galleries.",
        ),
        metric(
            DATABASE_SKEW,
            Kind::Gauge,
            "seconds",
            &[],
            "By how much this server's clock is ahead of the database's, when it last asked.",
        ),
        metric(
            DATABASE_CONNECTIONS,
            Kind::Gauge,
            "connections",
            &[("state", "`used`, `idle`")],
            "Open connections to the database that galleries use; those of jobs and models, at most as many, are not counted.",
        ),
        metric(DATABASE_WAITING, Kind::Gauge, "callers", &[], "Work that waits for such a connection."),
        metric(
            DATABASE_FAILURES,
            Kind::Counter,
            "failures",
            &[(
                "cause",
                "`connection`, `lock` (held by another for too long), `timeout`, `conflict`, `disk_full`, `read_only` (a \
                 standby), `unreplicated` (no standby has confirmed the commit), `refused`, `other`",
            )],
            "Transactions and connections that failed.",
        ),
        metric(
            LOCK_WAIT,
            STAGE_SECONDS,
            "seconds",
            &[],
            "A writer's wait for a gallery's lock, which writers of all servers take in turn, with the round trip.",
        ),
        metric(
            COPY_LAG,
            Kind::Gauge,
            "commits",
            &[],
            "What the copy furthest behind lacked when copies last followed, before they did.",
        ),
        metric(
            COPY_AGE,
            Kind::Gauge,
            "seconds",
            &[],
            "How old the oldest copy can be: since when it is not known to be up to date.",
        ),
        metric(
            COPIES_LOADED,
            Kind::Counter,
            "copies",
            &[(
                "reason",
                "`new`, `outdated` (too far behind, or the database was restored), `unusable` (damaged)",
            )],
            "Copies that were loaded as a whole.",
        ),
        metric(
            LEASES_LOST,
            Kind::Counter,
            "leases",
            &[],
            "Times that another server took over re-embedding a gallery from this one, which had not renewed its lease.",
        ),
        metric(
            JOBS_TAKEN_OVER,
            Kind::Counter,
            "jobs",
            &[],
            "Training jobs that this server put back into the queue, since the one that ran them stopped or was lost.",
        ),
        metric(
            JOB_WRITES_REFUSED,
            Kind::Counter,
            "writes",
            &[],
            "What this server still had to say of training jobs that others had taken over from it, which the database refused.",
        ),
        metric(
            MODEL_OUTDATED,
            Kind::Gauge,
            "0 or 1",
            &[],
            "1 while the model that is active on all servers cannot serve on this one, which is not ready then.",
        ),
    ],
};

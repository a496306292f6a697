//! Metrics of models and training.

use super::metric::{Group, Kind, metric};

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

const STEP_SECONDS: Kind =
    Kind::Histogram(&[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0]);
const KERNEL: (&str, &str) = ("kernel", "`aten`, `onednn`, `tiles`, `int8`");
const PRECISION: (&str, &str) = ("precision", "`f32`, `bf16`, `int8`");
const BATCH_SIZE: (&str, &str) =
    ("batch", "chips, `1` to `encoder.batch_max`; it stands for smaller ones down to the next");
const SLOT: (&str, &str) = ("slot", "`0` to `training.jobs_concurrent_max` - 1");

pub(super) const MODELS_GROUP: Group = Group {
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
};

pub(super) const TRAINING_GROUP: Group = Group {
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
            "Training jobs. Where servers share them, each counts all but those that others run.",
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
};

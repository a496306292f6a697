//! Metrics of chips and batches.

use super::metric::{Group, Kind, STAGE_SECONDS, metric};

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

const BATCH_CHIPS: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]);

pub(super) const CHIPS_AND_BATCHES: Group = Group {
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
        metric(OUT_OF_MEMORY, Kind::Counter, "passes", &[], "Forward passes that ran out of device memory."),
        metric(PANICS, Kind::Counter, "passes", &[], "Forward passes that panicked."),
    ],
};

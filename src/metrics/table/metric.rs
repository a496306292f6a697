//! What a metric is.

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

pub(super) const STAGE_SECONDS: Kind =
    Kind::Histogram(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]);

pub(super) const fn metric(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [(&'static str, &'static str)],
    meaning: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, meaning }
}

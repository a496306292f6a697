//! The models on the devices, as a metric that drops old labels: the exporter keeps the labels of a gauge forever, and
//! every training job adds another digest.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::table::{self, MODEL, Metric};

/// How often each is resident: servers of one process share their metrics.
static RESIDENT: Mutex<BTreeMap<Labels, usize>> = Mutex::new(BTreeMap::new());

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    digest: String,
    precision: &'static str,
    device: String,
}

/// Notes that a model is on the devices.
pub fn model_resident(digest: String, precision: &'static str, device: String) {
    *resident().entry(Labels { digest, precision, device }).or_default() += 1;
}

/// Notes that a model has left the devices, and removes its series.
pub fn model_gone(digest: String, precision: &'static str, device: String) {
    let mut resident = resident();
    let labels = Labels { digest, precision, device };
    if let Some(times) = resident.get_mut(&labels) {
        *times -= 1;
        if *times == 0 {
            resident.remove(&labels);
        }
    }
}

/// Adds the metric to a page in Prometheus's text format.
pub(super) fn write(page: &mut String) {
    let meaning =
        table::all().find(|metric| metric.name == MODEL).map_or("", |Metric { meaning, .. }| meaning);
    write!(page, "# HELP {MODEL} {meaning}\n# TYPE {MODEL} gauge\n").expect("a string has room");
    for Labels { digest, precision, device } in resident().keys() {
        writeln!(page, "{MODEL}{{digest=\"{digest}\",precision=\"{precision}\",device=\"{device}\"}} 1")
            .expect("a string has room");
    }
}

fn resident() -> MutexGuard<'static, BTreeMap<Labels, usize>> {
    RESIDENT.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Measurements of a server under load.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use shipreid::metrics::LATE_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::output;

/// How often the server's memory is read.
const SAMPLE: Duration = Duration::from_millis(250);
/// Latencies up to an hour, in microseconds to three digits.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// One call as measured by its caller.
pub struct Call {
    pub due: Instant,
    pub ended: Instant,
    /// Chips and their time in the model, or an error code.
    pub outcome: Result<(usize, Duration), String>,
}

/// Measurements of the calls that ended during the measured time.
pub struct Report {
    seconds: f64,
    images: usize,
    accepted: Histogram<u64>,
    /// Latency without the model, of calls with one chip.
    added: Histogram<u64>,
    refused: Histogram<u64>,
    codes: BTreeMap<String, usize>,
    watch: ServerWatch,
}

impl Report {
    pub fn new<'a>(
        calls: impl Iterator<Item = &'a Call>,
        begin: Instant,
        end: Instant,
        watch: ServerWatch,
    ) -> Self {
        let mut report = Self {
            seconds: (end - begin).as_secs_f64(),
            images: 0,
            accepted: latencies(),
            added: latencies(),
            refused: latencies(),
            codes: BTreeMap::new(),
            watch,
        };
        for call in calls.filter(|call| call.ended >= begin && call.ended < end) {
            let latency = call.ended - call.due;
            match &call.outcome {
                Ok((images, forward)) => {
                    report.images += images;
                    record(&mut report.accepted, latency);
                    if *images == 1 {
                        record(&mut report.added, latency.saturating_sub(*forward));
                    }
                }
                Err(code) => {
                    *report.codes.entry(code.clone()).or_default() += 1;
                    record(&mut report.refused, latency);
                }
            }
        }
        report
    }

    /// Prints to standard output, as JSON or as a table.
    pub fn print(&self, as_json: bool) {
        if as_json {
            output::say(self.json());
        } else {
            output::say(self.table());
        }
    }

    fn json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "images": self.images,
            "images_per_second": self.images as f64 / self.seconds,
            "images_per_server_cpu_second": self.watch.cpu_seconds.map(|cpu| self.images as f64 / cpu),
            "server_cpu_seconds": self.watch.cpu_seconds,
            "server_memory_peak_bytes": self.watch.memory_peak_bytes,
            "server_late_seconds_max": self.watch.late_seconds_max,
            "calls_ok": self.accepted.len(),
            "calls_failed": self.codes,
            "latency_ms": percentiles(&self.accepted),
            "latency_without_forward_ms": percentiles(&self.added),
            "failed_latency_ms": percentiles(&self.refused),
        })
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["what", "figure"]);
        let mut row = |what: &str, figure: String| _ = table.add_row([what.to_owned(), figure]);
        row("images", format!("{} in {:.1} s", self.images, self.seconds));
        row("images per second", format!("{:.1}", self.images as f64 / self.seconds));
        if let Some(cpu) = self.watch.cpu_seconds {
            row("images per server CPU-second", format!("{:.2}", self.images as f64 / cpu));
        }
        if let Some(bytes) = self.watch.memory_peak_bytes {
            row("server memory, peak", format!("{:.0} MiB", bytes / f64::from(1 << 20)));
        }
        if let Some(late) = self.watch.late_seconds_max {
            row("latest embedding past a deadline", format!("{:.1} ms since the start", late * 1e3));
        }
        row("latency of answered calls", words(&self.accepted));
        if !self.added.is_empty() {
            row("  without the model", words(&self.added));
        }
        for (code, count) in &self.codes {
            row(&format!("calls that ended {code}"), count.to_string());
        }
        if !self.refused.is_empty() {
            row("latency of failed calls", words(&self.refused));
        }
        table
    }
}

fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_MAX_US, 3).expect("constant bounds")
}

fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

fn percentiles(histogram: &Histogram<u64>) -> Value {
    let value = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    QUANTILES.iter().map(|(name, quantile)| ((*name).to_owned(), json!(value(*quantile)))).collect()
}

fn words(histogram: &Histogram<u64>) -> String {
    let value = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    let each = QUANTILES.map(|(name, quantile)| format!("{name} {:.2}", value(quantile)));
    format!("{} ms", each.join(", "))
}

/// The server's own metrics over the measured time; empty if they cannot be read.
#[derive(Default)]
pub struct ServerWatch {
    cpu_seconds: Option<f64>,
    memory_peak_bytes: Option<f64>,
    late_seconds_max: Option<f64>,
}

impl ServerWatch {
    /// Reads the metrics at `address` from `begin` to `end`.
    pub async fn over(address: String, begin: Instant, end: Instant) -> Self {
        sleep_until(begin).await;
        let cpu_before = scrape(&address).await.and_then(|page| value(&page, "process_cpu_seconds_total"));
        let (mut peak, mut next) = (None, begin);
        while next < end {
            sleep_until(next).await;
            let page = scrape(&address).await;
            let memory = page.and_then(|page| value(&page, "process_resident_memory_bytes"));
            peak = memory.map(|memory: f64| memory.max(peak.unwrap_or(0.0))).or(peak);
            next += SAMPLE;
        }
        sleep_until(end).await;
        let page = scrape(&address).await.unwrap_or_default();
        let cpu_after = value(&page, "process_cpu_seconds_total");
        Self {
            cpu_seconds: cpu_before.zip(cpu_after).map(|(before, after)| after - before),
            memory_peak_bytes: peak,
            late_seconds_max: value(&page, LATE_MAX),
        }
    }
}

/// The text of `/metrics`.
async fn scrape(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await.ok()?;
    Some(page)
}

/// A metric without labels.
fn value(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

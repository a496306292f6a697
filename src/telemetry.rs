//! Logs on standard error, as text for people or JSON for machines, and spans to an OpenTelemetry collector.

use std::backtrace::Backtrace;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample};
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use crate::config::{LogFormat, Telemetry};

/// Maximum number of calls that a batch's span links to.
const LINKS_MAX: u32 = 1024;
/// Time limit for sending the last spans to the collector.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Lines that wait to be written. Further ones are lost.
const LINES_MAX: usize = 16_384;

/// The number of lost log lines.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Spans that are being sent to a collector, if there is one, and lines that are being written to the log.
#[derive(Debug)]
pub struct Traces {
    provider: Option<SdkTracerProvider>,
    /// When dropped, the last lines are written, within a second.
    _lines: Option<WorkerGuard>,
}

/// Starts logging and tracing for the whole process; call it within a runtime, which sends the spans.
///
/// # Errors
/// The filter does not parse, the collector's address cannot be used, or a subscriber is installed already.
pub fn install(telemetry: &Telemetry) -> anyhow::Result<Traces> {
    install_to(telemetry, io::stderr)
}

/// Like [`install`], for a server: if its log is not read, lines are lost, and neither calls nor signals wait.
///
/// # Errors
/// As [`install`].
pub fn install_lossy(telemetry: &Telemetry) -> anyhow::Result<Traces> {
    let (writer, lines) = lossy(io::stderr());
    let lost = writer.error_counter();
    let traces = install_to(telemetry, writer)?;
    // The first one installed is the only one.
    let _ = LOST.set(lost);
    panic::set_hook(Box::new(tell_panic));
    Ok(Traces { _lines: Some(lines), ..traces })
}

/// Log lines that were lost, since the log was not read for too long.
pub fn lost_lines() -> u64 {
    LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

/// A writer that never blocks on the underlying one.
fn lossy(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .thread_name("log")
        .finish(writer)
}

/// The standard hook would block on standard error.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    tracing::error!(%backtrace, "{panic}");
}

/// Like [`install`], with logs to `writer`.
///
/// # Errors
/// As [`install`].
pub fn install_to<W>(telemetry: &Telemetry, writer: W) -> anyhow::Result<Traces>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let logs = fmt::layer()
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal() && wants_colours(|name| std::env::var_os(name)));
    let logs = match telemetry.log_format {
        LogFormat::Text => logs.boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    let logs = logs.with_filter(EnvFilter::try_new(&telemetry.log_filter)?);
    let provider = provider(telemetry)?;
    let traces = provider.as_ref().map(|provider| {
        // Only our own spans: the work of libraries shows as time within them.
        let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("shipreid"));
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("shipreid"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(ours.with_max_level_hint(LevelFilter::DEBUG))
    });
    let installed = registry().with(logs).with(traces).try_init();
    installed.map_err(|cause| anyhow::anyhow!("logging is installed already: {cause}"))?;
    Ok(Traces { provider, _lines: None })
}

impl Traces {
    /// Sends the last spans, and waits briefly for that, but not for async tasks.
    pub fn flush(self) {
        if let Some(provider) = self.provider
            && let Err(cause) = provider.shutdown_with_timeout(FLUSH_MAX)
        {
            tracing::warn!(%cause, "the last spans did not reach the collector");
        }
    }
}

/// Whether a log on a terminal is coloured: unless disabled by the user (<https://no-color.org>), or the terminal shows
/// no colours.
fn wants_colours(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty())
        && variable("TERM").is_none_or(|term| term != "dumb")
}

fn provider(telemetry: &Telemetry) -> anyhow::Result<Option<SdkTracerProvider>> {
    if telemetry.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(&telemetry.otlp_endpoint);
    let exporter = match telemetry.otlp_endpoint.starts_with("https://") {
        true => exporter.with_tls_config(ClientTlsConfig::new().with_native_roots()),
        false => exporter,
    };
    let exporter = exporter.build()?;
    let resource = Resource::builder()
        .with_service_name(telemetry.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let root = Sampler::TraceIdRatioBased(telemetry.otlp_sample_ratio);
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Linked(Sampler::ParentBased(Box::new(root))))
        .with_max_links_per_span(LINKS_MAX)
        .with_resource(resource)
        .build();
    Ok(Some(provider))
}

/// Decides as for any other span, but traces a span with links and without a parent if a linked span is traced: a batch
/// belongs to all its calls.
#[derive(Clone, Debug)]
struct Linked(Sampler);

impl ShouldSample for Linked {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_root = !parent.is_some_and(|parent| parent.span().span_context().is_valid());
        let mut result = self.0.should_sample(parent, trace_id, name, kind, attributes, links);
        if is_root && !links.is_empty() {
            result.decision = if links.iter().any(|link| link.span_context.is_sampled()) {
                SamplingDecision::RecordAndSample
            } else {
                SamplingDecision::Drop
            };
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};

    use super::*;

    /// A log that is not read until the test has ended.
    struct Unread(std::sync::mpsc::Receiver<()>);

    impl Write for Unread {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // The sender is gone when the test is over.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_loses_lines_and_keeps_nobody_waiting() {
        let (read, unread) = std::sync::mpsc::channel();
        let (mut writer, lines) = lossy(Unread(unread));
        for _ in 0..2 * LINES_MAX {
            writer.write_all(b"a line\n").expect("it is taken or lost");
        }
        let lost = writer.error_counter().dropped_lines();
        assert!((LINES_MAX - 2..=LINES_MAX).contains(&lost), "{lost}");
        drop(read);
        drop(lines);
    }

    #[test]
    fn a_log_is_coloured_on_a_terminal_whose_user_has_nothing_against_it() {
        for (set, expected) in [
            (None, true),
            (Some(("NO_COLOR", "")), true),
            (Some(("NO_COLOR", "1")), false),
            (Some(("TERM", "xterm-256color")), true),
            (Some(("TERM", "dumb")), false),
        ] {
            let variable = |name: &str| set.filter(|(set, _)| *set == name).map(|(_, value)| value.into());
            assert_eq!(wants_colours(variable), expected, "{set:?}");
        }
    }

    fn link(flags: TraceFlags) -> Link {
        let (trace, span) = (TraceId::from(7), SpanId::from(8));
        Link::with_context(SpanContext::new(trace, span, flags, true, TraceState::NONE))
    }

    #[test]
    fn a_batch_is_traced_if_one_of_its_calls_is() {
        let decide = |share: f64, links: &[Link]| {
            let sampler = Linked(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))));
            sampler.should_sample(None, TraceId::from(1), "batch", &SpanKind::Internal, &[], links).decision
        };
        let (sampled, not) = (link(TraceFlags::SAMPLED), link(TraceFlags::NOT_SAMPLED));
        assert_eq!(decide(0.0, &[not.clone(), sampled]), SamplingDecision::RecordAndSample);
        assert_eq!(decide(1.0, &[not]), SamplingDecision::Drop);
        assert_eq!(decide(0.0, &[]), SamplingDecision::Drop);
        assert_eq!(decide(1.0, &[]), SamplingDecision::RecordAndSample);
    }
}

//! Logs on standard error, as text for people or JSON for machines, and spans to an OpenTelemetry collector.

use std::io::{self, IsTerminal};
use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use crate::config::{LogFormat, Telemetry};

/// Chips of one batch whose calls its span links to.
const LINKS_MAX: u32 = 1024;
/// What the last spans may take on their way to the collector.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Spans on their way to a collector, if there is one.
#[derive(Debug)]
pub struct Traces(Option<SdkTracerProvider>);

/// Starts logging and tracing for the whole process; within a runtime, which carries the spans away.
///
/// # Errors
/// The filter does not parse, the collector's address cannot be used, or a subscriber is installed already.
pub fn install(telemetry: &Telemetry) -> anyhow::Result<Traces> {
    install_to(telemetry, io::stderr)
}

/// The same with logs to `writer`.
///
/// # Errors
/// As [`install`].
pub fn install_to<W>(telemetry: &Telemetry, writer: W) -> anyhow::Result<Traces>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let logs = fmt::layer().with_writer(writer).with_ansi(io::stderr().is_terminal());
    let logs = match telemetry.log_format {
        LogFormat::Text => logs.boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    let logs = logs.with_filter(EnvFilter::try_new(&telemetry.log_filter)?);
    let provider = provider(telemetry)?;
    let traces = provider.as_ref().map(|provider| {
        // Spans of ours: what libraries do is seen by their time within them.
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
    Ok(Traces(provider))
}

impl Traces {
    /// Sends the last spans, and waits a moment for it: not for async tasks.
    pub fn flush(self) {
        if let Some(provider) = self.0
            && let Err(cause) = provider.shutdown_with_timeout(FLUSH_MAX)
        {
            tracing::warn!(%cause, "the last spans did not reach the collector");
        }
    }
}

fn provider(telemetry: &Telemetry) -> anyhow::Result<Option<SdkTracerProvider>> {
    if telemetry.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(&telemetry.otlp_endpoint).build()?;
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

/// Decides as for any other span, but a span with links and without a parent is traced if one that it links to is: a
/// batch belongs to all its calls.
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

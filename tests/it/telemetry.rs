//! The logs and traces of a call.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use shipreid::chip::Modality;
use shipreid::client::{Client, chip};
use shipreid::config::{LogFormat, Telemetry};
use shipreid::telemetry::{self, Traces};
use shipreid::wire::{EmbedRequest, EmbedResponse};
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

use crate::server::{fixture, start};

/// A caller's trace, its calling span, and both in W3C format.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that stores what it receives.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        locked(&self.0).extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The log lines of this process.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        locked(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap()
}

/// The telemetry of this process; other tests also leave their traces in it.
struct Observed {
    lines: Lines,
    collector: Collector,
    traces: Mutex<Option<Traces>>,
    /// Transmits the spans.
    _runtime: Runtime,
}

fn observed() -> &'static Observed {
    static OBSERVED: OnceLock<Observed> = OnceLock::new();
    OBSERVED.get_or_init(|| {
        let (lines, collector) = (Lines::default(), Collector::default());
        let runtime = Runtime::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let telemetry = Telemetry {
            log_format: LogFormat::Json,
            log_filter: "info,shipreid=trace".into(),
            otlp_endpoint: format!("http://{}", listener.local_addr().unwrap()),
            ..Telemetry::default()
        };
        let entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server =
            tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        runtime.spawn(server.serve_with_incoming(incoming));
        let writer = lines.clone();
        let traces = telemetry::install_to(&telemetry, move || writer.clone()).unwrap();
        drop(entered);
        Observed { lines, collector, traces: Mutex::new(Some(traces)), _runtime: runtime }
    })
}

fn request() -> Request<EmbedRequest> {
    let chip = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
    Request::new(EmbedRequest { chips: vec![chip], ..EmbedRequest::default() })
}

async fn embed(client: &Client, request: Request<EmbedRequest>) -> Response<EmbedResponse> {
    client.ship_re_id().embed(request).await.unwrap()
}

fn ids(span: &Span) -> [String; 3] {
    [&span.trace_id, &span.span_id, &span.parent_span_id]
        .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[tokio::test]
async fn a_call_is_traced_under_its_caller_and_its_batch_is_linked_to_it() {
    let observed = observed();
    let (server, client) = start(&[]).await;
    let mut called = request();
    called.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    embed(&client, called).await;
    // Spans end together with their subjects: the connection, and the device thread.
    drop(client);
    server.stop().await;
    let traces = locked(&observed.traces).take().unwrap();
    tokio::task::spawn_blocking(|| traces.flush()).await.unwrap();

    let spans = locked(&observed.collector.0).clone();
    let of_caller: Vec<&Span> = spans.iter().filter(|span| ids(span)[0] == TRACE).collect();
    let find =
        |name: &str| *of_caller.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}"));
    let call = find("shipreid.v1.ShipReId/Embed");
    let [_, call_id, parent_id] = ids(call);
    assert_eq!((parent_id.as_str(), call.kind), (PARENT, 2), "a server's span under the caller's");
    let attributes: Vec<&str> = call.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    for key in ["rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code"] {
        assert!(attributes.contains(&key), "{key}: {attributes:?}");
    }
    for name in ["decode", "queue"] {
        assert_eq!(ids(find(name))[2], call_id, "{name}");
    }
    let [_, queue_id, _] = ids(find("queue"));
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let is_linked = |span: &&Span| span.links.iter().any(|link| hex(&link.span_id) == queue_id);
    let batch = spans.iter().find(is_linked).expect("a batch is linked to the call");
    let [batch_trace, batch_id, batch_parent] = ids(batch);
    assert_eq!((batch.name.as_str(), batch_parent.as_str()), ("batch", ""));
    assert_ne!(batch_trace, TRACE);
    let forward = spans.iter().find(|span| span.name == "forward" && ids(span)[2] == batch_id);
    assert_eq!(ids(forward.expect("a forward pass"))[0], batch_trace);
}

#[tokio::test]
async fn a_log_line_names_request_and_trace_and_no_secret() {
    let observed = observed();
    let (server, client) = start(&[]).await;
    let mut called = request();
    let metadata = called.metadata_mut();
    let trace = "1af7651916cd43dd8448eb211c80319c";
    metadata.insert("traceparent", format!("00-{trace}-{PARENT}-01").parse().unwrap());
    metadata.insert("x-request-id", "pass-17".parse().unwrap());
    metadata.insert("authorization", "Bearer s3cret-of-a-caller".parse().unwrap());
    metadata.insert("x-api-key", "s3cret-key".parse().unwrap());
    let answer = embed(&client, called).await;
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "pass-17");
    let generated = embed(&client, request()).await.metadata().get("x-request-id").unwrap().clone();
    assert_eq!(generated.len(), 32);

    let mut refused = request();
    refused.get_mut().chips.clear();
    refused.metadata_mut().insert("x-request-id", "pass-18".parse().unwrap());
    let status = client.ship_re_id().embed(refused).await.unwrap_err();
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "pass-18");
    drop(client);
    server.stop().await;

    let logged = String::from_utf8(locked(&observed.lines.0).clone()).unwrap();
    assert!(!logged.contains("s3cret"));
    let lines: Vec<serde_json::Value> =
        logged.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |id: &str| {
        let line =
            lines.iter().find(|line| line["message"] == "call ended" && line["span"]["request_id"] == id);
        line.unwrap_or_else(|| panic!("{id} is not logged"))
    };
    assert_eq!((&of("pass-17")["span"]["trace_id"], &of("pass-17")["code"]), (&trace.into(), &"Ok".into()));
    assert_eq!(of("pass-18")["code"], "InvalidArgument");
    of(generated.to_str().unwrap());
}

/// The program, whose trusted authorities come from its environment.
#[cfg(feature = "torch")]
mod program {
    use tonic::transport::{Identity, Server as Grpc, ServerTlsConfig};

    use super::*;
    use crate::certificates::{Authority, Term};
    use crate::galleries::data_in;
    use crate::program::{Server, imported, shipreid};

    #[tokio::test]
    async fn spans_reach_a_collector_over_tls() {
        let folder = tempfile::TempDir::new().unwrap();
        let authority = Authority::new("collectors");
        let pair = authority.issue(folder.path(), "collector", Term::Valid);
        let read = |path| std::fs::read(path).unwrap();
        let identity = Identity::from_pem(read(pair.certificate), read(pair.key));
        let collector = Collector::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let serving = Grpc::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(serving);

        let mut program = shipreid();
        program.env("SSL_CERT_FILE", authority.write(folder.path().join("authority.pem")));
        let (model, data) = (imported(folder.path()), data_in(&folder));
        let endpoint = format!("telemetry.otlp_endpoint={endpoint}");
        let server =
            tokio::task::spawn_blocking(move || Server::start_as(program, &model, &[&data, &endpoint]));
        let server = server.await.unwrap();
        let client = Client::connect(&server.endpoint).await.unwrap();
        embed(&client, request()).await;
        drop(client);
        tokio::task::spawn_blocking(|| server.terminate()).await.unwrap();
        let spans = locked(&collector.0);
        assert!(spans.iter().any(|span| span.name == "shipreid.v1.ShipReId/Embed"), "{spans:?}");
    }
}

//! `grpc.health.v1`: answers like tonic's service, except for unknown services.

use futures_util::{FutureExt, StreamExt, future, stream};
use tonic::{Code, Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_check_response::ServingStatus as WireStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use super::ResponseStream;
use super::method::services;

/// Every service is known from the start, and not serving until it is reported as serving.
pub fn service() -> (HealthReporter, HealthServer<KnownServices>) {
    let reporter = HealthReporter::new();
    for service in [""].into_iter().chain(services()) {
        let known = reporter.set_service_status(service, ServingStatus::NotServing).now_or_never();
        known.expect("nobody else has the reporter yet");
    }
    let service = HealthService::from_health_reporter(reporter.clone());
    (reporter, HealthServer::new(KnownServices(service)))
}

/// The health of a fixed set of services.
#[derive(Debug)]
pub struct KnownServices(HealthService);

#[tonic::async_trait]
impl Health for KnownServices {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    type WatchStream = ResponseStream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        match self.0.watch(request).await {
            Ok(watched) => Ok(Response::new(watched.into_inner().boxed())),
            // A caller may watch an unknown service until it appears, as the protocol specifies.
            Err(status) if status.code() == Code::NotFound => {
                let unknown = HealthCheckResponse { status: WireStatus::ServiceUnknown.into() };
                let told = stream::once(future::ready(Ok(unknown)));
                Ok(Response::new(told.chain(stream::pending()).boxed()))
            }
            Err(status) => Err(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn watched(service: &KnownServices, name: &str) -> ResponseStream<HealthCheckResponse> {
        let request = Request::new(HealthCheckRequest { service: name.into() });
        service.watch(request).await.expect("a stream").into_inner()
    }

    #[tokio::test]
    async fn a_service_that_there_is_not_is_unknown_and_its_watcher_stays() {
        let (reporter, _) = service();
        let health = KnownServices(HealthService::from_health_reporter(reporter.clone()));
        let mut unknown = watched(&health, "shipreid.v1.Sink").await;
        let first = unknown.next().await.expect("a status").expect("no error");
        assert_eq!(first.status(), WireStatus::ServiceUnknown);
        assert!(unknown.next().now_or_never().is_none(), "it stays open");
        for name in [""].into_iter().chain(services()) {
            let mut known = watched(&health, name).await;
            let first = known.next().await.expect("a status").expect("no error");
            assert_eq!(first.status(), WireStatus::NotServing, "{name}");
            reporter.set_service_status(name, ServingStatus::Serving).await;
            let next = known.next().await.expect("a status").expect("no error");
            assert_eq!(next.status(), WireStatus::Serving, "{name}");
        }
        let request = Request::new(HealthCheckRequest { service: "shipreid.v1.Sink".into() });
        assert_eq!(health.check(request).await.expect_err("unknown").code(), Code::NotFound);
    }
}

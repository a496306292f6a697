//! Both ports, bound before anything is loaded, so that a port in use is reported immediately.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;

use super::observability::upkeep;
use crate::config::Config;
use crate::rpc::listener::{Port, Security, status_port};
use crate::rpc::status_page::{self, StatusPages};

/// Ports that are bound but not served yet.
pub struct Ports {
    pub grpc: Port,
    pub status: TcpListener,
}

impl Ports {
    /// # Errors
    /// The gRPC port's certificates cannot be used, or an address cannot be bound; the error names it.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let security = Security::open(&config.tls).await?;
        let listener = bind(config.server.listen).await?;
        let status = bind(config.server.metrics_listen).await?;
        let grpc = Port { listener, security, proxies: config.server.trusted_proxies.clone() };
        Ok(Self { grpc, status })
    }
}

/// Serves the status pages from now on, for as long as the process lives, so that monitoring can observe the shutdown
/// as well.
pub fn serve_status(port: TcpListener, pages: StatusPages, connections_max: usize) {
    tokio::spawn(upkeep(pages.metrics.clone()));
    tokio::spawn(status_port::serve(port, status_page::router(pages), connections_max));
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

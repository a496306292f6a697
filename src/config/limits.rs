//! Bounds on calls, messages and connections.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub message_bytes_max: usize,
    pub receiving_bytes_max: usize,
    pub receiving_bytes_per_tenant_max: usize,
    pub receiving_bytes_per_connection_max: usize,
    pub message_seconds_max: f64,
    pub chips_per_request_max: usize,
    pub calls_max: usize,
    pub calls_per_tenant_max: usize,
    pub calls_per_second_max: u32,
    pub calls_burst_max: u32,
    pub deadline_seconds_default: f64,
    pub deadline_seconds_max: f64,
    pub stream_inflight_max: usize,
    pub enroll_inflight_max: usize,
    pub stream_idle_seconds_max: f64,
    pub stream_yield_seconds: f64,
    pub connections_max: usize,
    pub header_seconds_max: f64,
    pub idle_seconds_max: f64,
    pub connection_seconds_max: f64,
    pub connection_grace_seconds: f64,
    pub pending_resets_max: usize,
    pub streams_per_connection_max: u32,
    pub header_bytes_max: u32,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub keepalive_seconds: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 << 20,
            receiving_bytes_max: 512 << 20,
            receiving_bytes_per_tenant_max: 0,
            receiving_bytes_per_connection_max: 0,
            message_seconds_max: 120.0,
            chips_per_request_max: 64,
            calls_max: 256,
            calls_per_tenant_max: 0,
            calls_per_second_max: 0,
            calls_burst_max: 100,
            deadline_seconds_default: 60.0,
            deadline_seconds_max: 600.0,
            stream_inflight_max: 32,
            enroll_inflight_max: 1024,
            stream_idle_seconds_max: 600.0,
            stream_yield_seconds: 5.0,
            connections_max: 1000,
            header_seconds_max: 30.0,
            idle_seconds_max: 900.0,
            connection_seconds_max: 0.0,
            connection_grace_seconds: 60.0,
            pending_resets_max: 256,
            streams_per_connection_max: 128,
            header_bytes_max: 16 << 10,
            stream_window_bytes: 256 << 10,
            connection_window_bytes: 512 << 10,
            keepalive_seconds: 30.0,
        }
    }
}

impl Limits {
    /// Calls that each of several tenants may have in flight.
    pub fn calls_of_tenant(&self) -> usize {
        match self.calls_per_tenant_max {
            0 => self.calls_max - self.calls_max / 4,
            max => max,
        }
    }

    /// Bytes of one tenant's messages that may be received at once.
    pub fn receiving_of_tenant(&self) -> usize {
        match self.receiving_bytes_per_tenant_max {
            0 => (self.receiving_bytes_max / 2).max(self.message_bytes_max),
            max => max,
        }
    }

    /// The same for one connection.
    pub fn receiving_of_connection(&self) -> usize {
        match self.receiving_bytes_per_connection_max {
            0 => (self.receiving_of_tenant() / 2).max(self.message_bytes_max),
            max => max,
        }
    }
}

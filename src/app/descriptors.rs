//! Limits on the files and connections that the process may have open: some are reserved for its stores.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::rpc::listener::{self, status_port};

/// One part in this many of all descriptors is reserved for galleries, models and jobs, never for connections.
const STORES_PART: u64 = 4;
/// One part in this many of those for connections is for the status pages.
const STATUS_PART: usize = 8;

/// A configuration that fits the limit on descriptors.
pub struct Fitted {
    pub config: Config,
    /// Maximum connections of the status port.
    pub status_connections: usize,
}

/// Maximum connections of each port.
#[derive(Debug, PartialEq)]
struct Ports {
    grpc: usize,
    status: usize,
}

/// The configuration with as many connections as the limit on descriptors allows, which is raised as far as possible.
pub fn fitted(config: &Config) -> Fitted {
    let wanted = config.limits.connections_max;
    let limit = raised(descriptors_for(wanted));
    let Ports { grpc, status } = ports(limit, wanted);
    if grpc < wanted {
        tracing::warn!(
            descriptors = limit,
            connections = grpc,
            "limits.connections_max is {wanted}, but the process may not have enough files open (ulimit -n, LimitNOFILE)"
        );
    }
    let mut config = config.clone();
    config.limits.connections_max = grpc;
    Fitted { config, status_connections: status }
}

/// Descriptors needed for this many connections.
fn descriptors_for(connections: usize) -> u64 {
    let status = listener::descriptors_for(status_port::CONNECTIONS_MAX);
    let ports = listener::descriptors_for(connections).saturating_add(status) as u64;
    ports.saturating_mul(STORES_PART).div_ceil(STORES_PART - 1)
}

/// Connections that this many descriptors allow, at most those wanted; `None` means no limit.
fn ports(descriptors: Option<u64>, wanted: usize) -> Ports {
    let Some(descriptors) = descriptors else {
        return Ports { grpc: wanted, status: status_port::CONNECTIONS_MAX };
    };
    let both = usize::try_from(descriptors - descriptors.div_ceil(STORES_PART)).unwrap_or(usize::MAX);
    let status = (both / STATUS_PART).clamp(1, status_port::CONNECTIONS_MAX);
    let allowed = listener::connections_within(both.saturating_sub(listener::descriptors_for(status)));
    Ports { grpc: wanted.min(allowed.max(1)), status }
}

/// The process's limit, raised to `wanted` if the system permits.
fn raised(wanted: u64) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current?;
    let target = maximum.map_or(wanted, |maximum| wanted.min(maximum));
    if current >= target {
        return Some(current);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum }) {
        Ok(()) => Some(target),
        Err(cause) => {
            tracing::warn!(%cause, "the limit on open files cannot be raised");
            Some(current)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_descriptors_is_never_for_connections() {
        for (descriptors, wanted, grpc, status) in [
            (Some(1024), 1000, 652, 64),
            (Some(65_536), 1000, 1000, 64),
            (None, 1000, 1000, 64),
            (Some(256), 1000, 150, 24),
            (Some(1), 1000, 1, 1),
            (Some(descriptors_for(1000)), 1000, 1000, 64),
            (Some(descriptors_for(1000) - 1), 1000, 999, 64),
        ] {
            let expected = Ports { grpc, status };
            assert_eq!(ports(descriptors, wanted), expected, "{descriptors:?} {wanted}");
        }
        for descriptors in 16..10_000 {
            let Ports { grpc, status } = ports(Some(descriptors), usize::MAX);
            let taken = listener::descriptors_for(grpc) + listener::descriptors_for(status);
            assert!(4 * taken as u64 <= 3 * descriptors, "{descriptors}: {taken}");
        }
    }
}

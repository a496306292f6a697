//! Files and connections that the process may have open: some are kept for what it stores.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Of all descriptors, one part in so many is for galleries, models and jobs, never for connections.
const STORES_PART: u64 = 4;

/// The configuration with as many connections as the limit on descriptors allows, which is raised as far as it can be.
pub fn fitted(config: &Config) -> Config {
    let wanted = config.limits.connections_max;
    let limit = raised(descriptors_for(wanted));
    let connections = connections_within(limit, wanted);
    if connections < wanted {
        tracing::warn!(
            descriptors = limit,
            connections,
            "limits.connections_max is {wanted}, but the process may not have enough files open (ulimit -n, LimitNOFILE)"
        );
    }
    let mut config = config.clone();
    config.limits.connections_max = connections;
    config
}

/// Descriptors that so many connections ask for.
fn descriptors_for(connections: usize) -> u64 {
    (connections as u64).saturating_mul(STORES_PART).div_ceil(STORES_PART - 1)
}

/// Connections that so many descriptors allow, at most those wanted; `None` is no limit.
fn connections_within(descriptors: Option<u64>, wanted: usize) -> usize {
    let Some(descriptors) = descriptors else { return wanted };
    let allowed = usize::try_from(descriptors - descriptors.div_ceil(STORES_PART)).unwrap_or(usize::MAX);
    wanted.min(allowed.max(1))
}

/// The process's limit, raised to `wanted` where the system lets it be.
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
        for (descriptors, wanted, allowed) in [
            (Some(1024), 1000, 768),
            (Some(65_536), 1000, 1000),
            (None, 1000, 1000),
            (Some(100), 1000, 75),
            (Some(1), 1000, 1),
            (Some(descriptors_for(1000)), 1000, 1000),
            (Some(descriptors_for(1000) - 1), 1000, 999),
        ] {
            assert_eq!(connections_within(descriptors, wanted), allowed, "{descriptors:?} {wanted}");
        }
    }
}

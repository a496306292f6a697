//! Invalid values of a configuration, section by section; all of them are reported at once.

use super::{
    Auth, Chips, Config, Encoder, Limits, Matching, Models, Plaintext, Preset, Server, Store, Telemetry, Tls,
    Training, Uploads,
};
use crate::keys::DEFAULT_TENANT;

/// One line for each value out of bounds.
pub(super) fn violations(config: &Config) -> Vec<String> {
    let mut found = Violations(Vec::new());
    found.require(
        config.model.path.is_empty() || config.model.preset == Preset::None,
        "model.path and model.preset exclude each other",
    );
    found.of_server(&config.server, &config.tls);
    found.of_tls(&config.tls);
    found.of_auth(&config.auth);
    found.of_models(&config.models);
    found.of_encoder(&config.encoder, &config.chips, &config.limits);
    found.of_chips(&config.chips);
    found.of_store(&config.store);
    found.of_uploads(&config.uploads);
    found.of_matching(&config.matching);
    found.of_held_galleries(&config.matching, &config.store, &config.auth);
    found.of_training(&config.training);
    found.of_limits(&config.limits);
    found.of_connections(&config.limits);
    found.of_telemetry(&config.telemetry);
    found.0
}

struct Violations(Vec<String>);

impl Violations {
    fn require(&mut self, holds: bool, text: &str) {
        if !holds {
            self.0.push(text.to_owned());
        }
    }

    fn of_server(&mut self, server: &Server, tls: &Tls) {
        self.require(!server.roles.is_empty(), "server.roles must name encode, match or train");
        self.require(
            server.listen.ip().is_loopback() || tls.is_on() || server.plaintext == Plaintext::Everywhere,
            "server.listen is reached from other machines and nothing encrypts it: set tls.certificate and tls.key, \
             or server.plaintext = \"everywhere\" where something in front of it encrypts",
        );
        self.require(
            server.listen.port() == 0 || server.listen != server.metrics_listen,
            "server.listen and server.metrics_listen must differ",
        );
        self.require(
            (0.0..=600.0).contains(&server.drain_notice_seconds),
            "server.drain_notice_seconds must be 0 to 600",
        );
        self.require(
            (0.0..=3600.0).contains(&server.drain_seconds_max),
            "server.drain_seconds_max must be 0 to 3600",
        );
    }

    fn of_tls(&mut self, tls: &Tls) {
        self.require(
            tls.certificate.is_empty() == tls.key.is_empty(),
            "tls.certificate and tls.key belong together",
        );
        self.require(
            tls.client_ca.is_empty() || tls.is_on(),
            "tls.client_ca needs tls.certificate and tls.key",
        );
        self.require(
            tls.client_crl.is_empty() || !tls.client_ca.is_empty(),
            "tls.client_crl needs tls.client_ca",
        );
        self.require(
            (0.1..=300.0).contains(&tls.handshake_seconds_max),
            "tls.handshake_seconds_max must be 0.1 to 300",
        );
        self.require((1..=65_536).contains(&tls.handshakes_max), "tls.handshakes_max must be 1 to 65536");
        self.require(is_reload(tls.reload_seconds), "tls.reload_seconds must be 0.01 to 86400");
    }

    fn of_auth(&mut self, auth: &Auth) {
        self.require(
            (0.0..=1_000_000.0).contains(&auth.rejections_per_second_max),
            "auth.rejections_per_second_max must be 0 to 1000000",
        );
        self.require(is_reload(auth.reload_seconds), "auth.reload_seconds must be 0.01 to 86400");
    }

    fn of_models(&mut self, models: &Models) {
        self.require((1..=10_000).contains(&models.count_max), "models.count_max must be 1 to 10000");
        self.require(models.bytes_max >= 1 << 20, "models.bytes_max must be at least 1048576");
        self.require(
            models.resident_bytes_max >= 1 << 20,
            "models.resident_bytes_max must be at least 1048576",
        );
    }

    fn of_encoder(&mut self, encoder: &Encoder, chips: &Chips, limits: &Limits) {
        self.require(is_device(&encoder.device), "encoder.device must be \"cpu\" or \"cuda:N\"");
        self.require(
            (0.0..=100.0).contains(&encoder.precision_speed_min),
            "encoder.precision_speed_min must be 0 to 100",
        );
        self.require(encoder.workers <= 64, "encoder.workers must be 0 to 64");
        self.require(encoder.threads_per_worker <= 256, "encoder.threads_per_worker must be 0 to 256");
        self.require((1..=1024).contains(&encoder.batch_max), "encoder.batch_max must be 1 to 1024");
        self.require(
            encoder.queue_items_max >= encoder.batch_max,
            "encoder.queue_items_max must be at least encoder.batch_max",
        );
        self.require(
            encoder.canary_seconds == 0.0 || (1.0..=3600.0).contains(&encoder.canary_seconds),
            "encoder.canary_seconds must be 0 or 1 to 3600",
        );
        self.require(
            (1..=encoder.queue_items_max).contains(&limits.chips_per_request_max),
            "limits.chips_per_request_max must be 1 to encoder.queue_items_max",
        );
        self.require(
            encoder.queue_bytes_max >= chips.bytes_max,
            "encoder.queue_bytes_max must be at least chips.bytes_max",
        );
    }

    fn of_chips(&mut self, chips: &Chips) {
        self.require(chips.bytes_max >= 1, "chips.bytes_max must be at least 1");
        self.require((1..=1 << 30).contains(&chips.pixels_max), "chips.pixels_max must be 1 to 1073741824");
        self.require(chips.decode_threads <= 256, "chips.decode_threads must be 0 to 256");
    }

    fn of_store(&mut self, store: &Store) {
        self.require(
            store.url.is_empty()
                || ["postgres://", "postgresql://"].iter().any(|scheme| store.url.starts_with(scheme)),
            "store.url must be empty or a postgres:// URL",
        );
        self.require(
            store.url.is_empty() || !store.data_dir.is_empty(),
            "store.url needs store.data_dir, where this server's copies of the galleries are",
        );
        self.require(
            (0.1..=86_400.0).contains(&store.local_read_seconds_max),
            "store.local_read_seconds_max must be 0.1 to 86400",
        );
        self.require(store.galleries_max >= 1, "store.galleries_max must be at least 1");
        self.require(
            (1..=u64::from(u32::MAX)).contains(&store.entries_max),
            "store.entries_max must be 1 to 4294967295",
        );
        self.require(store.bytes_max >= 1 << 20, "store.bytes_max must be at least 1048576");
        self.require(
            (1 << 20..=1 << 40).contains(&store.cache_bytes),
            "store.cache_bytes must be 1048576 to 1099511627776",
        );
        self.require(
            store.resident_bytes_max == 0 || store.resident_bytes_max >= 1 << 20,
            "store.resident_bytes_max must be 0 or at least 1048576",
        );
    }

    fn of_uploads(&mut self, uploads: &Uploads) {
        self.require((1..=10_000).contains(&uploads.count_max), "uploads.count_max must be 1 to 10000");
        self.require(
            (1 << 20..=1 << 50).contains(&uploads.bytes_max),
            "uploads.bytes_max must be 1048576 to 1125899906842624",
        );
        self.require(
            (1.0..=31_536_000.0).contains(&uploads.idle_seconds_max),
            "uploads.idle_seconds_max must be 1 to 31536000",
        );
    }

    fn of_matching(&mut self, matching: &Matching) {
        self.require(matching.search_threads <= 256, "matching.search_threads must be 0 to 256");
        self.require((1..=1024).contains(&matching.queries_max), "matching.queries_max must be 1 to 1024");
        self.require((1..=10_000).contains(&matching.top_k_max), "matching.top_k_max must be 1 to 10000");
    }

    fn of_held_galleries(&mut self, matching: &Matching, store: &Store, auth: &Auth) {
        self.require(
            matching.galleries.is_empty() || !store.url.is_empty(),
            "matching.galleries needs store.url: without it no other server has the galleries that are left out",
        );
        for pattern in &matching.galleries {
            self.require(
                !auth.keys_file.is_empty() || pattern.admits(DEFAULT_TENANT),
                &format!(
                    "matching.galleries names the tenant of {pattern}, and without auth.keys_file all galleries are those of \
                     the tenant {DEFAULT_TENANT}"
                ),
            );
        }
    }

    fn of_training(&mut self, training: &Training) {
        self.require(
            (1..=64).contains(&training.jobs_concurrent_max),
            "training.jobs_concurrent_max must be 1 to 64",
        );
        self.require((1..=100_000).contains(&training.jobs_max), "training.jobs_max must be 1 to 100000");
        self.require(is_device(&training.device), "training.device must be \"cpu\" or \"cuda:N\"");
        self.require(training.threads <= 256, "training.threads must be 0 to 256");
        self.require((1..=64).contains(&training.processes), "training.processes must be 1 to 64");
        self.require((0..=20).contains(&training.nice), "training.nice must be 0 to 20");
        self.require(
            training.memory_bytes_max == 0 || training.memory_bytes_max >= 64 << 20,
            "training.memory_bytes_max must be 0 or at least 67108864",
        );
        self.require(
            (0.1..=86_400.0).contains(&training.heartbeat_seconds_max),
            "training.heartbeat_seconds_max must be 0.1 to 86400",
        );
        self.require(
            (0.1..=3600.0).contains(&training.cancel_grace_seconds),
            "training.cancel_grace_seconds must be 0.1 to 3600",
        );
        self.require(
            (1.0..=3600.0).contains(&training.lease_seconds),
            "training.lease_seconds must be 1 to 3600",
        );
        self.require((1..=1000).contains(&training.attempts_max), "training.attempts_max must be 1 to 1000");
        self.require(training.events_retained_max >= 1, "training.events_retained_max must be at least 1");
    }

    fn of_limits(&mut self, limits: &Limits) {
        self.require(
            (1024..=1 << 30).contains(&limits.message_bytes_max),
            "limits.message_bytes_max must be 1024 to 1073741824",
        );
        self.require(
            limits.receiving_bytes_max >= limits.message_bytes_max,
            "limits.receiving_bytes_max must be at least limits.message_bytes_max",
        );
        for (key, bytes) in [
            ("limits.receiving_bytes_per_tenant_max", limits.receiving_bytes_per_tenant_max),
            ("limits.receiving_bytes_per_connection_max", limits.receiving_bytes_per_connection_max),
        ] {
            self.require(
                bytes == 0 || bytes >= limits.message_bytes_max,
                &format!("{key} must be 0 or at least limits.message_bytes_max"),
            );
        }
        self.require(limits.calls_max >= 1, "limits.calls_max must be at least 1");
        for (key, seconds) in [
            ("limits.message_seconds_max", limits.message_seconds_max),
            ("limits.stream_idle_seconds_max", limits.stream_idle_seconds_max),
        ] {
            self.require((0.1..=604_800.0).contains(&seconds), &format!("{key} must be 0.1 to 604800"));
        }
        self.require(
            (0.0..=604_800.0).contains(&limits.stream_yield_seconds),
            "limits.stream_yield_seconds must be 0 to 604800",
        );
        self.require(
            limits.calls_per_second_max == 0 || limits.calls_burst_max >= 1,
            "limits.calls_burst_max must be at least 1",
        );
        self.require(
            (0.001..=86_400.0).contains(&limits.deadline_seconds_max),
            "limits.deadline_seconds_max must be 0.001 to 86400",
        );
        self.require(
            (0.0..=limits.deadline_seconds_max).contains(&limits.deadline_seconds_default),
            "limits.deadline_seconds_default must be 0 to limits.deadline_seconds_max",
        );
        self.require(limits.stream_inflight_max >= 1, "limits.stream_inflight_max must be at least 1");
        self.require(
            (1..=65_536).contains(&limits.enroll_inflight_max),
            "limits.enroll_inflight_max must be 1 to 65536",
        );
        self.require(limits.connections_max >= 1, "limits.connections_max must be at least 1");
        self.require(
            limits.streams_per_connection_max >= 1,
            "limits.streams_per_connection_max must be at least 1",
        );
        self.require(limits.header_bytes_max >= 1024, "limits.header_bytes_max must be at least 1024");
        let window = 65_535..=1 << 30;
        self.require(
            window.contains(&limits.stream_window_bytes) && window.contains(&limits.connection_window_bytes),
            "limits.stream_window_bytes and limits.connection_window_bytes must be 65535 to 1073741824",
        );
        self.require(
            (1.0..=3600.0).contains(&limits.keepalive_seconds),
            "limits.keepalive_seconds must be 1 to 3600",
        );
    }

    fn of_connections(&mut self, limits: &Limits) {
        self.require(
            (0.1..=3600.0).contains(&limits.header_seconds_max),
            "limits.header_seconds_max must be 0.1 to 3600",
        );
        self.require(
            (0.1..=86_400.0).contains(&limits.idle_seconds_max),
            "limits.idle_seconds_max must be 0.1 to 86400",
        );
        self.require(
            limits.connection_seconds_max == 0.0
                || (0.1..=2_592_000.0).contains(&limits.connection_seconds_max),
            "limits.connection_seconds_max must be 0 or 0.1 to 2592000",
        );
        self.require(
            (0.1..=86_400.0).contains(&limits.connection_grace_seconds),
            "limits.connection_grace_seconds must be 0.1 to 86400",
        );
        self.require(
            (1..=65_536).contains(&limits.pending_resets_max),
            "limits.pending_resets_max must be 1 to 65536",
        );
    }

    fn of_telemetry(&mut self, telemetry: &Telemetry) {
        self.require(
            tracing_subscriber::EnvFilter::try_new(&telemetry.log_filter).is_ok(),
            "telemetry.log_filter is not a valid filter",
        );
        self.require(
            telemetry.otlp_endpoint.is_empty() || is_collector(&telemetry.otlp_endpoint),
            "telemetry.otlp_endpoint must be empty or like http://127.0.0.1:4317 or https://collector:4317",
        );
        self.require(
            (0.0..=1.0).contains(&telemetry.otlp_sample_ratio),
            "telemetry.otlp_sample_ratio must be 0 to 1",
        );
        self.require(!telemetry.service_name.is_empty(), "telemetry.service_name must not be empty");
    }
}

fn is_reload(seconds: f64) -> bool {
    (0.01..=86_400.0).contains(&seconds)
}

fn is_device(name: &str) -> bool {
    name == "cpu" || name.strip_prefix("cuda:").is_some_and(|number| number.parse::<u8>().is_ok())
}

fn is_collector(endpoint: &str) -> bool {
    let uri = endpoint.parse::<http::Uri>();
    uri.is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some())
}

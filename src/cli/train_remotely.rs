//! `shipreid train --endpoint`: training on a server that has the data.

use clap::Args;
use shipreid::client::Followed;
use shipreid::wire::TrainRequest;

use super::access::AccessFlags;
use super::live::{lines_of_start, refused, tell_way_back, watch_to_the_end};
use super::{Failure, output};

/// What concerns a server alone.
#[derive(Args)]
pub struct RemoteFlags {
    /// Trains on this server, whose folders the configuration names, instead of this machine; default without --local and
    /// --from-yaml: SHIPREID_ENDPOINT.
    #[arg(long, value_name = "URL", conflicts_with_all = ["local", "out", "data_roots", "device", "force"])]
    endpoint: Option<String>,
    #[command(flatten)]
    access: AccessFlags,
    /// Display name of the job.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// The same id with the same configuration attaches to the job that it started.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Trains on the kept chips of this gallery; its vessels are the identities.
    #[arg(long, value_name = "NAME")]
    gallery: Option<String>,
    /// Checks the configuration and its data, here or on the server, shows what a run would start from, and starts
    /// nothing.
    #[arg(long, conflicts_with = "detach")]
    validate_only: bool,
    /// Starts the job without watching it.
    #[arg(long)]
    detach: bool,
}

impl RemoteFlags {
    /// The server that the flag names.
    pub fn endpoint(&self) -> Option<String> {
        self.endpoint.clone()
    }

    /// Whether nothing is to be started, here or on a server.
    pub fn validates_only(&self) -> bool {
        self.validate_only
    }

    /// A flag without meaning for a run on this machine.
    pub fn only_on_a_server(&self) -> Option<&'static str> {
        let flags = [
            ("--name", self.name.is_some()),
            ("--request-id", self.request_id.is_some()),
            ("--gallery", self.gallery.is_some()),
            ("--detach", self.detach),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// Orders a job with `config_toml` from the server at `endpoint`.
    ///
    /// # Errors
    /// The server refuses, or the job did not finish.
    pub async fn run(self, endpoint: &str, config_toml: String) -> Result<(), Failure> {
        let client = self.access.connect(endpoint).await?;
        let request = TrainRequest {
            config_toml,
            request_id: self.request_id.unwrap_or_default(),
            display_name: self.name.unwrap_or_default(),
            gallery: self.gallery.unwrap_or_default(),
            validate_only: self.validate_only,
        };
        if self.validate_only {
            let (_, start) = client.validate_training(request).await.map_err(refused)?;
            output::say("the configuration is valid");
            start.iter().flat_map(lines_of_start).for_each(output::say);
            return Ok(());
        }
        let mut follower = client.train(request);
        if self.detach {
            while let Followed::Lost { cause, wait } = follower.next().await.map_err(refused)? {
                output::remark(format_args!(
                    "connection lost: {cause}; retrying in {:.1} s",
                    wait.as_secs_f64()
                ));
            }
            tell_way_back(&follower, endpoint);
            return Ok(());
        }
        watch_to_the_end(follower, endpoint).await
    }
}

//! `shipreid train --endpoint`: training on a server that has the data.

use clap::Args;
use shipreid::client::Followed;
use shipreid::wire::TrainRequest;

use super::Failure;
use super::access::AccessFlags;
use super::live::{lines_of_start, refused, tell_way_back, watch_to_the_end};

/// What concerns a server alone.
#[derive(Args)]
pub struct RemoteFlags {
    /// Trains on this server instead of this machine; the configuration refers to the server's folders.
    #[arg(long, value_name = "URL", conflicts_with_all = ["local", "out", "data_roots", "device"])]
    endpoint: Option<String>,
    #[command(flatten)]
    access: AccessFlags,
    /// Display name of the job.
    #[arg(long, value_name = "TEXT", requires = "endpoint")]
    name: Option<String>,
    /// Idempotency key: the same id with the same configuration attaches to the existing job.
    #[arg(long, value_name = "ID", requires = "endpoint")]
    request_id: Option<String>,
    /// Trains on the kept chips of this gallery, with vessels as identities.
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    gallery: Option<String>,
    /// Reports everything that is wrong with the configuration and its data, and starts nothing.
    #[arg(long, requires = "endpoint", conflicts_with = "detach")]
    validate_only: bool,
    /// Starts the job without watching it.
    #[arg(long, requires = "endpoint")]
    detach: bool,
}

impl RemoteFlags {
    pub fn is_given(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Orders what `config_toml` says.
    ///
    /// # Errors
    /// What the server refuses, and how the job ended.
    pub async fn run(self, config_toml: String) -> Result<(), Failure> {
        let endpoint = self.endpoint.unwrap_or_default();
        let client = self.access.connect(&endpoint).await?;
        let request = TrainRequest {
            config_toml,
            request_id: self.request_id.unwrap_or_default(),
            display_name: self.name.unwrap_or_default(),
            gallery: self.gallery.unwrap_or_default(),
            validate_only: self.validate_only,
        };
        if self.validate_only {
            let (_, start) = client.validate_training(request).await.map_err(refused)?;
            println!("the configuration starts a run");
            start.iter().flat_map(lines_of_start).for_each(|line| println!("{line}"));
            return Ok(());
        }
        let mut follower = client.train(request);
        if self.detach {
            while let Followed::Lost { cause, wait } = follower.next().await.map_err(refused)? {
                eprintln!("lost: {cause}; trying again in {:.1} s", wait.as_secs_f64());
            }
            tell_way_back(&follower, &endpoint);
            return Ok(());
        }
        watch_to_the_end(follower, &endpoint).await
    }
}

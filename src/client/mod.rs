//! The gRPC client that the command line and the tests share.

mod gallery;
mod model;
mod transfer;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use crate::chip::Modality;
use crate::wire;
use crate::wire::galleries_client::GalleriesClient;
use crate::wire::models_client::ModelsClient;
use crate::wire::ship_re_id_client::ShipReIdClient;
use crate::wire::training_jobs_client::TrainingJobsClient;

/// Codes of items that a busy server refused and that are worth sending again.
pub const RESOURCE_EXHAUSTED: i32 = tonic::Code::ResourceExhausted as i32;
pub const UNAVAILABLE: i32 = tonic::Code::Unavailable as i32;

/// Answers may carry many embeddings.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// The 64 KiB of the standard slow images down.
const WINDOW_BYTES: u32 = 8 << 20;
/// How long a connection may take to come up.
const CONNECT_SECONDS: u64 = 10;

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Client {
    ship_re_id: ShipReIdClient<Channel>,
    galleries: GalleriesClient<Channel>,
    models: ModelsClient<Channel>,
    training_jobs: TrainingJobsClient<Channel>,
}

/// Why a call gave no answer, in words for a terminal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{endpoint} is not an endpoint: write http://host:port")]
    Endpoint { endpoint: String },
    #[error("cannot reach {endpoint}: {cause}")]
    Unreachable { endpoint: String, cause: String },
    #[error("{}", describe(.0))]
    Refused(Box<tonic::Status>),
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        // tonic's channel watches the deadline as well, and calls it CANCELLED when it is first to see it pass.
        let mut causes =
            std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| (*cause).source());
        let expired = causes.any(|cause| cause.is::<tonic::TimeoutExpired>());
        let status =
            if expired { tonic::Status::deadline_exceeded("the deadline has passed") } else { status };
        Self::Refused(Box::new(status))
    }
}

impl Client {
    /// Connects to `http://host:port`.
    ///
    /// # Errors
    /// A malformed endpoint, or no server there.
    pub async fn connect(endpoint: &str) -> Result<Self, ClientError> {
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|_| ClientError::Endpoint { endpoint: endpoint.into() })?
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect()
            .await
            .map_err(|cause| ClientError::Unreachable {
                endpoint: endpoint.into(),
                cause: root_cause(&cause),
            })?;
        Ok(Self::over(channel))
    }

    /// Uses a channel that is set up already.
    pub fn over(channel: Channel) -> Self {
        let ship_re_id = ShipReIdClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let galleries = GalleriesClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let models = ModelsClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let training_jobs = TrainingJobsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { ship_re_id, galleries, models, training_jobs }
    }

    /// Embeds a batch; with a `timeout`, the server gets it as the call's deadline.
    ///
    /// # Errors
    /// When the call as a whole is refused; a chip that fails alone is in the answer.
    pub async fn embed(
        &self,
        request: wire::EmbedRequest,
        timeout: Option<Duration>,
    ) -> Result<wire::EmbedResponse, ClientError> {
        let mut request = tonic::Request::new(request);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        Ok(self.ship_re_id.clone().embed(request).await?.into_inner())
    }

    /// The generated client, for what this one does not wrap.
    pub fn ship_re_id(&self) -> ShipReIdClient<Channel> {
        self.ship_re_id.clone()
    }

    /// The generated client of training jobs.
    pub fn training_jobs(&self) -> TrainingJobsClient<Channel> {
        self.training_jobs.clone()
    }
}

/// A chip of the default pixel size.
pub fn chip(image: impl Into<Bytes>, modality: Modality) -> wire::Chip {
    let modality = match modality {
        Modality::Optical => wire::Modality::Optical,
        Modality::Sar => wire::Modality::Sar,
    };
    wire::Chip { image: image.into(), modality: modality.into(), ..wire::Chip::default() }
}

/// The modality that HOSS file names tell (`..._RGB.tif`, `..._SAR.png`). Only clients guess; the server
/// never sees a name.
pub fn modality_of_name(path: &Path) -> Option<Modality> {
    let stem = path.file_stem()?.to_str()?.to_ascii_uppercase();
    match stem.rsplit('_').next()? {
        "RGB" | "OPT" | "OPTICAL" => Some(Modality::Optical),
        "SAR" => Some(Modality::Sar),
        _ => None,
    }
}

fn describe(status: &tonic::Status) -> String {
    let reason = status.get_details_error_info().map(|info| info.reason);
    match reason {
        Some(reason) => format!("{} ({:?}, {reason})", status.message(), status.code()),
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hoss_name_tells_the_modality() {
        for (name, expected) in [
            ("a/0003_s05c2_SAR.tif", Some(Modality::Sar)),
            ("-1_0081_RGB.tif", Some(Modality::Optical)),
            ("p_7_sar.png", Some(Modality::Sar)),
            ("SAR_0003.tif", None),
            ("ship.png", None),
        ] {
            assert_eq!(modality_of_name(Path::new(name)), expected, "{name}");
        }
    }
}

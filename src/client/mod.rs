//! The gRPC client that the command line and the tests share.

mod access;
mod endpoint;
mod error;
mod follow;
mod gallery;
mod model;
mod state;
mod training;
mod transfer;
mod upload;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;

pub use access::{Access, ApiKey, Transport};
pub use error::{ClientError, Violation};
pub use follow::{Beginning, Followed, Follower};
pub use state::{is_ended, state_name};

use crate::chip::Modality;
use crate::wire;
use crate::wire::galleries_client::GalleriesClient;
use crate::wire::models_client::ModelsClient;
use crate::wire::ship_re_id_client::ShipReIdClient;
use crate::wire::training_jobs_client::TrainingJobsClient;
use crate::wire::uploads_client::UploadsClient;

/// Code of an item whose id is already used for other content.
pub const ALREADY_EXISTS: i32 = Code::AlreadyExists as i32;
/// Code of items that a busy server refused and that are worth sending again.
pub const RESOURCE_EXHAUSTED: i32 = Code::ResourceExhausted as i32;
pub const UNAVAILABLE: i32 = Code::Unavailable as i32;

/// Responses may contain many embeddings.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// The default of 64 KiB slows images down.
const WINDOW_BYTES: u32 = 8 << 20;
/// Time limit for establishing a connection.
const CONNECT_SECONDS: u64 = 10;
/// A waiting call notices within this many seconds that its server is gone without closing the connection, as after a
/// power failure.
const KEEPALIVE_SECONDS: u64 = 30;

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Client {
    ship_re_id: ShipReIdClient<Transport>,
    galleries: GalleriesClient<Transport>,
    models: ModelsClient<Transport>,
    training_jobs: TrainingJobsClient<Transport>,
    uploads: UploadsClient<Transport>,
}

impl Client {
    /// Connects to `host:port`, in plain text, without credentials.
    ///
    /// # Errors
    /// The endpoint is malformed, or no server answers.
    pub async fn connect(endpoint: &str) -> Result<Self, ClientError> {
        Self::connect_as(endpoint, &Access::default()).await
    }

    /// Connects to `host:port`, `http://host:port` or `https://host:port`, with the given credentials. Without a scheme
    /// the connection is encrypted if `access` names authorities for the server or a certificate of the client.
    ///
    /// # Errors
    /// The endpoint is malformed, a file cannot be read, a key would be sent unencrypted, or no server answers whose
    /// certificate is signed by one of the authorities.
    pub async fn connect_as(endpoint: &str, access: &Access) -> Result<Self, ClientError> {
        let target = endpoint::parse(endpoint, access)?;
        let tried = target.uri().to_string().trim_end_matches('/').to_owned();
        let credentials = access.credentials(&target)?;
        let channel = access
            .secured(target)?
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(KEEPALIVE_SECONDS))
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect()
            .await
            .map_err(|cause| ClientError::Unreachable {
                endpoint: tried,
                cause: explained(root_cause(&cause)),
            })?;
        Ok(Self::over(InterceptedService::new(channel, credentials)))
    }

    fn over(channel: Transport) -> Self {
        let ship_re_id = ShipReIdClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let galleries = GalleriesClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let models = ModelsClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let training_jobs =
            TrainingJobsClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let uploads = UploadsClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { ship_re_id, galleries, models, training_jobs, uploads }
    }

    /// Embeds a batch; a `timeout` is sent to the server as the call's deadline.
    ///
    /// # Errors
    /// The call as a whole is refused; the error of a chip that fails alone is in the response.
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

    /// The generated client, for methods that are not wrapped here.
    pub fn ship_re_id(&self) -> ShipReIdClient<Transport> {
        self.ship_re_id.clone()
    }
}

/// A chip whose pixel size is taken from the file or the default.
pub fn chip(image: impl Into<Bytes>, modality: Modality) -> wire::Chip {
    let modality = match modality {
        Modality::Optical => wire::Modality::Optical,
        Modality::Sar => wire::Modality::Sar,
    };
    wire::Chip { image: image.into(), modality: modality.into(), ..wire::Chip::default() }
}

/// The modality according to a HOSS file name (`..._RGB.tif`, `..._SAR.png`). Only clients guess; the server never sees
/// a name.
pub fn modality_of_name(path: &Path) -> Option<Modality> {
    let stem = path.file_stem()?.to_string_lossy().to_ascii_uppercase();
    match stem.rsplit('_').next()? {
        "RGB" | "OPT" | "OPTICAL" => Some(Modality::Optical),
        "SAR" => Some(Modality::Sar),
        _ => None,
    }
}

/// What rustls found, with what to do about the common cases.
fn explained(cause: String) -> String {
    if cause.contains("InvalidContentType") {
        format!("it does not use TLS, write http:// ({cause})")
    } else if cause.contains("UnknownIssuer") {
        format!("{cause}: give the authority that signed it, as with --ca")
    } else {
        cause
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

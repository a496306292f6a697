//! Uploads as a client uses them: files that are sent chunk by chunk.

use super::{Client, Transport};
use crate::wire::uploads_client::UploadsClient;

impl Client {
    /// The generated client of the service `Uploads`.
    pub fn uploads(&self) -> UploadsClient<Transport> {
        self.uploads.clone()
    }
}

//! Files to and from a server, in pieces.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::ClientError;

/// Bytes of a file in one message.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that are read ahead of the network.
const PIECES_AHEAD: usize = 2;

/// Writes the pieces to `file`, which appears when it is complete; says how many bytes it has.
///
/// # Errors
/// What the server refuses, or a file that cannot be written.
pub async fn receive(
    mut pieces: impl Stream<Item = Result<Bytes, Status>> + Unpin,
    file: &Path,
    progress: impl Fn(u64),
) -> Result<u64, ClientError> {
    let partial = file.with_added_extension("partial");
    let named = |cause| ClientError::File { path: file.to_owned(), cause };
    let mut out = File::create(&partial).map_err(named)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        out.write_all(&piece).map_err(named)?;
        bytes += piece.len() as u64;
        progress(bytes);
    }
    out.sync_all().and_then(|()| fs::rename(&partial, file)).map_err(named)?;
    Ok(bytes)
}

/// A file as a stream of pieces, and the reading of it, to be awaited after the call.
pub struct Outgoing {
    pub pieces: ReceiverStream<Bytes>,
    reading: JoinHandle<std::io::Result<()>>,
}

impl Outgoing {
    /// # Errors
    /// The file cannot be opened.
    pub fn open(file: &Path, progress: impl Fn(u64) + Send + 'static) -> Result<Self, ClientError> {
        let named = |cause| ClientError::File { path: file.to_owned(), cause };
        let mut content = File::open(file).map_err(named)?;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = 0;
            loop {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                let read = content.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
                bytes += read as u64;
                // A server that has refused the file reads no further.
                if sender.blocking_send(piece.into()).is_err() || read < PIECE_BYTES {
                    return Ok(());
                }
                progress(bytes);
            }
        });
        Ok(Self { pieces: ReceiverStream::new(pieces), reading })
    }

    /// Whether the file was read to its end, as far as the server wanted it.
    ///
    /// # Errors
    /// It could not be read.
    pub async fn finish(reading: JoinHandle<std::io::Result<()>>, file: &Path) -> Result<(), ClientError> {
        let named = |cause| ClientError::File { path: file.to_owned(), cause };
        reading.await.map_err(|cause| named(cause.into()))?.map_err(named)
    }
}

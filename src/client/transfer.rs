//! Files to and from a server, in pieces.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::ClientError;

/// Bytes of a file in one message.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that are read ahead of the network.
const PIECES_AHEAD: usize = 2;

/// Writes the pieces to `file`, which appears when it is complete; returns its size in bytes.
///
/// # Errors
/// The server refuses, or the file cannot be written.
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

/// Sends `file` in pieces through `call`.
///
/// # Errors
/// The server refuses, or the file cannot be read.
pub async fn send<T>(
    file: &Path,
    progress: impl Fn(u64) + Send + 'static,
    call: impl AsyncFnOnce(ReceiverStream<Bytes>) -> Result<T, Status>,
) -> Result<T, ClientError> {
    let named = |cause| ClientError::File { path: file.to_owned(), cause };
    let mut content = File::open(file).map_err(named)?;
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = 0;
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read = Read::by_ref(&mut content).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            // A server that has refused the file stops reading.
            if sender.blocking_send(piece.into()).is_err() || read < PIECE_BYTES {
                return Ok(());
            }
            bytes += read as u64;
            progress(bytes);
        }
    });
    let answer = call(ReceiverStream::new(pieces)).await;
    match reading.await {
        Ok(read) => read.map_err(named)?,
        Err(cause) => return Err(named(cause.into())),
    }
    Ok(answer?)
}

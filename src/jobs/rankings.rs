//! Transfers sample rankings from a training process to its server in one file in the job's folder, since lines are
//! short. The process waits until it is stored before it makes the next.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::Path;

use image::ImageFormat;

use super::report::Rankings;
use crate::train::RankedLists;

const FILE: &str = "rankings.png";
/// As specified by the contract.
const PNG_BYTES_MAX: u64 = 2 << 20;

/// Draws them and writes the image to a job's folder.
///
/// # Errors
/// An image can no longer be read, or the file cannot be written.
pub fn leave(folder: &Path, lists: &RankedLists) -> io::Result<()> {
    let picture = lists.picture().map_err(io::Error::other)?;
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).map_err(io::Error::other)?;
    fs::write(folder.join(FILE), png.into_inner())
}

/// Reads them from a job's folder.
///
/// # Errors
/// The file cannot be read, or exceeds the size limit.
pub fn fetch(folder: &Path, epoch: u32) -> io::Result<Rankings> {
    let mut png = Vec::new();
    File::open(folder.join(FILE))?.take(PNG_BYTES_MAX + 1).read_to_end(&mut png)?;
    if png.len() as u64 > PNG_BYTES_MAX {
        return Err(io::Error::other(format!("{FILE} has more than {PNG_BYTES_MAX} bytes")));
    }
    Ok(Rankings { epoch, png })
}

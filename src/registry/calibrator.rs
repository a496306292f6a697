//! The calibrator that is kept with a model, if there is one: a file beside the model's, such as `shipreid calibrate`
//! writes, and as `matching.calibrators` names one.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::{RegistryError, at};
use crate::durable::{seal_text, unseal_text};
use crate::embedding::ModelDigest;
use crate::matching::Calibrator;
use crate::weights::packed;

/// The file's name in a model's folder.
pub const CALIBRATOR: &str = "calibrator.toml";
/// Limit in bytes; a calibrator has about two thousand.
const CALIBRATOR_BYTES_MAX: u64 = 1 << 20;

/// The content of the file.
pub fn calibrator_file(calibrator: &Calibrator) -> String {
    seal_text(&calibrator.to_toml())
}

/// The calibrator that comes with `model` in a folder or in a packed model. `None` if there is none, as with every
/// checkpoint of another program.
///
/// # Errors
/// It cannot be read, is damaged, or belongs to another model.
pub fn calibrator_beside(path: &Path, model: ModelDigest) -> Result<Option<Calibrator>, RegistryError> {
    if path.is_dir() {
        return read_calibrator(path, model);
    }
    if !packed::is_packed(path).unwrap_or(false) {
        return Ok(None);
    }
    let part = packed::find_part(path, CALIBRATOR, CALIBRATOR_BYTES_MAX);
    let part = part.map_err(|cause| unreadable(&cause))?;
    part.map(|bytes| parse(&bytes, model)).transpose()
}

/// [`calibrator_beside`] for a folder.
pub(super) fn read_calibrator(place: &Path, model: ModelDigest) -> Result<Option<Calibrator>, RegistryError> {
    let file = place.join(CALIBRATOR);
    match fs::metadata(&file) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.len() > CALIBRATOR_BYTES_MAX => {
            return Err(unreadable(&format_args!("larger than {CALIBRATOR_BYTES_MAX} bytes")));
        }
        // Reading it says why it cannot be read.
        _ => {}
    }
    parse(&fs::read(&file).map_err(at(&file))?, model).map(Some)
}

fn parse(bytes: &[u8], model: ModelDigest) -> Result<Calibrator, RegistryError> {
    let text = str::from_utf8(bytes).map_err(|cause| unreadable(&cause))?;
    let text = unseal_text(text).map_err(|cause| unreadable(&cause))?;
    let calibrator = Calibrator::parse(text).map_err(|cause| unreadable(&cause))?;
    check(&calibrator, model)?;
    Ok(calibrator)
}

/// # Errors
/// The calibrator belongs to another model.
pub(super) fn check(calibrator: &Calibrator, model: ModelDigest) -> Result<(), RegistryError> {
    let of = calibrator.model();
    if of == model { Ok(()) } else { Err(RegistryError::OtherCalibrator { model, of }) }
}

fn unreadable(cause: &dyn fmt::Display) -> RegistryError {
    RegistryError::NoModel(format!("{CALIBRATOR}: {cause}"))
}

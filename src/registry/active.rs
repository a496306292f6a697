//! The record of the active model: one small file, replaced as a whole, and a copy of it.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::RegistryError;
use crate::durable::{Folder, Volume, seal_text, unseal_text};
use crate::embedding::{DigestError, ModelDigest};

/// The file's name in the registry's folder.
const ACTIVE: &str = "active.toml";
const COPY: &str = "active.copy.toml";
/// The unreadable record, once another model has been activated.
const DAMAGED: &str = "active.damaged.toml";
const FORMAT: u32 = 1;

/// The record of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveModel {
    pub digest: ModelDigest,
    /// The model that was active before, whose galleries are re-embedded.
    pub former: ModelDigest,
}

/// The content of `active.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    digest: String,
    former: String,
}

/// `None` if no model was ever activated. A damaged file is repaired from its copy.
///
/// # Errors
/// The reason why neither file can be read.
pub fn read(folder: &Path) -> Result<Option<ActiveModel>, String> {
    match (read_file(folder, ACTIVE), read_file(folder, COPY)) {
        (Ok(Some(active)), Ok(Some(copy))) if active == copy => Ok(Some(active)),
        (Ok(Some(active)), _) => {
            rewrite(folder, COPY, active);
            Ok(Some(active))
        }
        (Err(cause), Ok(Some(copy))) => {
            tracing::warn!(cause, "{ACTIVE} is damaged and written anew from its copy");
            keep_damaged(folder);
            rewrite(folder, ACTIVE, copy);
            Ok(Some(copy))
        }
        (Err(cause), _) => Err(format!("{ACTIVE}: {cause}")),
        // Removing the file makes the configured model serve again.
        (Ok(None), _) => Ok(None),
    }
}

/// Replaces the record as a whole; durable once it returns.
pub fn write(folder: &Path, active: ActiveModel) -> Result<(), RegistryError> {
    if read_file(folder, ACTIVE).is_err() {
        keep_damaged(folder);
    }
    replace(folder, ACTIVE, active)
        .map_err(|cause| RegistryError::Io { path: folder.join(ACTIVE), cause })?;
    rewrite(folder, COPY, active);
    Ok(())
}

fn read_file(folder: &Path, name: &str) -> Result<Option<ActiveModel>, String> {
    let unreadable = |cause: io::Error| cause.to_string();
    let Some(mut file) = Folder(folder.to_owned()).read(name).map_err(unreadable)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    parse(&bytes).map(Some)
}

fn replace(folder: &Path, name: &str, active: ActiveModel) -> io::Result<()> {
    let written =
        Written { format: FORMAT, digest: active.digest.to_string(), former: active.former.to_string() };
    let text = seal_text(&toml::to_string(&written).expect("a record is a table"));
    Folder(folder.to_owned()).replace(name, &mut |file| file.write_all(text.as_bytes()))
}

/// Writes what is known from the other file; if the disk refuses, the next start tries again.
fn rewrite(folder: &Path, name: &str, active: ActiveModel) {
    if let Err(cause) = replace(folder, name, active) {
        tracing::warn!(%cause, name, "the record of the active model has no second copy for now");
    }
}

fn keep_damaged(folder: &Path) {
    if let Err(cause) = std::fs::rename(folder.join(ACTIVE), folder.join(DAMAGED)) {
        tracing::warn!(%cause, "a damaged {ACTIVE} is not kept");
    }
}

fn parse(bytes: &[u8]) -> Result<ActiveModel, String> {
    let text = str::from_utf8(bytes).map_err(|cause| cause.to_string())?;
    let text = unseal_text(text).map_err(|cause| cause.to_string())?;
    let written: Written = toml::from_str(text).map_err(|cause| cause.message().to_owned())?;
    if written.format != FORMAT {
        return Err(format!("format {}", written.format));
    }
    let digest = |text: &str| text.parse().map_err(|cause: DigestError| cause.to_string());
    Ok(ActiveModel { digest: digest(&written.digest)?, former: digest(&written.former)? })
}

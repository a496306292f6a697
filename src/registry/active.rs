//! Which model serves: one small file, replaced as a whole.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::RegistryError;
use crate::durable::{Folder, Volume};
use crate::embedding::{DigestError, ModelDigest};

/// The file's name in the registry's folder.
const ACTIVE: &str = "active.toml";
const FORMAT: u32 = 1;

/// What is remembered of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveModel {
    pub digest: ModelDigest,
    /// The model that was active before, whose galleries follow.
    pub former: ModelDigest,
}

/// `active.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    digest: String,
    former: String,
}

/// `None` where no model was ever activated.
pub fn read(folder: &Path) -> Result<Option<ActiveModel>, RegistryError> {
    let path = folder.join(ACTIVE);
    let unreadable = |cause| RegistryError::Io { path: path.clone(), cause };
    let Some(mut file) = Folder(folder.to_owned()).read(ACTIVE).map_err(unreadable)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    parse(&bytes).map(Some).map_err(|cause| RegistryError::ActiveRecord { path: path.clone(), cause })
}

/// Whole or not at all, and durable once it returns.
pub fn write(folder: &Path, active: ActiveModel) -> Result<(), RegistryError> {
    let written =
        Written { format: FORMAT, digest: active.digest.to_string(), former: active.former.to_string() };
    let text = toml::to_string(&written).expect("a record is a table");
    Folder(folder.to_owned())
        .replace(ACTIVE, &mut |file| file.write_all(text.as_bytes()))
        .map_err(|cause| RegistryError::Io { path: folder.join(ACTIVE), cause })
}

fn parse(bytes: &[u8]) -> Result<ActiveModel, String> {
    let text = str::from_utf8(bytes).map_err(|cause| cause.to_string())?;
    let written: Written = toml::from_str(text).map_err(|cause| cause.message().to_owned())?;
    if written.format != FORMAT {
        return Err(format!("format {}", written.format));
    }
    let digest = |text: &str| text.parse().map_err(|cause: DigestError| cause.to_string());
    Ok(ActiveModel { digest: digest(&written.digest)?, former: digest(&written.former)? })
}

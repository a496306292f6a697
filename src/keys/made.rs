//! A new key: a token that is shown once, and the block for the server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Key, PREFIX, Role, Roles, hash, is_name};

/// The properties of a new key.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Random if absent.
    pub id: Option<String>,
    pub tenant: String,
    pub roles: Vec<Role>,
    pub not_after: Option<SystemTime>,
}

/// A newly created key.
pub struct MadeKey {
    /// The secret. It cannot be derived from the block.
    pub token: String,
    /// TOML for the server's key file.
    pub block: String,
}

impl NewKey {
    /// Generates the secret.
    ///
    /// # Errors
    /// An id or tenant contains characters other than a-z, 0-9, - and _.
    pub fn make(self) -> Result<MadeKey, String> {
        let id = self.id.unwrap_or_else(|| format!("key-{:08x}", rand::random::<u32>()));
        for (what, name) in [("id", &id), ("tenant", &self.tenant)] {
            if !is_name(name) {
                return Err(format!("the {what} {name:?} must be 1 to 64 of a-z, 0-9, - and _"));
            }
        }
        // `rand::random` uses a cryptographically secure generator that is seeded by the operating system.
        let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let token = format!("{PREFIX}{id}.{secret}");
        let key = Key {
            id: id.into(),
            tenant: self.tenant.into(),
            roles: Roles::from_iter(self.roles),
            not_after: self.not_after.map(whole_seconds),
            hash: hash(&token),
        };
        Ok(MadeKey { token, block: key.block() })
    }
}

/// `time` truncated to whole seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    time.duration_since(UNIX_EPOCH).map_or(time, |since| UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

//! A new key: a token that is shown once, and the block that the server gets.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Key, PREFIX, Role, Roles, hash, is_name};

/// What a key is to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// A random one without it.
    pub id: Option<String>,
    pub tenant: String,
    pub roles: Vec<Role>,
    pub not_after: Option<SystemTime>,
}

/// A key that has just been made.
pub struct MadeKey {
    /// The secret. Nobody can make it from the block.
    pub token: String,
    /// TOML for the server's file of keys.
    pub block: String,
}

impl NewKey {
    /// Draws the secret.
    ///
    /// # Errors
    /// An id or tenant with other characters than a-z, 0-9, - and _.
    pub fn make(self) -> Result<MadeKey, String> {
        let id = self.id.unwrap_or_else(|| format!("key-{:08x}", rand::random::<u32>()));
        for (what, name) in [("id", &id), ("tenant", &self.tenant)] {
            if !is_name(name) {
                return Err(format!("the {what} {name:?} must be 1 to 64 of a-z, 0-9, - and _"));
            }
        }
        // `rand::random` draws from a generator that is fit for secrets and seeded by the operating system.
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

/// What is left of a second after `time` is cut off.
fn whole_seconds(time: SystemTime) -> SystemTime {
    time.duration_since(UNIX_EPOCH).map_or(time, |since| UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

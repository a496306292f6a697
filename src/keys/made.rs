//! A new key: a token that is shown once, and the block that the server gets.

use std::fmt::Write;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost_types::Timestamp;

use super::{PREFIX, Role, hash, is_name};

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
        let roles: Vec<String> = self.roles.iter().map(|role| format!("\"{}\"", role.name())).collect();
        let mut block = format!("[[key]]\nid = \"{id}\"\ntenant = \"{}\"\n", self.tenant);
        block += &format!("roles = [{}]\nsha256 = \"", roles.join(", "));
        for byte in hash(&token) {
            let _ = write!(block, "{byte:02x}");
        }
        block += "\"\n";
        if let Some(end) = self.not_after {
            let whole_seconds = Timestamp { nanos: 0, ..Timestamp::from(end) };
            block += &format!("not_after = {whole_seconds}\n");
        }
        Ok(MadeKey { token, block })
    }
}

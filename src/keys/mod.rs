//! Keys of callers: created once, stored as hashes, looked up and compared without revealing anything to a guesser.
//!
//! A token is `shipreid.ID.SECRET`. The id is not secret; it selects the one key whose hash is compared. The secret has
//! 256 random bits that we generate, so that one SHA-256 suffices: slow hashes are for secrets chosen by people.

mod made;
mod ring;
mod role;

pub use made::{MadeKey, NewKey};
pub use ring::{Key, KeyRing, Rejection};
pub use role::{Role, Roles};

use sha2::{Digest, Sha256};

/// The prefix of every token, so that scanners for leaked secrets recognize it.
const PREFIX: &str = "shipreid.";

/// The tenant of every caller where there are no keys.
pub const DEFAULT_TENANT: &str = "default";

/// Characters of an id or a tenant.
const NAME_MAX: usize = 64;

type Hash = [u8; 32];

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

/// Ids and tenants appear in files, logs and tokens as they are.
fn is_name(text: &str) -> bool {
    let is_fit =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_fit)
}

//! Keys of callers: made once, stored as hashes, found and compared without telling anything to whoever guesses.
//!
//! A token is `shipreid.ID.SECRET`. The id is no secret; it finds the one key whose hash is compared. The secret has 256
//! random bits of our own making, so that one SHA-256 suffices: slow hashes exist for what people think up.

mod made;
mod ring;
mod role;

pub use made::{MadeKey, NewKey};
pub use ring::{Key, KeyRing, Rejection};
pub use role::{Role, Roles};

use sha2::{Digest, Sha256};

/// What every token begins with, so that those who look for leaked secrets know it.
const PREFIX: &str = "shipreid.";

/// Characters of an id or a tenant.
const NAME_MAX: usize = 64;

type Hash = [u8; 32];

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

/// Ids and tenants stand in files, logs and tokens as they are.
fn is_name(text: &str) -> bool {
    let is_fit =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_fit)
}

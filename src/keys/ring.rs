//! The keys of a file, and the lookup of a token's key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::SystemTime;

use prost_types::Timestamp;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::{Hash, PREFIX, Role, Roles, hash, is_name};

/// Maximum number of keys: a file of that size is read in the blink of an eye.
const KEYS_MAX: usize = 100_000;

/// The years 1 to 9999, in seconds since 1970.
const YEARS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// A caller and its permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub id: Arc<str>,
    pub tenant: Arc<str>,
    pub roles: Roles,
    /// From then on it is invalid.
    pub not_after: Option<SystemTime>,
    pub(super) hash: Hash,
}

/// Why a token is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Unknown, revoked or wrong; the caller does not learn which.
    Invalid,
    /// Correct, but expired.
    Expired,
}

/// All valid keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyRing(HashMap<Arc<str>, Arc<Key>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Block>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    id: String,
    tenant: String,
    roles: Vec<Role>,
    sha256: String,
    not_after: Option<toml::value::Datetime>,
}

impl Key {
    /// Its TOML block, as in the file.
    pub fn block(&self) -> String {
        let roles: Vec<_> = self.roles.iter().map(|role| format!("\"{}\"", role.name())).collect();
        let mut block = format!("[[key]]\nid = \"{}\"\ntenant = \"{}\"\n", self.id, self.tenant);
        block += &format!("roles = [{}]\nsha256 = \"{}\"\n", roles.join(", "), hex::encode(self.hash));
        if let Some(end) = self.not_after {
            block += &format!("not_after = {}\n", Timestamp::from(end));
        }
        block
    }

    fn is_over(&self, now: SystemTime) -> bool {
        self.not_after.is_some_and(|end| end <= now)
    }
}

impl KeyRing {
    /// Reads `[[key]]` blocks.
    ///
    /// # Errors
    /// What is wrong with the first invalid block, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File =
            toml::from_str(text).map_err(|cause| cause.to_string().trim().replace(char::is_control, " "))?;
        if file.key.len() > KEYS_MAX {
            return Err(format!("{} keys, the limit is {KEYS_MAX}", file.key.len()));
        }
        let mut keys = HashMap::new();
        for block in file.key {
            let named = format!("key {:?}", block.id);
            let key = block.read().map_err(|problem| format!("{named}: {problem}"))?;
            match keys.entry(Arc::clone(&key.id)) {
                Entry::Occupied(_) => return Err(format!("{named} stands there twice")),
                Entry::Vacant(place) => place.insert(Arc::new(key)),
            };
        }
        Ok(Self(keys))
    }

    /// The key of a token.
    ///
    /// # Errors
    /// There is none, or it has expired.
    pub fn find(&self, token: &str, now: SystemTime) -> Result<&Arc<Key>, Rejection> {
        let id = token.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).map_or("", |(id, _)| id);
        let key = self.0.get(id);
        // Without a key, the same amount is hashed and compared as with one.
        let expected = key.map_or([0; 32], |key| key.hash);
        let is_right = bool::from(hash(token).ct_eq(&expected));
        match key {
            Some(key) if is_right && key.is_over(now) => Err(Rejection::Expired),
            Some(key) if is_right => Ok(key),
            _ => Err(Rejection::Invalid),
        }
    }

    /// Every key, in arbitrary order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.values().map(AsRef::as_ref)
    }

    /// Whether a key still exists, unchanged.
    pub fn holds(&self, key: &Key) -> bool {
        self.0.get(&key.id).is_some_and(|held| **held == *key)
    }
}

impl Block {
    fn read(self) -> Result<Key, String> {
        let fit = "must be 1 to 64 of a-z, 0-9, - and _";
        if !is_name(&self.id) {
            return Err(format!("id {fit}"));
        }
        if !is_name(&self.tenant) {
            return Err(format!("tenant {fit}"));
        }
        let roles = Roles::from_iter(self.roles);
        if roles.is_empty() {
            return Err("roles must name at least one role".into());
        }
        Ok(Key {
            id: self.id.into(),
            tenant: self.tenant.into(),
            roles,
            hash: digest(&self.sha256).ok_or("sha256 must be 64 hexadecimal digits")?,
            not_after: self.not_after.map(|end| instant(&end)).transpose()?,
        })
    }
}

fn digest(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).ok()?;
    Some(hash)
}

fn instant(end: &toml::value::Datetime) -> Result<SystemTime, String> {
    let problem = || "not_after must be a date and time with an offset, as 2027-01-31T00:00:00Z".to_owned();
    if end.date.is_none() || end.time.is_none() || end.offset.is_none() {
        return Err(problem());
    }
    let end: Timestamp = end.to_string().parse().map_err(|_| problem())?;
    // An offset can lead outside the years that can be written.
    if !YEARS.contains(&end.seconds) {
        return Err("not_after must be in the years 1 to 9999".to_owned());
    }
    SystemTime::try_from(end).map_err(|_| problem())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::NewKey;
    use super::*;

    fn made(id: &str, not_after: Option<SystemTime>) -> (String, String) {
        let roles = vec![Role::Embed, Role::Match];
        let key = NewKey { id: Some(id.into()), tenant: "harbour".into(), roles, not_after };
        let made = key.make().expect("fit names");
        (made.token, made.block)
    }

    #[test]
    fn a_made_key_opens_what_its_block_says_until_it_is_gone() {
        let now = SystemTime::now();
        let (token, block) = made("crane-1", None);
        let (other_token, other_block) = made("crane-2", None);
        let ring = KeyRing::parse(&format!("{block}\n{other_block}")).expect("valid");
        let key = ring.find(&token, now).expect("known");
        assert_eq!((&*key.id, &*key.tenant), ("crane-1", "harbour"));
        assert!(key.roles.allow(Role::Match) && !key.roles.allow(Role::Admin));
        let without = KeyRing::parse(&other_block).expect("valid");
        assert!(ring.holds(key) && !without.holds(key));
        assert_eq!(without.find(&token, now), Err(Rejection::Invalid));
        assert!(without.find(&other_token, now).is_ok());
        let changed = KeyRing::parse(&block.replace("\"match\"", "\"train\"")).expect("valid");
        assert!(!changed.holds(key), "a key with other roles is another key");
    }

    #[test]
    fn whoever_guesses_is_told_one_thing() {
        let now = SystemTime::now();
        let past = now - Duration::from_secs(10);
        let (token, block) = made("late", Some(past));
        let ring = KeyRing::parse(&block).expect("valid");
        assert_eq!(ring.find(&token, now), Err(Rejection::Expired));
        assert!(ring.find(&token, past - Duration::from_secs(1)).is_ok());
        let shortened = &token[..token.len() - 1];
        for wrong in ["", "late", "shipreid.late.", "shipreid.nobody.secret", shortened, &format!("{token}x")]
        {
            assert_eq!(ring.find(wrong, now), Err(Rejection::Invalid), "{wrong}");
        }
    }

    #[test]
    fn a_block_at_fault_is_named() {
        let block = |id: &str, tenant: &str, roles: &str, sha256: &str, more: &str| {
            format!(
                "[[key]]\nid = \"{id}\"\ntenant = \"{tenant}\"\nroles = {roles}\nsha256 = \"{sha256}\"\n{more}"
            )
        };
        let hash = "ab".repeat(32);
        let good = block("a", "t", "[\"embed\"]", &hash, "");
        assert!(KeyRing::parse(&good).is_ok());
        for (text, says) in [
            (block("A", "t", "[\"embed\"]", &hash, ""), "key \"A\": id must be"),
            (block("a", "", "[\"embed\"]", &hash, ""), "key \"a\": tenant must be"),
            (block("a", "t", "[]", &hash, ""), "key \"a\": roles must name"),
            (block("a", "t", "[\"root\"]", &hash, ""), "unknown variant `root`"),
            (block("a", "t", "[\"embed\"]", "abc", ""), "key \"a\": sha256 must be"),
            (block("a", "t", "[\"embed\"]", &hash, "not_after = 2027-01-31"), "key \"a\": not_after must be"),
            (
                block("a", "t", "[\"embed\"]", &hash, "not_after = 9999-12-31T23:00:00-02:00"),
                "key \"a\": not_after must be in the years",
            ),
            (block("a", "t", "[\"embed\"]", &hash, "secret = \"x\""), "unknown field `secret`"),
            (good.clone() + &good, "key \"a\" stands there twice"),
        ] {
            let problem = KeyRing::parse(&text).expect_err("at fault");
            assert!(problem.contains(says) && !problem.contains('\n'), "{problem}");
        }
    }
}

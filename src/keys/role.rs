//! What callers may be allowed to do.

use serde::{Deserialize, Serialize};

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Turns chips into embeddings.
    Embed,
    /// Searches galleries and reads their content.
    Match,
    /// Creates galleries and changes their content.
    Enrol,
    /// Starts, watches and ends training jobs.
    Train,
    /// Everything, including models and the deletion of galleries.
    Admin,
}

/// What one key allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles(u8);

impl Role {
    pub const EVERY: [Self; 5] = [Self::Embed, Self::Match, Self::Enrol, Self::Train, Self::Admin];

    /// As written in key files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Match => "match",
            Self::Enrol => "enrol",
            Self::Train => "train",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl Roles {
    /// Whether work of this kind is allowed.
    pub fn allow(self, role: Role) -> bool {
        self.0 & (role.bit() | Role::Admin.bit()) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::EVERY.into_iter().filter(move |role| self.0 & role.bit() != 0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<T: IntoIterator<Item = Role>>(roles: T) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | role.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_implies_every_role_and_others_only_themselves() {
        for given in Role::EVERY {
            let roles = Roles::from_iter([given]);
            for asked in Role::EVERY {
                assert_eq!(roles.allow(asked), given == asked || given == Role::Admin, "{given:?} {asked:?}");
            }
        }
        assert!(Roles::default().is_empty() && !Roles::default().allow(Role::Embed));
    }
}

//! `shipreid key`: keys of callers.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use shipreid::keys::{NewKey, Role};

use super::{Refusal, output};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Subcommand)]
pub enum Key {
    /// Creates a key: the block for the server's file goes to standard output, the secret, shown only once, to
    /// standard error.
    New(New),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid key new --tenant harbour --role embed --role match >> keys.toml
  shipreid key new --id ops-2026 --role admin --days 90 >> keys.toml 2> ops.key")]
pub struct New {
    /// What the key may do: embed, match, enrol, train or admin. May be repeated.
    #[arg(long = "role", required = true, value_name = "ROLE", value_parser = role)]
    roles: Vec<Role>,
    /// Tenant whose galleries and jobs it may access.
    #[arg(long, default_value = "default", value_name = "NAME")]
    tenant: String,
    /// Its id in the audit log; default: random.
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Days until it expires; default: never.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    days: Option<u16>,
}

impl Key {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self::New(new) = self;
        let not_after = new.days.map(|days| SystemTime::now() + DAY * u32::from(days));
        let key = NewKey { id: new.id, tenant: new.tenant, roles: new.roles, not_after };
        let made = key.make().map_err(Refusal)?;
        output::say(made.block);
        output::remark(made.token);
        Ok(())
    }
}

fn role(text: &str) -> Result<Role, String> {
    let named = Role::EVERY.into_iter().find(|role| role.name() == text);
    named.ok_or_else(|| "expected embed, match, enrol, train or admin".to_owned())
}

//! The tables, and their versions.

use super::failure::failed;
use super::link::Connection;
use super::rows::{execute, query};
use super::settings::Tenancy;
use crate::gallery::store::StoreError;

/// Statements that bring a database from one version to the next. Only ever added to.
const MIGRATIONS: [&str; 2] = [
    "
-- The model that galleries move to, and the server that embeds their chips.
alter table shipreid add column target bytea, add column leader text, add column lead_until timestamptz;
create table galleries (
    id bigint generated always as identity primary key,
    tenant text not null,
    -- Null until an import is complete, and once the gallery is deleted.
    name text collate \"C\",
    about bytea not null,
    commit bigint not null,
    committed_at bigint not null,
    next_row bigint not null,
    bytes bigint not null,
    entries bigint not null,
    -- Removed rows of older commits are no longer known.
    removed_from bigint not null default 0,
    -- When nobody wants what has no name any more.
    expires_at timestamptz,
    unique (tenant, name)
);
create table entries (
    gallery bigint not null,
    \"row\" bigint not null,
    changed bigint not null,
    entry_id text not null,
    vessel_id text,
    modality text not null,
    sensor text not null,
    scene_id text not null,
    observed_at timestamptz,
    latitude_deg double precision,
    longitude_deg double precision,
    labels jsonb not null,
    enrolled_at timestamptz not null,
    record bytea not null,
    primary key (gallery, \"row\"),
    unique (gallery, entry_id)
);
create index entries_changed on entries (gallery, changed);
create index entries_vessel on entries (gallery, vessel_id);
create table vectors (
    gallery bigint not null,
    generation bigint not null,
    \"row\" bigint not null,
    changed bigint not null,
    vector bytea not null,
    primary key (gallery, generation, \"row\")
);
create index vectors_changed on vectors (gallery, generation, changed);
alter table vectors alter column vector set storage external;
create table chips (
    gallery bigint not null,
    \"row\" bigint not null,
    chip bytea not null,
    primary key (gallery, \"row\")
);
alter table chips alter column chip set storage external;
create table removed (
    gallery bigint not null,
    changed bigint not null,
    \"row\" bigint not null,
    primary key (gallery, changed, \"row\")
);
",
    "
-- Programs that know an older version than this must not use the tables. How the servers tell tenants apart.
alter table shipreid add column usable_from int not null default 1, add column tenancy text;
",
];

/// The version that this program knows.
const KNOWN: i32 = MIGRATIONS.len() as i32;

/// Any number that nothing else in the database locks.
const MIGRATION_LOCK: i64 = 0x5348_4950_5245_4944;

/// Makes the tables if need be, one server at a time, and returns what tells this database from every other.
///
/// # Errors
/// A newer program made them, servers with other tenants use them, or they cannot be made.
pub async fn migrate(connection: Connection, tenancy: Tenancy) -> Result<String, StoreError> {
    let migrated = try_migrate(&connection, tenancy).await;
    if migrated.is_err() {
        // What is left of the transaction goes with the connection.
        drop(Connection::take(connection));
    }
    migrated
}

async fn try_migrate(connection: &Connection, tenancy: Tenancy) -> Result<String, StoreError> {
    let begin = format!(
        "begin; set local client_min_messages = error; select pg_advisory_xact_lock({MIGRATION_LOCK});
        create table if not exists shipreid (version int not null, cluster text not null);
        insert into shipreid select 0, gen_random_uuid() where not exists (select from shipreid)"
    );
    execute_all(connection, &begin).await?;
    let rows = query!(connection, "select version, cluster from shipreid")?;
    let (version, cluster) = (rows[0].get::<_, i32>(0), rows[0].get::<_, String>(1));
    for statements in MIGRATIONS.iter().skip(version.max(0) as usize) {
        execute_all(connection, statements).await?;
    }
    let rows = query!(connection, "select usable_from, tenancy from shipreid")?;
    check_usable(rows[0].get(0))?;
    tenancy.check(rows[0].get(1))?;
    let version = version.max(KNOWN);
    let done = "update shipreid set version = $1, tenancy = $2";
    execute!(connection, done, version => INT4, tenancy.name() => TEXT)?;
    execute_all(connection, "commit").await?;
    Ok(cluster)
}

async fn execute_all(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    connection.batch_execute(sql).await.map_err(|cause| failed(&cause))
}

/// # Errors
/// The tables must not be used by this program.
pub fn check_usable(usable_from: i32) -> Result<(), StoreError> {
    if usable_from <= KNOWN {
        return Ok(());
    }
    Err(StoreError::Unreachable(format!(
        "a newer release has changed its tables to version {usable_from}, this one knows up to version {KNOWN}: install that release here"
    )))
}

impl Tenancy {
    fn name(self) -> &'static str {
        match self {
            Self::OneTenant => "one",
            Self::ByKeys => "keys",
        }
    }

    fn check(self, found: Option<&str>) -> Result<(), StoreError> {
        let Some(found) = found.filter(|found| *found != self.name()) else { return Ok(()) };
        let (theirs, own) = match self {
            Self::OneTenant => ("tell tenants apart by keys", "has no auth.keys_file"),
            Self::ByKeys => ("have no keys and one tenant", "has auth.keys_file"),
        };
        Err(StoreError::Unreachable(format!(
            "its servers {theirs} (tenancy \"{found}\"), this one {own}: set it as they do, or give this server a schema of its own"
        )))
    }
}

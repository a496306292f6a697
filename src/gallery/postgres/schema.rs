//! The tables, and their versions.

use super::link::{Connection, failed};
use crate::gallery::store::StoreError;

/// Statements that bring a database from one version to the next. Only ever added to.
const MIGRATIONS: [&str; 1] = ["
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
"];

/// Any number that nothing else in the database locks.
const MIGRATION_LOCK: i64 = 0x5348_4950_5245_4944;

/// Makes the tables if need be, one server at a time, and returns what tells this database from every other.
///
/// # Errors
/// A newer program made them, or they cannot be made.
pub async fn migrate(connection: Connection) -> Result<String, StoreError> {
    let begin = format!(
        "begin; set local client_min_messages = error; select pg_advisory_xact_lock({MIGRATION_LOCK});
        create table if not exists shipreid (version int not null, cluster text not null);
        insert into shipreid select 0, gen_random_uuid() where not exists (select from shipreid)"
    );
    let migrated = async {
        connection.batch_execute(&begin).await.map_err(|cause| failed(&cause))?;
        let row = connection.query_one("select version, cluster from shipreid", &[]).await;
        let row = row.map_err(|cause| failed(&cause))?;
        let (version, cluster) = (row.get::<_, i32>(0), row.get::<_, String>(1));
        let supported = MIGRATIONS.len() as i32;
        if version > supported {
            return Err(StoreError::Unreachable(format!(
                "its tables have version {version}, this program knows up to version {supported}"
            )));
        }
        for statements in &MIGRATIONS[version.max(0) as usize..] {
            connection.batch_execute(statements).await.map_err(|cause| failed(&cause))?;
        }
        let done = format!("update shipreid set version = {supported}; commit");
        connection.batch_execute(&done).await.map_err(|cause| failed(&cause))?;
        Ok(cluster)
    };
    let migrated = migrated.await;
    if migrated.is_err() {
        // What is left of the transaction goes with the connection.
        drop(Connection::take(connection));
    }
    migrated
}

//! What the database takes of jobs, as triggers note it that the servers know nothing of.

use super::super::database::Database;

/// Of one job, notes are in the order of its commits: whoever writes of it has locked its row, or keeps others from it.
const TRIGGERS: &str = "
create table notes (
    number bigint generated always as identity primary key,
    job bigint not null,
    what text not null,
    -- An event's number, or the steps that a checkpoint has.
    subject bigint not null,
    term bigint not null,
    holder text,
    writer text not null default current_setting('application_name')
);
create function note_job() returns trigger language plpgsql as $$ begin
    insert into notes (job, what, subject, term, holder) values (new.id, case
        when new.holder is null then 'state'
        when new.term <> old.term then 'claim'
        when new.held_until <> old.held_until then 'renewal'
        else 'state' end, 0, new.term, new.holder);
    return null;
end $$;
create function note_event() returns trigger language plpgsql as $$ begin
    insert into notes (job, what, subject, term, holder)
        select new.job, 'event', new.number, term, holder from jobs where id = new.job;
    return null;
end $$;
create function note_folder() returns trigger language plpgsql as $$ begin
    insert into notes (job, what, subject, term, holder)
        select new.job, 'checkpoint', substring(new.name from '[0-9]+$')::bigint, new.term, holder
        from jobs where id = new.job;
    return null;
end $$;
create trigger note_job after update on jobs for each row execute function note_job();
create trigger note_event after insert on job_events for each row execute function note_event();
create trigger note_folder after insert or update on job_folders for each row execute function note_folder()";

/// Something that was committed of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub what: What,
    pub term: i64,
    /// The server that holds the job after it.
    pub holder: Option<String>,
    /// The name of the server that wrote it.
    pub writer: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    State,
    Claim,
    Renewal,
    Event(u64),
    /// A checkpoint after so many steps.
    Checkpoint(u64),
}

/// Notes what is committed from now on.
pub async fn open(database: &Database) {
    database.connect().await.batch_execute(TRIGGERS).await.unwrap();
}

/// What was committed of a job, in this order.
pub async fn writes(database: &Database, job: u64) -> Vec<Write> {
    let sql = "select what, subject, term, holder, writer from notes where job = $1 order by number";
    let rows = database.connect().await.query(sql, &[&(job as i64)]).await.unwrap();
    let write = |row: &tokio_postgres::Row| {
        let subject = row.get::<_, i64>(1) as u64;
        let what = match row.get(0) {
            "state" => What::State,
            "claim" => What::Claim,
            "renewal" => What::Renewal,
            "event" => What::Event(subject),
            "checkpoint" => What::Checkpoint(subject),
            other => panic!("{other}"),
        };
        Write { what, term: row.get(2), holder: row.get(3), writer: row.get(4) }
    };
    rows.iter().map(write).collect()
}

/// How many jobs there are.
pub async fn jobs(database: &Database) -> u64 {
    let rows = database.connect().await.query_one("select count(*) from jobs", &[]).await.unwrap();
    rows.get::<_, i64>(0) as u64
}

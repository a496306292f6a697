#!/bin/sh
# The roles of docs/scaling.md, in a new database of the image `postgres`, with passwords from its environment.
set -eu
psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set ON_ERROR_STOP=1 \
    --set password="$SHIPREID_DB_PASSWORD" --set reader_password="$SHIPREID_READER_PASSWORD" <<'SQL'
create role shipreid login password :'password';
create schema shipreid authorization shipreid;
alter role shipreid set search_path = shipreid;

create role shipreid_reader login password :'reader_password';
alter role shipreid_reader set search_path = shipreid;
alter role shipreid_reader set default_transaction_read_only = on;
grant usage on schema shipreid to shipreid_reader;
alter default privileges for role shipreid in schema shipreid grant select on tables to shipreid_reader;
SQL

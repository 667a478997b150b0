//! The tables, and how a store of an older version is brought up to date.
//!
//! `mainspring_sessions` is small and hot: an append changes its row in place as long as the turn
//! goes on, since no index names what changes then. `mainspring_log` has one row for each append.
//! A fork's first events lie with its parent (`parent_key`, `parent_seq`). Beats have a table of
//! their own, so that they do not queue behind the appends that hold their node's row.
//!
//! Invariant: steps only add. So a process of an older version goes on beside one that has brought
//! the tables up to date, until `reads_from` says that it cannot.

use std::collections::HashMap;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Cause, Link, Trouble};
use crate::error::JournalError;

/// Version of the tables that this version makes and needs.
const VERSION: i64 = STEPS.len() as i64;

/// The oldest version of this program that can still use them.
const READS_FROM: i64 = 1;

/// Held while tables change. The number says nothing but this.
const LOCK: i64 = 0x6d61_696e_7370_7267;

/// Step N makes version N of the tables from version N - 1.
const STEPS: [&str; 2] = [
    "
CREATE TABLE mainspring_meta (
    name  text PRIMARY KEY,
    value text NOT NULL
);
CREATE TABLE mainspring_nodes (
    id    uuid PRIMARY KEY,
    name  text NOT NULL,
    live  boolean NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
CREATE TABLE mainspring_beats (
    node  uuid PRIMARY KEY,
    until timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE mainspring_sessions (
    key        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    epoch      bigint NOT NULL,
    next_seq   bigint NOT NULL,
    parent_key bigint,
    parent_seq bigint,
    created_us bigint NOT NULL,
    updated_us bigint NOT NULL,
    owner      uuid,
    status     smallint NOT NULL,
    id         text COLLATE \"C\" NOT NULL UNIQUE,
    agent      text COLLATE \"C\" NOT NULL,
    origin     text
) WITH (fillfactor = 60);
CREATE INDEX mainspring_sessions_open ON mainspring_sessions (key) WHERE status = 0;
CREATE INDEX mainspring_sessions_free
    ON mainspring_sessions (key) WHERE status = 0 AND owner IS NULL;
CREATE INDEX mainspring_sessions_waiting ON mainspring_sessions (key) WHERE status = 4;
CREATE INDEX mainspring_sessions_owner ON mainspring_sessions (owner) WHERE owner IS NOT NULL;
CREATE INDEX mainspring_sessions_parent
    ON mainspring_sessions (parent_key) WHERE parent_key IS NOT NULL;
CREATE TABLE mainspring_log (
    session_key bigint NOT NULL,
    first_seq   bigint NOT NULL,
    at_us       bigint NOT NULL,
    epoch       bigint NOT NULL,
    count       integer NOT NULL,
    schema      integer NOT NULL,
    writer      integer NOT NULL,
    body        bytea NOT NULL,
    PRIMARY KEY (session_key, first_seq)
);
CREATE TABLE mainspring_snapshots (
    session_key bigint NOT NULL,
    seq         bigint NOT NULL,
    body        bytea NOT NULL,
    PRIMARY KEY (session_key, seq)
);
CREATE TABLE mainspring_blobs (
    key  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hash text COLLATE \"C\" NOT NULL UNIQUE,
    body bytea NOT NULL
);
CREATE TABLE mainspring_blob_refs (
    session_key bigint NOT NULL,
    blob_key    bigint NOT NULL,
    PRIMARY KEY (session_key, blob_key)
);
CREATE INDEX mainspring_blob_refs_blob ON mainspring_blob_refs (blob_key);
DO $$ BEGIN
    ALTER TABLE mainspring_log ALTER COLUMN body SET COMPRESSION lz4;
    ALTER TABLE mainspring_snapshots ALTER COLUMN body SET COMPRESSION lz4;
    ALTER TABLE mainspring_blobs ALTER COLUMN body SET COMPRESSION lz4;
EXCEPTION WHEN OTHERS THEN
    NULL;  -- A server before version 14, or built without lz4: bodies are compressed as usual.
END $$;
",
    "
CREATE TABLE mainspring_budgets (
    account   text COLLATE \"C\" PRIMARY KEY,
    usd_nanos bigint NOT NULL,
    tokens    bigint NOT NULL,
    calls     bigint NOT NULL
) WITH (fillfactor = 50);
",
];

/// Every table, for those who go through them all.
pub(super) const TABLES: [&str; 9] = [
    "mainspring_meta",
    "mainspring_nodes",
    "mainspring_beats",
    "mainspring_sessions",
    "mainspring_log",
    "mainspring_snapshots",
    "mainspring_blobs",
    "mainspring_blob_refs",
    "mainspring_budgets",
];

/// What a store says of itself.
pub(super) struct Meta {
    version: i64,
    reads_from: i64,
    /// Made with the tables.
    id: String,
}

impl Meta {
    /// Reads it; `None` if there are no tables.
    fn read(link: &mut Link) -> Result<Option<Self>, Trouble> {
        let rows = match link.query("SELECT name, value FROM mainspring_meta", &[]) {
            Err(trouble) if trouble.cause().code() == Some(&SqlState::UNDEFINED_TABLE) => {
                return Ok(None);
            }
            rows => rows?,
        };
        let mut values: HashMap<String, String> = HashMap::new();
        for row in rows {
            values.insert(super::get(&row, 0)?, super::get(&row, 1)?);
        }
        let number = |name| {
            let value = values.get(name).and_then(|value| value.parse::<i64>().ok());
            value.ok_or_else(|| strange(name))
        };
        Ok(Some(Self {
            version: number("version")?,
            reads_from: number("reads_from")?,
            id: values.get("id").cloned().ok_or_else(|| strange("id"))?,
        }))
    }
}

fn strange(name: &str) -> Trouble {
    Trouble::Refused(Cause::Strange(format!("mainspring_meta has no good value for {name:?}")))
}

/// Checks the tables for one who only reads, and names the store.
pub(super) fn check(link: &mut Link, place: &str) -> Result<String, JournalError> {
    let failed = |trouble: Trouble| trouble.into_error(place, "opened");
    let meta = Meta::read(link).map_err(failed)?;
    let meta = meta.ok_or_else(|| JournalError::postgres_missing(place))?;
    refuse_newer(&meta, place)?;
    identity(link, &meta).map_err(failed)
}

/// Makes the tables, or brings them up to date, if that is needed, and names the store.
pub(super) fn prepare(link: &mut Link, place: &str) -> Result<String, JournalError> {
    let failed = |trouble: Trouble| trouble.into_error(place, "opened");
    let mut meta = Meta::read(link).map_err(failed)?;
    if meta.as_ref().is_none_or(|meta| meta.version < VERSION) {
        link.transact(migrate).map_err(failed)?;
        meta = Meta::read(link).map_err(failed)?;
    }
    let meta = meta.ok_or_else(|| JournalError::postgres_missing(place))?;
    refuse_newer(&meta, place)?;
    identity(link, &meta).map_err(failed)
}

fn refuse_newer(meta: &Meta, place: &str) -> Result<(), JournalError> {
    match meta.reads_from > VERSION {
        true => Err(JournalError::postgres_newer(place, meta.version, VERSION)),
        false => Ok(()),
    }
}

fn migrate(link: &mut Link) -> Result<(), Trouble> {
    link.query("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)])?;
    // Whoever came first has done it.
    let found = Tables::find(link)?;
    let meta = if found { Meta::read(link)? } else { None };
    let done = meta.as_ref().map_or(0, |meta| meta.version);
    if done >= VERSION {
        return Ok(());
    }
    for step in STEPS.iter().skip(usize::try_from(done).unwrap_or(usize::MAX)) {
        link.batch(step)?;
    }
    let id = meta.map_or_else(|| Uuid::now_v7().to_string(), |meta| meta.id);
    let values =
        [("id", id), ("version", VERSION.to_string()), ("reads_from", READS_FROM.to_string())];
    for (name, value) in values {
        link.execute(
            "INSERT INTO mainspring_meta (name, value) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            &[(&name, Type::TEXT), (&value, Type::TEXT)],
        )?;
    }
    Ok(())
}

struct Tables;

impl Tables {
    /// Whether there are tables. Asked without an error, which would end the transaction.
    fn find(link: &mut Link) -> Result<bool, Trouble> {
        let rows = link.query("SELECT to_regclass('mainspring_meta') IS NOT NULL", &[])?;
        super::get(super::first(&rows)?, 0)
    }
}

/// Names the store: the cluster (if this user may know it), the database and what was drawn when
/// the tables were made. A copy into another cluster or database has another name.
fn identity(link: &mut Link, meta: &Meta) -> Result<String, Trouble> {
    let rows = link.query(
        "SELECT (SELECT oid::int8 FROM pg_database WHERE datname = current_database()), \
         has_function_privilege('pg_control_system()', 'execute')",
        &[],
    )?;
    let row = super::first(&rows)?;
    let (database, may): (i64, bool) = (super::get(row, 0)?, super::get(row, 1)?);
    let cluster = match may {
        true => {
            let rows = link.query("SELECT system_identifier FROM pg_control_system()", &[])?;
            super::get::<i64>(super::first(&rows)?, 0)?.to_string()
        }
        false => "unknown".to_owned(),
    };
    Ok(format!("postgresql-{cluster}-{database}-{}", meta.id))
}

/// Bytes of all tables with their long values and indexes, without the maps of free room that the
/// server keeps beside them.
pub(super) fn bytes(link: &mut Link) -> Result<u64, Trouble> {
    let tables: &[&str] = &TABLES;
    let rows = link.query(
        "WITH heaps AS (SELECT c.oid FROM unnest($1) AS t(name) JOIN pg_class c \
         ON c.oid = to_regclass(t.name) UNION ALL SELECT c.reltoastrelid FROM unnest($1) AS t(name) \
         JOIN pg_class c ON c.oid = to_regclass(t.name) WHERE c.reltoastrelid <> 0) \
         SELECT sum(pg_relation_size(oid))::int8 FROM (SELECT oid FROM heaps UNION ALL \
         SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM heaps)) AS everything",
        &[(&tables, Type::TEXT_ARRAY)],
    )?;
    super::reader::uint(super::first(&rows)?, 0)
}

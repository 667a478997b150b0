//! The tables of the file, and what is checked before they are used.
//!
//! `log` has one row for each append and no index but its row id, so that writing costs the same
//! at any size: a row names the session's row before it, and `sessions` the last one, so a
//! session is read backwards. `sessions` is small and hot; only the few sessions that
//! are open, wait or are forks are in its other indexes. Source of the layout: ageing test with 3 million events, where an index on (session,
//! position) falls to a tenth of the speed.
//!
//! A session that was pruned while forks share its events stays as a row whose id begins with `~`,
//! which no session's id can.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use crate::error::JournalError;

/// Version of the tables. A file of an older one is brought up to date when it is opened for
/// writing, and read as it is otherwise; one of a newer one is refused.
pub(super) const STORE_VERSION: i64 = 3;

/// Older ones can damage a write-ahead log that one connection folds in while another writes.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

pub(super) const PAGE_BYTES: u64 = 16_384;

/// The tables of version 1. They never change again: what later versions add is a step below, so
/// that a file that was brought up to date and a new one are the same.
const TABLES_1: &str = "
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE sessions (
    key        INTEGER PRIMARY KEY,
    epoch      INTEGER NOT NULL,
    next_seq   INTEGER NOT NULL,
    last_row   INTEGER NOT NULL,
    status     INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    id         TEXT NOT NULL UNIQUE,
    agent      TEXT NOT NULL,
    origin     TEXT
);
CREATE INDEX sessions_open ON sessions (status) WHERE status = 0;
CREATE TABLE log (
    id          INTEGER PRIMARY KEY,
    session_key INTEGER NOT NULL,
    prev        INTEGER NOT NULL,
    first_seq   INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    at_us       INTEGER NOT NULL,
    body        BLOB NOT NULL
);
CREATE TABLE blobs (
    key  INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL
);
INSERT INTO meta (name, value) VALUES ('mainspring_journal_version', 1);
";

/// The steps from each version to the next. New columns have a default that stored rows take
/// without being written, so that a step costs the same at any size; only the two new indexes of
/// `sessions` read that table once.
///
/// - A fork names its parent, how many events they share, and the parent's row that holds the last
///   of them, so that the parent's later events cost it nothing.
/// - `log.schema` is the version of the event format.
/// - `blob_refs` says which session has named which blob. What was stored before is not known, so
///   the blobs of that time are pinned.
/// - A snapshot names the row of its append: a reading that ends early begins there. Its body lies
///   behind the columns that are searched, in a table whose index holds no body.
/// - The store's number is a blob, because the column would take some texts for numbers.
/// - `budgets` has the sum of what was charged to each account.
const STEPS: [&str; 2] = [
    "
ALTER TABLE sessions ADD COLUMN parent_key INTEGER;
ALTER TABLE sessions ADD COLUMN parent_seq INTEGER;
ALTER TABLE sessions ADD COLUMN parent_row INTEGER;
CREATE INDEX sessions_waiting ON sessions (status) WHERE status = 4;
CREATE INDEX sessions_forks ON sessions (parent_key, parent_seq) WHERE parent_key IS NOT NULL;
ALTER TABLE log ADD COLUMN schema INTEGER NOT NULL DEFAULT 1;
ALTER TABLE blobs ADD COLUMN pinned INTEGER NOT NULL DEFAULT 1;
CREATE TABLE blob_refs (
    session_key INTEGER NOT NULL,
    blob_key    INTEGER NOT NULL,
    PRIMARY KEY (session_key, blob_key)
) WITHOUT ROWID;
CREATE INDEX blob_refs_blob ON blob_refs (blob_key);
CREATE TABLE snapshots (
    key         INTEGER PRIMARY KEY,
    session_key INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    log_row     INTEGER NOT NULL,
    body        BLOB NOT NULL
);
CREATE UNIQUE INDEX snapshots_place ON snapshots (session_key, seq);
INSERT INTO meta (name, value) VALUES ('store_id', randomblob(16));
UPDATE meta SET value = 2 WHERE name = 'mainspring_journal_version';
",
    "
CREATE TABLE budgets (
    account   TEXT PRIMARY KEY,
    usd_nanos INTEGER NOT NULL,
    tokens    INTEGER NOT NULL,
    calls     INTEGER NOT NULL
) WITHOUT ROWID;
UPDATE meta SET value = 3 WHERE name = 'mainspring_journal_version';
",
];

/// What makes a file of version 1 look like one of this version to a connection that only reads.
const VIEWS_OF_1: &str = "
CREATE TEMP VIEW sessions AS
    SELECT key, epoch, next_seq, last_row, status, created_us, updated_us, id, agent, origin,
           NULL AS parent_key, NULL AS parent_seq, NULL AS parent_row
    FROM main.sessions;
CREATE TEMP VIEW log AS
    SELECT id, session_key, prev, first_seq, count, epoch, at_us, body, 1 AS schema FROM main.log;
CREATE TEMP VIEW blobs AS SELECT key, hash, body, 1 AS pinned FROM main.blobs;
CREATE TEMP VIEW blob_refs AS SELECT 0 AS session_key, 0 AS blob_key WHERE 0;
CREATE TEMP VIEW snapshots AS
    SELECT 0 AS session_key, 0 AS seq, 0 AS log_row, x'' AS body WHERE 0;
";

/// What a file of version 1 or 2 lacks, for a connection that only reads.
const VIEWS_OF_2: &str = "
CREATE TEMP VIEW budgets AS
    SELECT '' AS account, 0 AS usd_nanos, 0 AS tokens, 0 AS calls WHERE 0;
";

const DROP_VIEWS: &str = "
DROP VIEW IF EXISTS temp.sessions;
DROP VIEW IF EXISTS temp.log;
DROP VIEW IF EXISTS temp.blobs;
DROP VIEW IF EXISTS temp.blob_refs;
DROP VIEW IF EXISTS temp.snapshots;
DROP VIEW IF EXISTS temp.budgets;
";

/// Refuses a SQLite that is too old to be trusted with a journal.
pub(super) fn check_sqlite() -> Result<(), JournalError> {
    let seen = rusqlite::version_number();
    if seen < SQLITE_VERSION_MIN {
        return Err(JournalError::old_sqlite(seen, SQLITE_VERSION_MIN));
    }
    Ok(())
}

/// Makes the tables in an empty file. The page size only takes effect before the first write.
pub(super) fn create(path: &Path, connection: &Connection) -> Result<(), JournalError> {
    let made = connection
        .pragma_update(None, "page_size", PAGE_BYTES as i64)
        .and_then(|()| set_wal(connection))
        .and_then(|()| connection.execute_batch("BEGIN IMMEDIATE"))
        .and_then(|()| connection.execute_batch(TABLES_1))
        .and_then(|()| STEPS.iter().try_for_each(|step| connection.execute_batch(step)))
        .and_then(|()| connection.execute_batch("COMMIT"));
    made.map_err(|error| JournalError::sqlite(path, "made", error))
}

/// Brings a file of an older version up to date, in one transaction.
pub(super) fn update(path: &Path, connection: &Connection, seen: i64) -> Result<(), JournalError> {
    let done = usize::try_from(seen - 1).unwrap_or(0).min(STEPS.len());
    if done == STEPS.len() {
        return Ok(());
    }
    connection
        .execute_batch("BEGIN IMMEDIATE")
        .and_then(|()| STEPS[done..].iter().try_for_each(|step| connection.execute_batch(step)))
        .and_then(|()| connection.execute_batch("COMMIT"))
        .map_err(|error| JournalError::sqlite(path, "brought up to date", error))
}

/// Makes an older file look like one of this version, for a connection that only reads.
pub(super) fn add_views(connection: &Connection, seen: i64) -> rusqlite::Result<()> {
    if seen < 2 {
        connection.execute_batch(VIEWS_OF_1)?;
    }
    if seen < 3 {
        connection.execute_batch(VIEWS_OF_2)?;
    }
    Ok(())
}

/// Makes what [`add_views`] made fit the version to which another process has brought the file.
pub(super) fn renew_views(connection: &Connection, seen: i64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "query_only", false)?;
    connection.execute_batch(DROP_VIEWS)?;
    add_views(connection, seen)?;
    connection.pragma_update(None, "query_only", true)
}

/// The version of the tables; `None` if the file has none.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT value FROM main.meta WHERE name = 'mainspring_journal_version'")?
        .query_row([], |row| row.get(0))
        .optional()
}

/// The random number of the store; `None` in a file of version 1.
pub(super) fn store_id(connection: &Connection) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .query_row("SELECT value FROM main.meta WHERE name = 'store_id'", [], |row| row.get(0))
        .optional()
}

/// Switches to the write-ahead log, which a file keeps from then on.
pub(super) fn set_wal(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))
}

/// Whether the file has no tables at all.
pub(super) fn is_empty(path: &Path, connection: &Connection) -> Result<bool, JournalError> {
    connection
        .query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
        .map_err(|error| JournalError::sqlite(path, "opened", error))
}

/// Refuses a database that is no journal, or one of a newer version. Changes nothing. Returns the
/// version of the tables.
pub(super) fn check(path: &Path, connection: &Connection) -> Result<i64, JournalError> {
    let failed = |error| JournalError::sqlite(path, "opened", error);
    let ours: bool = connection
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta')",
            [],
            |row| row.get(0),
        )
        .map_err(failed)?;
    if !ours {
        return Err(JournalError::not_a_journal(path));
    }
    match version(connection).map_err(failed)? {
        None => Err(JournalError::not_a_journal(path)),
        Some(seen) if seen > STORE_VERSION => {
            Err(JournalError::newer_store(path, seen, STORE_VERSION))
        }
        Some(seen) => Ok(seen),
    }
}

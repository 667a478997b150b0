//! The tables of the file, and what is checked before they are used.
//!
//! `log` has one row for each append and no index but its row id, so that writing costs the same
//! at any size: a row names the session's row before it, and `sessions` the last one, so a
//! session is read backwards. `sessions` is small and hot; only open sessions are in its second
//! index. Source of the layout: ageing test with 3 million events, where an index on (session,
//! position) falls to a tenth of the speed.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use crate::error::JournalError;

/// Version of the tables. A file of a newer one is refused.
pub(super) const STORE_VERSION: i64 = 1;

/// Older ones can damage a write-ahead log that one connection folds in while another writes.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

pub(super) const PAGE_BYTES: u64 = 16_384;

const TABLES: &str = "
BEGIN IMMEDIATE;
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
COMMIT;
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
        .and_then(|()| connection.execute_batch(TABLES));
    made.map_err(|error| JournalError::sqlite(path, "made", error))
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

/// Refuses a database that is no journal, or one of a newer version. Changes nothing.
pub(super) fn check(path: &Path, connection: &Connection) -> Result<(), JournalError> {
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
    let version: Option<i64> = connection
        .query_row("SELECT value FROM meta WHERE name = 'mainspring_journal_version'", [], |row| {
            row.get(0)
        })
        .optional()
        .map_err(failed)?;
    match version {
        None => Err(JournalError::not_a_journal(path)),
        Some(seen) if seen > STORE_VERSION => {
            Err(JournalError::newer_store(path, seen, STORE_VERSION))
        }
        Some(_) => Ok(()),
    }
}

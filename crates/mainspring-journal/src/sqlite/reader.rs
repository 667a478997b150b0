//! Reads sessions and blobs on a connection of its own, which can write nothing and so never
//! disturbs the writer. Each read sees one state of the file and ends at once, because a reader
//! that stays would keep the write-ahead log from being folded in.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mainspring_session::{BlobHash, Epoch, Origin, Record, Seq, SessionId};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::uint;
use crate::block::{self, Block};
use crate::error::JournalError;
use crate::limits::JournalLimits;
use crate::{SessionHead, SessionQuery, SessionStatus};

/// The columns of a head, in the order of [`head`].
macro_rules! heads {
    ($rest:literal) => {
        concat!(
            "SELECT id, epoch, next_seq, status, agent, origin, created_us, updated_us ",
            "FROM sessions ",
            $rest
        )
    };
}

// The partial index only serves a query that names its number.
const OPEN_SESSIONS: &str = heads!("WHERE status = 0 ORDER BY key");
const OPEN_PAGE: &str = heads!("WHERE status = 0 AND key < ?1 ORDER BY key DESC LIMIT ?2");
const ANY_PAGE: &str = heads!("WHERE key < ?1 ORDER BY key DESC LIMIT ?2");
const STATUS_PAGE: &str = heads!("WHERE status = ?3 AND key < ?1 ORDER BY key DESC LIMIT ?2");
const ONE_HEAD: &str = heads!("WHERE id = ?1");

/// See the module.
pub(super) struct Reader {
    path: PathBuf,
    /// `None` once closed.
    connection: Mutex<Option<Connection>>,
}

impl Reader {
    pub(super) fn new(path: PathBuf, connection: Connection) -> Self {
        Self { path, connection: Mutex::new(Some(connection)) }
    }

    pub(super) fn close(&self) {
        drop(self.lock().take());
    }

    pub(super) fn load(&self, session: &SessionId, from: Seq) -> Result<Vec<Record>, JournalError> {
        let chain = self
            .read(|tx| match last_row(tx, session)? {
                Some((key, last_row)) => Chain::read(tx, key, last_row, from).map(Some),
                None => Ok(None),
            })?
            .ok_or_else(|| JournalError::not_found(session))?;
        if !chain.complete {
            let next = chain.blocks.first().map_or(from.0, |block| block.first_seq);
            return Err(JournalError::corrupt_session(
                session,
                Seq(next),
                "the events before are missing",
            ));
        }
        block::records(session, &chain.blocks, from)
    }

    pub(super) fn head(&self, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        self.read(|tx| tx.prepare_cached(ONE_HEAD)?.query_row([session.as_str()], head).optional())
    }

    pub(super) fn sessions(
        &self,
        query: &SessionQuery,
        limits: &JournalLimits,
    ) -> Result<Vec<SessionHead>, JournalError> {
        let limit = query.limit.min(limits.sessions_page_max);
        let page = self.read(|tx| {
            let before = match &query.before {
                None => Some(i64::MAX),
                Some(session) => tx
                    .prepare_cached("SELECT key FROM sessions WHERE id = ?1")?
                    .query_row([session.as_str()], |row| row.get(0))
                    .optional()?,
            };
            let Some(before) = before else { return Ok(None) };
            let heads = match query.status {
                None => list(tx, ANY_PAGE, params![before, limit]),
                Some(SessionStatus::Open) => list(tx, OPEN_PAGE, params![before, limit]),
                Some(status) => {
                    list(tx, STATUS_PAGE, params![before, limit, status_number(status)])
                }
            };
            heads.map(Some)
        })?;
        match (page, &query.before) {
            (None, Some(before)) => Err(JournalError::not_found(before)),
            (page, _) => Ok(page.unwrap_or_default()),
        }
    }

    pub(super) fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError> {
        self.read(|tx| list(tx, OPEN_SESSIONS, []))
    }

    pub(super) fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError> {
        self.read(|tx| {
            tx.prepare_cached("SELECT body FROM blobs WHERE hash = ?1")?
                .query_row([hash.as_str()], |row| row.get(0))
                .optional()
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one state of the file.
    fn read<T>(
        &self,
        reading: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let mut connection = self.lock();
        let Some(connection) = connection.as_mut() else {
            return Err(JournalError::closed(&self.path.display().to_string()));
        };
        let failed = |error| JournalError::sqlite(&self.path, "read", error);
        let tx = connection.transaction().map_err(failed)?;
        reading(&tx).map_err(failed)
    }
}

fn last_row(tx: &Transaction<'_>, session: &SessionId) -> rusqlite::Result<Option<(i64, i64)>> {
    tx.prepare_cached("SELECT key, last_row FROM sessions WHERE id = ?1")?
        .query_row([session.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// A session's blocks from a position on, oldest first.
struct Chain {
    blocks: Vec<Block>,
    /// Whether the links led back as far as they had to.
    complete: bool,
}

impl Chain {
    /// Follows the links from a session's last block back to the one that holds `from`.
    fn read(tx: &Transaction<'_>, key: i64, last_row: i64, from: Seq) -> rusqlite::Result<Self> {
        let mut statement = tx.prepare_cached(
            "SELECT prev, first_seq, count, epoch, at_us, body FROM log \
             WHERE id = ?1 AND session_key = ?2",
        )?;
        let mut chain = Self { blocks: Vec::new(), complete: false };
        let mut row_id = last_row;
        while let Some((prev, block)) = statement.query_row([row_id, key], link).optional()? {
            chain.complete = block.first_seq <= from.0;
            if block.first_seq + u64::from(block.count) > from.0 {
                chain.blocks.push(block);
            }
            // Links only lead back; one that does not would never end.
            if chain.complete || prev >= row_id {
                break;
            }
            row_id = prev;
        }
        chain.blocks.reverse();
        Ok(chain)
    }
}

/// Reads a row of the log: the row before it in its session, and the block.
fn link(row: &Row<'_>) -> rusqlite::Result<(i64, Block)> {
    let block = Block {
        first_seq: uint(row, 1)?,
        count: row.get(2)?,
        epoch: Epoch(uint(row, 3)?),
        at_us: row.get(4)?,
        body: row.get(5)?,
    };
    Ok((row.get(0)?, block))
}

fn list(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<Vec<SessionHead>> {
    tx.prepare_cached(sql)?.query_map(params, head)?.collect()
}

fn head(row: &Row<'_>) -> rusqlite::Result<SessionHead> {
    let id: String = row.get(0)?;
    Ok(SessionHead {
        id: SessionId::new(&id).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
        })?,
        epoch: Epoch(uint(row, 1)?),
        next_seq: Seq(uint(row, 2)?),
        status: status(row, 3)?,
        agent: row.get(4)?,
        origin: row.get::<_, Option<String>>(5)?.map(Origin),
        created_us: row.get(6)?,
        updated_us: row.get(7)?,
    })
}

/// The stored number of a status. The index of open sessions names 0.
pub(super) const fn status_number(status: SessionStatus) -> i64 {
    match status {
        SessionStatus::Open => 0,
        SessionStatus::Finished => 1,
        SessionStatus::Failed => 2,
        SessionStatus::Cancelled => 3,
    }
}

/// Reads a stored status.
pub(super) fn status(row: &Row<'_>, column: usize) -> rusqlite::Result<SessionStatus> {
    match row.get(column)? {
        0 => Ok(SessionStatus::Open),
        1 => Ok(SessionStatus::Finished),
        2 => Ok(SessionStatus::Failed),
        3 => Ok(SessionStatus::Cancelled),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(column, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::schema;

    #[test]
    fn listing_open_sessions_reads_only_their_index() {
        let connection = Connection::open_in_memory().unwrap();
        schema::create("test".as_ref(), &connection).unwrap();
        for sql in [OPEN_SESSIONS, OPEN_PAGE] {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            for param in 1..=plan.parameter_count() {
                plan.raw_bind_parameter(param, 1).unwrap();
            }
            let steps: Vec<String> = plan
                .raw_query()
                .mapped(|row| row.get("detail"))
                .map(|step| step.unwrap())
                .collect();
            assert_eq!(steps.len(), 1, "{steps:?}");
            assert!(steps[0].starts_with("SEARCH sessions USING INDEX sessions_open"), "{steps:?}");
        }
    }
}

//! Reads sessions and blobs on a connection of its own, which can write nothing and so never
//! disturbs the writer. Each read sees one state of the file and ends at once, because a reader
//! that stays would keep the write-ahead log from being folded in.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainspring_session::{Amount, BlobHash, Epoch, Origin, Record, Seq, SessionId};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::chain::{self, Chain, Place};
use super::prune::Pruning;
use super::{int, schema, uint};
use crate::block;
use crate::error::JournalError;
use crate::limits::JournalLimits;
use crate::{PruneReport, SessionHead, SessionQuery, SessionStatus, Snapshot};

/// The columns of a head, in the order of [`head`].
macro_rules! heads {
    ($rest:literal) => {
        concat!(
            "SELECT id, epoch, next_seq, status, agent, origin, created_us, updated_us, ",
            "parent_seq, (SELECT parent.id FROM sessions AS parent ",
            "WHERE parent.key = sessions.parent_key AND parent.id < '~') FROM sessions ",
            $rest
        )
    };
}

// A partial index only serves a query that names its number. An id from `~` on is that of a
// retired session; the plus keeps the index of ids out of it.
const OPEN_SESSIONS: &str = heads!("WHERE status = 0 ORDER BY key");
const OPEN_PAGE: &str = heads!("WHERE status = 0 AND key < ?1 ORDER BY key DESC LIMIT ?2");
const OPEN_KEYS: &str = "SELECT key FROM sessions WHERE status = 0 ORDER BY key";
const WAITING_PAGE: &str = heads!("WHERE status = 4 AND key < ?1 ORDER BY key DESC LIMIT ?2");
const ANY_PAGE: &str = heads!("WHERE key < ?1 AND +id < '~' ORDER BY key DESC LIMIT ?2");
const STATUS_PAGE: &str =
    heads!("WHERE status = ?3 AND key < ?1 AND +id < '~' ORDER BY key DESC LIMIT ?2");
const HEAD_OF_KEY: &str = heads!("WHERE key = ?1");
const ONE_HEAD: &str = heads!("WHERE id = ?1");

/// See the module.
pub(super) struct Reader {
    path: PathBuf,
    /// `None` once closed.
    reading: Mutex<Option<Reading>>,
}

struct Reading {
    connection: Connection,
    /// Version of the tables, as far as is known.
    version: i64,
}

impl Reader {
    /// Reads through a connection to a file of some version.
    pub(super) fn new(path: PathBuf, connection: Connection, version: i64) -> Self {
        Self { path, reading: Mutex::new(Some(Reading { connection, version })) }
    }

    pub(super) fn close(&self) {
        drop(self.lock().take());
    }

    pub(super) fn load_range(
        &self,
        session: &SessionId,
        from: Seq,
        until: Option<Seq>,
    ) -> Result<Vec<Record>, JournalError> {
        let until = until.map_or(u64::MAX, |until| until.0);
        let chain = self
            .read(|tx| match chain::find(tx, session)? {
                Some(place) => Chain::read(tx, place, from.0, until).map(Some),
                None => Ok(None),
            })?
            .ok_or_else(|| JournalError::not_found(session))?;
        block::check_schema(session, chain.schema_max)?;
        if !chain.complete {
            let next = chain.blocks.first().map_or(from.0, |(block, _)| block.first_seq);
            return Err(JournalError::corrupt_session(
                session,
                Seq(next),
                "the events before are missing",
            ));
        }
        block::records(session, chain.blocks.iter().map(|(block, until)| (block, *until)), from)
    }

    pub(super) fn snapshots(
        &self,
        session: &SessionId,
        until: Option<Seq>,
    ) -> Result<Vec<Snapshot>, JournalError> {
        let until = until.map_or(u64::MAX, |until| until.0);
        self.read(|tx| match chain::find(tx, session)? {
            Some(place) => snapshots(tx, place, until).map(Some),
            None => Ok(None),
        })?
        .ok_or_else(|| JournalError::not_found(session))
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
                Some(SessionStatus::Waiting) => list(tx, WAITING_PAGE, params![before, limit]),
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

    /// Takes open sessions of some agents that are not in the set, and puts them in.
    pub(super) fn claim(
        &self,
        owned: &mut HashSet<i64>,
        agents: &[String],
        limit: u32,
    ) -> Result<Vec<SessionHead>, JournalError> {
        let taken = self.read(|tx| {
            let mut taken = Vec::new();
            // The index alone answers this: nothing is read of a session that is owned.
            let mut open = tx.prepare_cached(OPEN_KEYS)?;
            let mut keys = open.query([])?;
            while let Some(row) = keys.next()?
                && taken.len() < limit as usize
            {
                let key: i64 = row.get(0)?;
                if owned.contains(&key) {
                    continue;
                }
                let found = tx.prepare_cached(HEAD_OF_KEY)?.query_row([key], |row| {
                    let agent: String = row.get(4)?;
                    if agents.contains(&agent) { head(row).map(Some) } else { Ok(None) }
                })?;
                taken.extend(found.map(|head| (key, head)));
            }
            Ok(taken)
        })?;
        owned.extend(taken.iter().map(|(key, _)| key));
        Ok(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// The keys of those of some sessions that exist.
    pub(super) fn keys(&self, sessions: &[SessionId]) -> Result<Vec<i64>, JournalError> {
        self.read(|tx| {
            let places = sessions.iter().map(|session| chain::find(tx, session));
            let keys = places.map(|place| place.map(|place| place.map(|place| place.key)));
            keys.filter_map(Result::transpose).collect()
        })
    }

    /// Counts what a pruning would remove.
    pub(super) fn count_prunable(
        &self,
        mut pruning: Pruning,
        limits: &JournalLimits,
    ) -> Result<PruneReport, JournalError> {
        // Many short readings, since a long one would keep the write-ahead log from being folded
        // in.
        while !self.read(|tx| pruning.count(tx, limits.prune_sessions_max))? {}
        Ok(pruning.report())
    }

    pub(super) fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError> {
        self.read(|tx| {
            tx.prepare_cached("SELECT body FROM blobs WHERE hash = ?1")?
                .query_row([hash.as_str()], |row| row.get(0))
                .optional()
        })
    }

    pub(super) fn spent(&self, accounts: &[Arc<str>]) -> Result<Vec<Amount>, JournalError> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT usd_nanos, tokens, calls FROM budgets WHERE account = ?1",
            )?;
            let sum = |account: &Arc<str>| {
                let row = statement.query_row([&**account], |row| {
                    let (usd_nanos, tokens) = (uint(row, 0)?, uint(row, 1)?);
                    Ok(Amount { usd_nanos, tokens, calls: uint(row, 2)? })
                });
                Ok(row.optional()?.unwrap_or_default())
            };
            accounts.iter().map(sum).collect()
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one state of the file.
    fn read<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let mut reading = self.lock();
        let Some(reading) = reading.as_mut() else {
            return Err(JournalError::closed(&self.path.display().to_string()));
        };
        let failed = |error| JournalError::sqlite(&self.path, "read", error);
        let tx = reading.begin().map_err(failed)?;
        work(&tx).map_err(failed)
    }
}

impl Reading {
    fn begin(&mut self) -> rusqlite::Result<Transaction<'_>> {
        if self.version < schema::STORE_VERSION {
            // Another process may have brought the file up to date; as long as none has, what this
            // transaction sees stays as it is.
            let tx = self.connection.transaction()?;
            let seen = schema::version(&tx)?.unwrap_or(self.version);
            drop(tx);
            if seen > self.version {
                schema::renew_views(&self.connection, seen)?;
                self.version = seen;
            }
        }
        self.connection.transaction()
    }
}

/// The snapshots of at most so many events, oldest first.
fn snapshots(
    tx: &Transaction<'_>,
    place: Place,
    mut until: u64,
) -> rusqlite::Result<Vec<Snapshot>> {
    let mut statement = tx.prepare_cached(
        "SELECT seq, body FROM snapshots WHERE session_key = ?1 AND seq <= ?2 ORDER BY seq DESC",
    )?;
    let mut found = Vec::new();
    let mut next = Some(place);
    while let Some(place) = next {
        let params = [place.key, int(until.min(i64::MAX as u64))];
        for snapshot in statement.query_map(params, snapshot)? {
            found.push(snapshot?);
        }
        next = match place.parent {
            Some(parent) => {
                until = until.min(parent.seq);
                chain::by_key(tx, parent.key)?.filter(|parent| parent.key < place.key)
            }
            None => None,
        };
    }
    found.reverse();
    Ok(found)
}

fn snapshot(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    Ok(Snapshot { seq: Seq(uint(row, 0)?), body: row.get(1)? })
}

fn list(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<Vec<SessionHead>> {
    tx.prepare_cached(sql)?.query_map(params, head)?.collect()
}

fn head(row: &Row<'_>) -> rusqlite::Result<SessionHead> {
    let id = |column: usize, text: &str| {
        SessionId::new(text).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
        })
    };
    let parent: Option<String> = row.get(9)?;
    let parent = parent.map(|text| Ok::<_, rusqlite::Error>((id(9, &text)?, Seq(uint(row, 8)?))));
    Ok(SessionHead {
        id: id(0, &row.get::<_, String>(0)?)?,
        epoch: Epoch(uint(row, 1)?),
        next_seq: Seq(uint(row, 2)?),
        status: status(row, 3)?,
        agent: row.get(4)?,
        origin: row.get::<_, Option<String>>(5)?.map(Origin),
        parent: parent.transpose()?,
        owner: None,
        created_us: row.get(6)?,
        updated_us: row.get(7)?,
    })
}

/// The stored number of a status. The indexes of open and waiting sessions name 0 and 4.
pub(super) const fn status_number(status: SessionStatus) -> i64 {
    match status {
        SessionStatus::Open => 0,
        SessionStatus::Finished => 1,
        SessionStatus::Failed => 2,
        SessionStatus::Cancelled => 3,
        SessionStatus::Waiting => 4,
    }
}

/// Reads a stored status.
pub(super) fn status(row: &Row<'_>, column: usize) -> rusqlite::Result<SessionStatus> {
    match row.get(column)? {
        0 => Ok(SessionStatus::Open),
        1 => Ok(SessionStatus::Finished),
        2 => Ok(SessionStatus::Failed),
        3 => Ok(SessionStatus::Cancelled),
        4 => Ok(SessionStatus::Waiting),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(column, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_few_among_many_reads_only_their_index() {
        let connection = Connection::open_in_memory().unwrap();
        schema::create("test".as_ref(), &connection).unwrap();
        let queries = [
            (OPEN_SESSIONS, "USING INDEX sessions_open"),
            (OPEN_PAGE, "USING INDEX sessions_open"),
            (OPEN_KEYS, "USING COVERING INDEX sessions_open"),
            (WAITING_PAGE, "USING INDEX sessions_waiting"),
            (ANY_PAGE, "USING INTEGER PRIMARY KEY"),
            (STATUS_PAGE, "USING INTEGER PRIMARY KEY"),
        ];
        for (sql, index) in queries {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            for param in 1..=plan.parameter_count() {
                plan.raw_bind_parameter(param, 1).unwrap();
            }
            let steps: Vec<String> = plan
                .raw_query()
                .mapped(|row| row.get("detail"))
                .map(|step| step.unwrap())
                .collect();
            assert!(steps[0].starts_with(&format!("SEARCH sessions {index}")), "{steps:?}");
            // The rest, if any, looks up the one parent of a fork.
            assert!(steps[1..].iter().all(|step| !step.contains("SCAN")), "{steps:?}");
            assert!(steps.iter().all(|step| !step.contains("TEMP B-TREE")), "{steps:?}");
        }
    }
}

//! A pruning of the SQLite file, in steps: each looks at a few sessions, newest first, and removes
//! those that are to go with everything that is theirs alone, in one transaction.
//!
//! A dry run takes the same steps and notes what would be gone instead of removing it.

use std::collections::{HashMap, HashSet};

use mainspring_session::SessionId;
use rusqlite::{Connection, OptionalExtension, params};

use super::{chain, int, reader, uint};
use crate::prune::{self, Shelf};
use crate::{PruneQuery, PruneReport};

/// See the module.
pub(super) struct Pruning {
    query: PruneQuery,
    report: PruneReport,
    /// Sessions from this key on have been looked at.
    seen_from: i64,
    /// The blobs that removed sessions have named, and how many of those there were.
    unnamed: HashMap<i64, u64>,
    /// The sessions that a dry run has taken for removed.
    gone: HashSet<i64>,
    /// The last rows that a dry run has left to retired sessions.
    last_rows: HashMap<i64, i64>,
}

impl Pruning {
    /// Nothing looked at yet.
    pub(super) fn new(query: PruneQuery) -> Self {
        Self {
            query,
            report: PruneReport::default(),
            seen_from: i64::MAX,
            unnamed: HashMap::new(),
            gone: HashSet::new(),
            last_rows: HashMap::new(),
        }
    }

    /// What has been removed, or would be.
    pub(super) fn report(&self) -> PruneReport {
        self.report
    }

    /// Counts what the next few sessions would come to. Returns whether these were the last.
    pub(super) fn count(
        &mut self,
        connection: &Connection,
        sessions_max: u32,
    ) -> rusqlite::Result<bool> {
        let look = self.look(connection, sessions_max)?;
        self.remove(connection, &look)?;
        Ok(look.ended)
    }

    /// Looks at the next few sessions, to find those that are to go.
    pub(super) fn look(
        &mut self,
        connection: &Connection,
        sessions_max: u32,
    ) -> rusqlite::Result<Look> {
        let sessions_max = sessions_max.max(1);
        let mut statement = connection.prepare_cached(
            "SELECT key, status, updated_us, agent, id FROM sessions WHERE key < ?1 \
             ORDER BY key DESC LIMIT ?2",
        )?;
        let mut rows = statement.query(params![self.seen_from, sessions_max])?;
        let (mut wanted, mut seen) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            seen += 1;
            self.seen_from = row.get(0)?;
            let (agent, id): (String, String) = (row.get(3)?, row.get(4)?);
            let matches = self.query.matches(reader::status(row, 1)?, row.get(2)?, &agent);
            // What is no id is that of a retired session.
            if let (true, Ok(id)) = (matches, SessionId::new(&id)) {
                wanted.push((self.seen_from, id));
            }
        }
        Ok(Look { wanted, ended: seen < sessions_max })
    }

    /// Prunes what was found, within a transaction of the caller's.
    pub(super) fn remove(&mut self, connection: &Connection, look: &Look) -> rusqlite::Result<()> {
        let mut report = self.report;
        for (key, _) in &look.wanted {
            prune::prune(&mut File { connection, pruning: self }, *key, &mut report)?;
        }
        if !self.query.dry_run || look.ended {
            report.blobs += self.sweep(connection)?;
        }
        self.report = report;
        Ok(())
    }

    /// Removes the blobs that nobody names any more, or counts them.
    fn sweep(&mut self, connection: &Connection) -> rusqlite::Result<u64> {
        let sql = if self.query.dry_run {
            "SELECT 1 FROM blobs WHERE key = ?1 AND pinned = 0 AND ?2 >= (SELECT count(*) FROM \
             (SELECT 1 FROM blob_refs WHERE blob_key = ?1 LIMIT ?2 + 1))"
        } else {
            "DELETE FROM blobs WHERE key = ?1 AND pinned = 0 AND ?2 > 0 AND NOT EXISTS \
             (SELECT 1 FROM blob_refs WHERE blob_key = ?1)"
        };
        let mut statement = connection.prepare_cached(sql)?;
        let mut swept = 0;
        for (key, sessions) in self.unnamed.drain() {
            let params = [key, int(sessions)];
            swept += if self.query.dry_run {
                u64::from(statement.exists(params)?)
            } else {
                statement.execute(params)? as u64
            };
        }
        Ok(swept)
    }
}

/// What one step has found.
pub(super) struct Look {
    /// The sessions that are to go, newest first.
    pub(super) wanted: Vec<(i64, SessionId)>,
    /// Whether there are no more sessions to look at.
    pub(super) ended: bool,
}

/// The file, seen by one step.
struct File<'a> {
    connection: &'a Connection,
    pruning: &'a mut Pruning,
}

impl File<'_> {
    fn dry(&self) -> bool {
        self.pruning.query.dry_run
    }

    fn execute(&self, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(params).map(|_| ())
    }

    /// Removes a session's rows that begin at a position or behind, from its last one back.
    /// Returns how many events they held and the row that is the last one now, 0 for none.
    fn remove_rows(&self, key: i64, end: u64) -> rusqlite::Result<(u64, i64)> {
        let Some(place) = chain::by_key(self.connection, key)? else { return Ok((0, 0)) };
        let mut row = self.pruning.last_rows.get(&key).copied().unwrap_or(place.last_row);
        let mut events = 0;
        while let Some(link) = chain::link(self.connection, key, row)? {
            if link.first_seq < end {
                return Ok((events, row));
            }
            events += link.count;
            if !self.dry() {
                self.execute("DELETE FROM log WHERE id = ?1", [row])?;
            }
            if link.prev >= row {
                break;
            }
            row = link.prev;
        }
        Ok((events, 0))
    }

    fn unname_blobs(&mut self, key: i64) -> rusqlite::Result<()> {
        let sql = "SELECT blob_key FROM blob_refs WHERE session_key = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([key])?;
        while let Some(row) = rows.next()? {
            *self.pruning.unnamed.entry(row.get(0)?).or_insert(0) += 1;
        }
        Ok(())
    }
}

impl Shelf for File<'_> {
    type Error = rusqlite::Error;

    fn fork_end(&mut self, key: i64) -> rusqlite::Result<Option<u64>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT key, parent_seq FROM sessions WHERE parent_key = ?1 ORDER BY parent_seq DESC",
        )?;
        let mut rows = statement.query([key])?;
        while let Some(row) = rows.next()? {
            if !self.pruning.gone.contains(&row.get(0)?) {
                return uint(row, 1).map(Some);
            }
        }
        Ok(None)
    }

    fn retired_parent(&mut self, key: i64) -> rusqlite::Result<Option<i64>> {
        let sql = "SELECT parent.key FROM sessions JOIN sessions AS parent \
                   ON parent.key = sessions.parent_key WHERE sessions.key = ?1 AND parent.id >= '~'";
        self.connection.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()
    }

    fn retire(&mut self, key: i64) -> rusqlite::Result<()> {
        if self.dry() {
            return Ok(());
        }
        self.execute("UPDATE sessions SET id = '~pruned-' || key WHERE key = ?1", [key])
    }

    fn cut(&mut self, key: i64, end: u64) -> rusqlite::Result<u64> {
        let (events, last_row) = self.remove_rows(key, end)?;
        if self.dry() {
            self.pruning.last_rows.insert(key, last_row);
            return Ok(events);
        }
        let params = params![key, int(end)];
        self.execute("DELETE FROM snapshots WHERE session_key = ?1 AND seq > ?2", params)?;
        let params = params![key, last_row, int(end)];
        self.execute("UPDATE sessions SET last_row = ?2, next_seq = ?3 WHERE key = ?1", params)?;
        Ok(events)
    }

    fn remove(&mut self, key: i64) -> rusqlite::Result<u64> {
        let (events, _) = self.remove_rows(key, 0)?;
        self.unname_blobs(key)?;
        if self.dry() {
            self.pruning.gone.insert(key);
            return Ok(events);
        }
        self.execute("DELETE FROM snapshots WHERE session_key = ?1", [key])?;
        self.execute("DELETE FROM blob_refs WHERE session_key = ?1", [key])?;
        self.execute("DELETE FROM sessions WHERE key = ?1", [key])?;
        Ok(events)
    }
}

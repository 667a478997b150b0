//! The writer: one thread that owns the only connection that writes. It commits whatever has
//! gathered while the last commit was under way, many sessions in one wait for the disk, and
//! answers only after the commit.
//!
//! Invariants: an append is answered exactly once; a refusal by the fence touches no other
//! append; a failed commit answers the whole batch with its error, forgets every cached head and
//! leaves the file as it was, so that the next batch starts from what is stored.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mainspring_session::{Epoch, Seq, SessionId};
use rusqlite::{Connection, OptionalExtension, params};

use super::heads::{Head, HeadCache};
use super::lock::OwnerLock;
use super::queue::Queue;
use super::{int, reader, uint};
use crate::delivery::{self, Counters};
use crate::error::JournalError;
use crate::limits::JournalLimits;
use crate::{Append, AppendMode, JournalStats, SessionStatus, fence};

/// What the writer shares with the threads that append.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) limits: JournalLimits,
    pub(super) queue: Queue,
    pub(super) counters: Counters,
}

/// See the module.
pub(super) struct Writer {
    connection: Connection,
    shared: Arc<Shared>,
    heads: HeadCache,
    /// The next free keys, read when first needed and after a failure.
    next_keys: Option<NextKeys>,
    // Last, so that the lock is let go only after the connection is closed.
    _lock: OwnerLock,
}

#[derive(Clone, Copy)]
struct NextKeys {
    session: i64,
    row: i64,
}

type Outcome = Result<(), JournalError>;

impl Writer {
    pub(super) fn new(connection: Connection, shared: Arc<Shared>, lock: OwnerLock) -> Self {
        let heads = HeadCache::new(shared.limits.cached_heads_max);
        Self { connection, shared, heads, next_keys: None, _lock: lock }
    }

    /// Writes until the queue ends, then folds in the write-ahead log.
    pub(super) fn run(mut self) -> Outcome {
        let _mourner = Mourner { shared: self.shared.clone() };
        while let Some(batch) = self.shared.queue.take(&self.shared.limits) {
            let outcomes = self.commit(&batch);
            delivery::answer_batch(batch, outcomes);
        }
        self.fold_in()
    }

    fn commit(&mut self, batch: &[Append]) -> Vec<Outcome> {
        let mut stored = JournalStats::default();
        let tried = catch_unwind(AssertUnwindSafe(|| self.try_commit(batch, &mut stored)));
        let error = match tried {
            Ok(Ok(outcomes)) => {
                self.shared.counters.add(&stored);
                return outcomes;
            }
            Ok(Err(error)) => JournalError::sqlite(&self.shared.path, "written", error),
            Err(_) => JournalError::writer_panicked(&self.shared.path.display().to_string()),
        };
        self.heads.clear();
        self.next_keys = None;
        if !self.connection.is_autocommit() {
            // If this fails too, the next BEGIN says so, and nothing was stored in between.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        vec![Err(error); batch.len()]
    }

    fn try_commit(
        &mut self,
        batch: &[Append],
        stored: &mut JournalStats,
    ) -> rusqlite::Result<Vec<Outcome>> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut outcomes = Vec::with_capacity(batch.len());
        for append in batch {
            let outcome = self.store(append)?;
            if outcome.is_ok() {
                stored.count(append);
            }
            outcomes.push(outcome);
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        stored.commits = u64::from(stored.appends > 0);
        Ok(outcomes)
    }

    /// Stores one append, or refuses it before anything is written.
    fn store(&mut self, append: &Append) -> rusqlite::Result<Outcome> {
        let held = self.head(&append.session)?;
        let checked = fence::check(append, held.map(|head| (head.epoch, head.next_seq)));
        if checked.is_err() {
            return Ok(checked);
        }
        let mut keys = self.next_keys()?;
        let next = Head {
            key: held.map_or(keys.session, |head| head.key),
            last_row: keys.row,
            epoch: append.epoch,
            next_seq: Seq(append.expected_seq.0 + u64::from(append.count)),
            status: append.status,
        };
        match held {
            None => {
                self.insert_head(append, &next)?;
                keys.session += 1;
            }
            Some(held) => self.update_head(append, &held, &next)?,
        }
        self.insert_block(append, held, &next)?;
        for (hash, body) in &append.blobs {
            self.connection
                .prepare_cached(
                    "INSERT INTO blobs (hash, body) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                )?
                .execute(params![hash.as_str(), &body[..]])?;
        }
        keys.row += 1;
        self.next_keys = Some(keys);
        self.heads.put(&append.session, next);
        Ok(Ok(()))
    }

    fn insert_head(&self, append: &Append, next: &Head) -> rusqlite::Result<()> {
        let AppendMode::Create { agent, origin } = &append.mode else {
            unreachable!("the fence lets only a creation pass without a session");
        };
        let origin = origin.as_ref().map(|origin| origin.0.as_str());
        self.connection
            .prepare_cached(
                "INSERT INTO sessions (key, epoch, next_seq, last_row, status, created_us, \
                 updated_us, id, agent, origin) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                next.key,
                int(next.epoch.0),
                int(next.next_seq.0),
                next.last_row,
                reader::status_number(next.status),
                append.at_us,
                append.session.as_str(),
                agent,
                origin,
            ])?;
        Ok(())
    }

    fn update_head(&self, append: &Append, held: &Head, next: &Head) -> rusqlite::Result<()> {
        // Naming the status in an update costs a visit to its index, so it is named only when it
        // changes.
        let changed = if held.status == next.status {
            self.connection
                .prepare_cached(
                    "UPDATE sessions SET epoch = ?2, next_seq = ?3, last_row = ?4, \
                     updated_us = ?5 WHERE key = ?1",
                )?
                .execute(params![
                    next.key,
                    int(next.epoch.0),
                    int(next.next_seq.0),
                    next.last_row,
                    append.at_us,
                ])?
        } else {
            self.connection
                .prepare_cached(
                    "UPDATE sessions SET epoch = ?2, next_seq = ?3, last_row = ?4, \
                     updated_us = ?5, status = ?6 WHERE key = ?1",
                )?
                .execute(params![
                    next.key,
                    int(next.epoch.0),
                    int(next.next_seq.0),
                    next.last_row,
                    append.at_us,
                    reader::status_number(next.status),
                ])?
        };
        assert_eq!(changed, 1, "a session that the fence has seen has one head");
        Ok(())
    }

    fn insert_block(
        &self,
        append: &Append,
        held: Option<Head>,
        next: &Head,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO log (id, session_key, prev, first_seq, count, epoch, at_us, body) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                next.last_row,
                next.key,
                held.map_or(0, |head| head.last_row),
                int(append.expected_seq.0),
                append.count,
                int(append.epoch.0),
                append.at_us,
                append.events,
            ])?;
        Ok(())
    }

    fn head(&self, session: &SessionId) -> rusqlite::Result<Option<Head>> {
        if let Some(head) = self.heads.get(session) {
            return Ok(Some(head));
        }
        self.connection
            .prepare_cached(
                "SELECT key, last_row, epoch, next_seq, status FROM sessions WHERE id = ?1",
            )?
            .query_row([session.as_str()], |row| {
                Ok(Head {
                    key: row.get(0)?,
                    last_row: row.get(1)?,
                    epoch: Epoch(uint(row, 2)?),
                    next_seq: Seq(uint(row, 3)?),
                    status: reader::status(row, 4)?,
                })
            })
            .optional()
    }

    fn next_keys(&mut self) -> rusqlite::Result<NextKeys> {
        if let Some(keys) = self.next_keys {
            return Ok(keys);
        }
        // Both read the last leaf of a tree, whatever its size.
        let next = |sql| self.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        Ok(NextKeys {
            session: next("SELECT coalesce(max(key), 0) + 1 FROM sessions")?,
            row: next("SELECT coalesce(max(id), 0) + 1 FROM log")?,
        })
    }

    /// Folds the write-ahead log into the file, as far as readers of other processes let it.
    fn fold_in(&self) -> Outcome {
        self.connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| {
                self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            })
            .map_err(|error| JournalError::sqlite(&self.shared.path, "folded together", error))
    }
}

/// Answers what still waits if the writer's thread ends by a panic.
struct Mourner {
    shared: Arc<Shared>,
}

impl Drop for Mourner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = JournalError::writer_panicked(&self.shared.path.display().to_string());
            self.shared.queue.end(error.clone());
            let pending = self.shared.queue.drain();
            delivery::answer_batch(pending, std::iter::repeat(Err(error)));
        }
    }
}

// The index of open sessions names the number.
const _: () = assert!(reader::status_number(SessionStatus::Open) == 0);

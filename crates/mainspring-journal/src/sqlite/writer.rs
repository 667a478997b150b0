//! The writer: one thread that owns the only connection that writes. It commits whatever has
//! gathered while the last commit was under way, many sessions in one wait for the disk, and
//! answers only after the commit.
//!
//! Invariants: an append is answered exactly once; a refusal by the fence touches no other
//! append; a failed commit answers the whole batch with its error, forgets every cached head and
//! leaves the file as it was, so that the next batch starts from what is stored. Prunings and
//! compactions run here too, between the commits, so that nothing else ever writes.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainspring_session::{Epoch, Seq, SessionId};
use rusqlite::{Connection, OptionalExtension};

use super::chain::{self, Branch};
use super::heads::{Head, HeadCache};
use super::jobs::{Job, Jobs};
use super::lock::OwnerLock;
use super::owned::{Change, Owned};
use super::prune::Pruning;
use super::{insert, reader, uint};
use crate::delivery::{self, Counters};
use crate::error::JournalError;
use crate::fence::{self, ForkPoint};
use crate::limits::JournalLimits;
use crate::queue::Queue;
use crate::{Append, AppendMode, CompactReport, JournalStats, SessionStatus};

/// What the writer shares with the threads that append.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) limits: JournalLimits,
    pub(super) queue: Queue,
    pub(super) jobs: Jobs,
    pub(super) owned: Owned,
    pub(super) counters: Counters,
}

/// See the module.
pub(super) struct Writer {
    connection: Connection,
    shared: Arc<Shared>,
    heads: HeadCache,
    /// The next free keys, read when first needed and after a failure.
    next_keys: Option<NextKeys>,
    /// What the appends of this commit do to the sessions' ownership, in order.
    changes: Vec<Change>,
    /// The job under way.
    job: Option<Job>,
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
        Self {
            connection,
            shared,
            heads,
            next_keys: None,
            changes: Vec::new(),
            job: None,
            _lock: lock,
        }
    }

    /// Writes until the queue ends, then folds in the write-ahead log.
    pub(super) fn run(mut self) -> Outcome {
        let _mourner = Mourner { shared: self.shared.clone() };
        while let Some(batch) = self.shared.queue.take(&self.shared.limits) {
            if !batch.is_empty() {
                let outcomes = self.commit(&batch);
                delivery::answer_batch(batch, outcomes);
            }
            self.work();
        }
        self.shared.jobs.end();
        self.job = None;
        self.fold_in()
    }

    fn commit(&mut self, batch: &[Append]) -> Vec<Outcome> {
        let mut stored = JournalStats::default();
        let mut entered = Vec::new();
        self.changes.clear();
        let tried = self.try_work("written", |writer| {
            let outcomes = writer.store_all(batch, &mut stored)?;
            entered = writer.shared.owned.enter(&writer.changes);
            writer.connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(outcomes)
        });
        match tried {
            Ok(outcomes) => {
                self.shared.owned.settle(&self.changes);
                stored.commits = u64::from(stored.appends > 0);
                self.shared.counters.add(&stored);
                outcomes
            }
            Err(error) => {
                self.shared.owned.leave(&entered);
                vec![Err(error); batch.len()]
            }
        }
    }

    /// Does something that writes. If it fails the file is as it was before, and nothing that is
    /// known of it is trusted any more.
    fn try_work<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let error = match catch_unwind(AssertUnwindSafe(|| work(&mut *self))) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => JournalError::sqlite(&self.shared.path, doing, error),
            Err(_) => JournalError::writer_panicked(&self.shared.path.display().to_string()),
        };
        self.heads.clear();
        self.next_keys = None;
        if !self.connection.is_autocommit() {
            // If this fails too, the next BEGIN says so, and nothing was stored in between.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        Err(error)
    }

    fn store_all(
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
        Ok(outcomes)
    }

    /// Stores one append, or refuses it before anything is written.
    fn store(&mut self, append: &Append) -> rusqlite::Result<Outcome> {
        let held = self.head(&append.session)?;
        let branch = match self.check(append, held)? {
            Ok(branch) => branch,
            Err(refusal) => return Ok(Err(refusal)),
        };
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
                insert::head(&self.connection, append, &next, branch)?;
                keys.session += 1;
            }
            Some(held) => insert::head_change(&self.connection, append, &held, &next)?,
        }
        insert::block(&self.connection, append, held, &next)?;
        insert::blobs(&self.connection, append, next.key)?;
        insert::snapshot(&self.connection, append, &next)?;
        insert::charges(&self.connection, append)?;
        keys.row += 1;
        self.next_keys = Some(keys);
        self.changes.push((next.key, append.status == SessionStatus::Open && !append.release));
        self.heads.put(&append.session, next);
        Ok(Ok(()))
    }

    /// Holds an append against the fence. Returns where a fork leaves its parent.
    fn check(
        &self,
        append: &Append,
        held: Option<Head>,
    ) -> rusqlite::Result<Result<Option<Branch>, JournalError>> {
        let AppendMode::Fork { parent, .. } = &append.mode else {
            let held = held.map(|head| (head.epoch, head.next_seq));
            return Ok(fence::check(append, held).map(|()| None));
        };
        let seq = append.expected_seq;
        let (mut point, mut branch) = (None, None);
        // The way to the fork point may be long, so it is gone only if it may lead somewhere.
        if held.is_none()
            && let Some(place) = chain::find(&self.connection, parent)?
        {
            if (1..=place.next_seq).contains(&seq.0) {
                branch = chain::branch(&self.connection, place, seq.0)?;
                if branch.is_none() {
                    let what = "the events before are missing";
                    return Ok(Err(JournalError::corrupt_session(parent, seq, what)));
                }
            }
            let epoch = branch.map(|branch| branch.epoch);
            point = Some(ForkPoint { next_seq: Seq(place.next_seq), epoch });
        }
        Ok(fence::check_fork(append, parent, held.is_some(), point).map(|()| branch))
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

    /// Does a piece of the oldest job, if there is one.
    fn work(&mut self) {
        // A caller that has gone away needs no result.
        match self.job.take().or_else(|| self.shared.jobs.pop()) {
            None => return,
            Some(Job::Compact(caller)) => drop(caller.send(self.compact())),
            Some(Job::Prune(mut pruning, caller)) => match self.prune_some(&mut pruning) {
                Ok(false) => self.job = Some(Job::Prune(pruning, caller)),
                Ok(true) => drop(caller.send(Ok(pruning.report()))),
                Err(error) => drop(caller.send(Err(error))),
            },
        }
        self.shared.queue.wake();
    }

    /// Prunes a few sessions. Returns whether these were the last.
    fn prune_some(&mut self, pruning: &mut Pruning) -> Result<bool, JournalError> {
        let sessions_max = self.shared.limits.prune_sessions_max;
        let look = self.try_work("pruned", |writer| {
            let look = pruning.look(&writer.connection, sessions_max)?;
            if !look.wanted.is_empty() {
                writer.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
                pruning.remove(&writer.connection, &look)?;
                writer.connection.prepare_cached("COMMIT")?.execute([])?;
            }
            Ok(look)
        })?;
        for (_, session) in &look.wanted {
            self.heads.forget(session);
        }
        Ok(look.ended)
    }

    /// Writes the file anew without its gaps.
    fn compact(&mut self) -> Result<CompactReport, JournalError> {
        let bytes_before = self.bytes()?;
        let compacted = self.try_work("compacted", |writer| {
            // The copy goes to a file, since the memory may not hold it.
            writer.connection.pragma_update(None, "temp_store", "FILE")?;
            writer.connection.execute_batch("VACUUM")
        });
        let restored = self.try_work("compacted", |writer| {
            writer.connection.pragma_update(None, "temp_store", "MEMORY")
        });
        compacted.and(restored)?;
        self.fold_in()?;
        Ok(CompactReport { bytes_before, bytes_after: self.bytes()? })
    }

    /// Bytes of the file and its write-ahead log.
    fn bytes(&self) -> Result<u64, JournalError> {
        let mut log = self.shared.path.as_os_str().to_owned();
        log.push("-wal");
        let paths = [self.shared.path.as_path(), Path::new(&log)];
        let bytes = paths.map(|path| match path.metadata() {
            Ok(file) => Ok(file.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(JournalError::io(path, "measured", error)),
        });
        let [file, log] = bytes;
        Ok(file? + log?)
    }

    /// Folds the write-ahead log into the file, as far as readers of other processes let it: none
    /// of them is waited for.
    fn fold_in(&self) -> Outcome {
        let busy = Duration::from_millis(self.shared.limits.busy_ms_max);
        self.connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| {
                self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            })
            .and_then(|()| self.connection.busy_timeout(busy))
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
            self.shared.jobs.end();
            let pending = self.shared.queue.drain();
            delivery::answer_batch(pending, std::iter::repeat(Err(error)));
        }
    }
}

// The indexes of few among many sessions name the numbers.
const _: () = assert!(reader::status_number(SessionStatus::Open) == 0);
const _: () = assert!(reader::status_number(SessionStatus::Waiting) == 4);

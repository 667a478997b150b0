//! A journal in one SQLite file: opening, closing, and the two sides behind it, one thread that
//! writes (`writer.rs`) and one connection that reads (`reader.rs`).
//!
//! Invariant: in one process at a time a file has one writing connection, and no other connection
//! ever folds in its write-ahead log.

mod chain;
mod heads;
mod identity;
mod insert;
mod jobs;
mod lock;
mod owned;
mod prune;
mod reader;
mod schema;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use mainspring_session::{Amount, BlobHash, Record, Seq, SessionId};
use rusqlite::{Connection, OpenFlags, Row};

use self::jobs::{Job, Jobs};
use self::lock::OwnerLock;
use self::owned::Owned;
use self::prune::Pruning;
use self::reader::Reader;
use self::writer::{Shared, Writer};
use crate::delivery::{self, Counters};
use crate::error::JournalError;
use crate::queue::Queue;
use crate::{
    Access, Append, CompactReport, Durability, Hold, Journal, JournalOptions, JournalStats,
    PruneQuery, PruneReport, SessionHead, SessionQuery, Snapshot, fence,
};

/// See the module.
pub(crate) struct SqliteJournal {
    shared: Arc<Shared>,
    identity: String,
    reader: Reader,
    /// `None` if opened for reading.
    writing: Option<Writing>,
}

struct Writing {
    thread: ThreadId,
    end: Mutex<End>,
}

enum End {
    Running(JoinHandle<Result<(), JournalError>>),
    Ended(Result<(), JournalError>),
}

impl SqliteJournal {
    /// Opens a file; see [`crate::open`].
    pub(crate) fn open(path: &Path, options: JournalOptions) -> Result<Self, JournalError> {
        schema::check_sqlite()?;
        let path = resolve(path, options.access)?;
        let access = options.access;
        let shared = Arc::new(Shared {
            path: path.clone(),
            limits: options.limits.clone(),
            queue: Queue::new(),
            jobs: Jobs::new(),
            owned: Owned::default(),
            counters: Counters::default(),
        });
        let writer = match access {
            Access::ReadOnly => {
                let name = path.display().to_string();
                shared.queue.end(JournalError::access_read_only(&name));
                None
            }
            Access::ReadWrite => {
                let lock = OwnerLock::take(&path)?;
                let connection = open_for_writing(&path, &options)?;
                Some(Writer::new(connection, shared.clone(), lock))
            }
        };
        let (connection, version) = open_for_reading(&path, &options)?;
        let store = schema::store_id(&connection)
            .map_err(|error| JournalError::sqlite(&path, "opened", error))?;
        let identity = identity::name(&path, store.as_deref())?;
        let reader = Reader::new(path.clone(), connection, version);
        let writing = writer.map(|writer| start(&path, writer)).transpose()?;
        Ok(Self { shared, identity, reader, writing })
    }

    /// Has the writer do a job, and waits for the result.
    fn work<T>(
        &self,
        doing: &str,
        job: impl FnOnce(Sender<Result<T, JournalError>>) -> Job,
    ) -> Result<T, JournalError> {
        let name = self.shared.path.display().to_string();
        let Some(writing) = &self.writing else {
            return Err(JournalError::access_read_only(&name));
        };
        if writing.thread == thread::current().id() {
            return Err(JournalError::within_sink(&name, doing));
        }
        let result = self.shared.jobs.push(job);
        self.shared.queue.wake();
        result.recv().unwrap_or_else(|_| Err(JournalError::closed(&name)))
    }
}

fn start(path: &Path, writer: Writer) -> Result<Writing, JournalError> {
    let handle = thread::Builder::new()
        .name("journal-writer".to_owned())
        .spawn(move || writer.run())
        .map_err(|error| JournalError::io(path, "given a thread", error))?;
    Ok(Writing { thread: handle.thread().id(), end: Mutex::new(End::Running(handle)) })
}

/// One name for one file, so that two ways to write a path meet the same lock.
fn resolve(path: &Path, access: Access) -> Result<PathBuf, JournalError> {
    match path.canonicalize() {
        Ok(found) if found.is_file() => return Ok(found),
        Ok(_) => return Err(JournalError::not_a_file(path)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(JournalError::io(path, "found", error));
        }
        Err(_) if access == Access::ReadOnly => return Err(JournalError::missing(path)),
        Err(_) => {}
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => Ok(folder.join(name)),
        (Err(error), _) if error.kind() != io::ErrorKind::NotFound => {
            Err(JournalError::io(path, "made", error))
        }
        _ => Err(JournalError::no_folder(path)),
    }
}

fn open_for_writing(path: &Path, options: &JournalOptions) -> Result<Connection, JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |error| JournalError::sqlite(path, "opened", error);
    let connection = connect(path, flags, options)?;
    if let Some(bytes_max) = options.limits.database_bytes_max {
        let pages = i64::try_from(bytes_max / schema::PAGE_BYTES).unwrap_or(i64::MAX).max(1);
        connection
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .map_err(failed)?;
    }
    let synchronous = match options.durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection
        .pragma_update(None, "synchronous", synchronous)
        .and_then(|()| connection.pragma_update(None, "temp_store", "MEMORY"))
        .map_err(failed)?;
    if schema::is_empty(path, &connection)? {
        schema::create(path, &connection)?;
    }
    let version = schema::check(path, &connection)?;
    if connection.is_readonly("main").map_err(failed)? {
        return Err(JournalError::file_read_only(path));
    }
    schema::update(path, &connection, version)?;
    // Folding in early and little at a time keeps the slowest commits short: 2,000 pages.
    schema::set_wal(&connection)
        .and_then(|()| {
            connection.pragma_update_and_check(None, "wal_autocheckpoint", 2_000, |_| Ok(()))
        })
        .map_err(failed)?;
    Ok(connection)
}

/// Also returns the version of the tables.
fn open_for_reading(
    path: &Path,
    options: &JournalOptions,
) -> Result<(Connection, i64), JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = connect(path, flags, options)?;
    let version = schema::check(path, &connection)?;
    let views = if version < schema::STORE_VERSION {
        schema::add_views(&connection, version)
    } else {
        Ok(())
    };
    views
        .and_then(|()| connection.pragma_update(None, "query_only", true))
        .map_err(|error| JournalError::sqlite(path, "opened", error))?;
    Ok((connection, version))
}

fn connect(
    path: &Path,
    flags: OpenFlags,
    options: &JournalOptions,
) -> Result<Connection, JournalError> {
    Connection::open_with_flags(path, flags)
        .and_then(|connection| {
            connection.busy_timeout(Duration::from_millis(options.limits.busy_ms_max))?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        })
        .map_err(|error| JournalError::sqlite(path, "opened", error))
}

/// A position or epoch as SQLite stores it.
fn int(value: u64) -> i64 {
    i64::try_from(value).expect("the fence counts up from 0, which never reaches 2^63")
}

/// Reads a number that is never negative.
fn uint(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

impl Journal for SqliteJournal {
    fn append(&self, append: Append) {
        match fence::check_shape(&append, &self.shared.limits) {
            Ok(()) => self.shared.queue.push(append, &self.shared.limits),
            Err(error) => delivery::answer(append, Err(error)),
        }
    }

    fn load_range(
        &self,
        session: &SessionId,
        from: Seq,
        until: Option<Seq>,
    ) -> Result<Vec<Record>, JournalError> {
        self.reader.load_range(session, from, until)
    }

    fn snapshots(
        &self,
        session: &SessionId,
        until: Option<Seq>,
    ) -> Result<Vec<Snapshot>, JournalError> {
        self.reader.snapshots(session, until)
    }

    fn head(&self, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        self.reader.head(session)
    }

    fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionHead>, JournalError> {
        self.reader.sessions(query, &self.shared.limits)
    }

    fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError> {
        self.reader.open_sessions()
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError> {
        self.reader.blob(hash)
    }

    fn spent(&self, accounts: &[Arc<str>]) -> Result<Vec<Amount>, JournalError> {
        self.reader.spent(accounts)
    }

    fn claim(&self, agents: &[String], limit: u32) -> Result<Vec<SessionHead>, JournalError> {
        if self.writing.is_none() {
            let name = self.shared.path.display().to_string();
            return Err(JournalError::access_read_only(&name));
        }
        self.reader.claim(&mut self.shared.owned.lock(), agents, limit)
    }

    fn release(&self, sessions: &[SessionId]) -> Result<(), JournalError> {
        self.shared.owned.leave(&self.reader.keys(sessions)?);
        Ok(())
    }

    fn tenure(&self) -> u64 {
        1
    }

    fn hold(&self, _: u64) -> Hold {
        Hold::Held
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn prune(&self, query: &PruneQuery) -> Result<PruneReport, JournalError> {
        let pruning = Pruning::new(query.clone());
        if query.dry_run {
            return self.reader.count_prunable(pruning, &self.shared.limits);
        }
        self.work("pruned", |caller| Job::Prune(Box::new(pruning), caller))
    }

    fn compact(&self) -> Result<CompactReport, JournalError> {
        self.work("compacted", Job::Compact)
    }

    fn close(&self) -> Result<(), JournalError> {
        let name = self.shared.path.display().to_string();
        self.shared.queue.end(JournalError::closed(&name));
        // Before the writer's connection, so that the writer is the last to close the file.
        self.reader.close();
        let Some(writing) = &self.writing else { return Ok(()) };
        if writing.thread == thread::current().id() {
            // A sink closes the journal, or drops it: the thread cannot wait for its own end.
            return Ok(());
        }
        let mut end = writing.end.lock().unwrap_or_else(PoisonError::into_inner);
        let placeholder = End::Ended(Ok(()));
        let result = match std::mem::replace(&mut *end, placeholder) {
            End::Ended(result) => result,
            End::Running(handle) => {
                handle.join().unwrap_or_else(|_| Err(JournalError::writer_panicked(&name)))
            }
        };
        *end = End::Ended(result.clone());
        result
    }

    fn stats(&self) -> JournalStats {
        self.shared.counters.read()
    }
}

impl Drop for SqliteJournal {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `close` first.
        let _ = self.close();
    }
}

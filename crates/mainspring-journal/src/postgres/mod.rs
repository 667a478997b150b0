//! A journal in a PostgreSQL database that several processes share: opening, closing, and what is
//! behind it. One thread writes (`writer.rs`, `append.rs`), one keeps the lease of what this
//! process owns (`lease.rs`), and a few connections read (`pool.rs`, `reader.rs`).
//!
//! Invariant: whoever writes proves in the same statement that it still may. So it does not matter
//! how late a statement arrives, or how often.

mod append;
mod claim;
mod lease;
mod link;
mod outage;
mod place;
mod pool;
mod prune;
mod reader;
mod schema;
mod tls;
mod verdict;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use mainspring_session::{Amount, BlobHash, Record, Seq, SessionId};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use self::lease::Lease;
pub(crate) use self::link::Cause;
use self::link::{Link, Trouble};
use self::place::Place;
use self::pool::{Pool, apart};
use self::verdict::Outcome;
use self::writer::{Shared, Writer};
use crate::delivery::{self, Counters};
use crate::error::JournalError;
use crate::queue::Queue;
use crate::{
    Access, Append, CompactReport, Durability, Hold, Journal, JournalOptions, JournalStats,
    PruneQuery, PruneReport, SessionHead, SessionQuery, Snapshot, fence,
};

/// How long opening waits for the start of a connection and all that is asked on it then: tables
/// may have to be made, and others may be at it just now.
const OPEN: Duration = Duration::from_secs(60);

/// Work that goes through whole tables has no other bound than this; a peer that is gone is
/// noticed by the connection itself.
const LONG_WORK: Duration = Duration::from_secs(86_400);

/// See the module.
pub(crate) struct PostgresJournal {
    shared: Arc<Shared>,
    identity: String,
    pool: Pool,
    /// One claim at a time: what a lost answer was about must not be claimed again meanwhile.
    claiming: Mutex<()>,
    /// `None` if opened for reading.
    writing: Option<Writing>,
}

struct Writing {
    thread: ThreadId,
    end: Mutex<End>,
}

enum End {
    Running(JoinHandle<Outcome>),
    Ended(Outcome),
}

impl PostgresJournal {
    /// Opens a database; see [`crate::open`].
    pub(crate) fn open(url: &str, options: JournalOptions) -> Result<Self, JournalError> {
        let place = Arc::new(Place::parse(url, options.access)?);
        apart(|| Self::open_place(place, options))
    }

    fn open_place(place: Arc<Place>, options: JournalOptions) -> Result<Self, JournalError> {
        let failed = |trouble: Trouble| trouble.into_error(&place.name, "opened");
        let limits = options.limits;
        let outage = Duration::from_millis(limits.outage_ms_max);
        let connect = || Link::connect(&place, OPEN);
        let mut link = connect().map_err(failed)?;
        let identity = match options.access {
            Access::ReadOnly => schema::check(&mut link, &place.name)?,
            Access::ReadWrite => schema::prepare(&mut link, &place.name)?,
        };
        let commit = commit(&mut link, options.durability).map_err(failed)?;
        let pool = Pool::new(place.clone(), limits.connections_max, outage, link);
        let length = Duration::from_millis(limits.lease_ms.max(1));
        let lease = Arc::new(Lease::new(length, options.node.unwrap_or_else(node_name)));
        let shared = Arc::new(Shared {
            place: place.clone(),
            limits,
            queue: Queue::new(),
            counters: Counters::default(),
            lease: lease.clone(),
            commit,
        });
        let writing = match options.access {
            Access::ReadOnly => {
                shared.queue.end(JournalError::access_read_only(&place.name));
                None
            }
            Access::ReadWrite => {
                let link = connect().map_err(failed)?;
                lease.start(place.clone(), connect().map_err(failed)?).map_err(failed)?;
                Some(start(Writer::new(shared.clone(), link)).map_err(failed)?)
            }
        };
        Ok(Self { shared, identity, pool, claiming: Mutex::new(()), writing })
    }

    fn name(&self) -> &str {
        &self.shared.place.name
    }

    fn check_access(&self) -> Result<(), JournalError> {
        match self.writing {
            Some(_) => Ok(()),
            None => Err(JournalError::access_read_only(self.name())),
        }
    }
}

fn start(writer: Writer) -> Result<Writing, Trouble> {
    let handle = thread::Builder::new()
        .name("journal-writer".to_owned())
        .spawn(move || writer.run())
        .map_err(|error| Trouble::Refused(Cause::System(error)))?;
    Ok(Writing { thread: handle.thread().id(), end: Mutex::new(End::Running(handle)) })
}

/// What a commit has to wait for, if that is not what the server does anyway.
fn commit(link: &mut Link, durability: Durability) -> Result<Option<&'static str>, Trouble> {
    if durability == Durability::Normal {
        return Ok(Some("off"));
    }
    let rows = link.query("SELECT current_setting('synchronous_commit')", &[])?;
    let setting: String = get(first(&rows)?, 0)?;
    Ok((setting == "off").then_some("on"))
}

/// What other processes know this one by, unless it was given a name.
fn node_name() -> String {
    let system = rustix::system::uname();
    format!("{}:{}", system.nodename().to_string_lossy(), std::process::id())
}

/// Reads a value of a row.
fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Trouble> {
    row.try_get(column).map_err(|error| Trouble::Refused(Cause::Strange(error.to_string())))
}

/// The row of a statement that always gives one.
fn first(rows: &[Row]) -> Result<&Row, Trouble> {
    let none = || Trouble::Refused(Cause::Strange("a row is missing".to_owned()));
    rows.first().ok_or_else(none)
}

impl Journal for PostgresJournal {
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
        let found = self.pool.run("read", |link| reader::load(link, session, from, until))?;
        found.unwrap_or_else(|| Err(JournalError::not_found(session)))
    }

    fn snapshots(
        &self,
        session: &SessionId,
        until: Option<Seq>,
    ) -> Result<Vec<Snapshot>, JournalError> {
        let found = self.pool.run("read", |link| reader::snapshots(link, session, until))?;
        found.ok_or_else(|| JournalError::not_found(session))
    }

    fn head(&self, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        self.pool.run("read", |link| reader::one_head(link, session))
    }

    fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionHead>, JournalError> {
        let limit = query.limit.min(self.shared.limits.sessions_page_max);
        let found = self.pool.run("read", |link| reader::page(link, query, limit))?;
        match (found, &query.before) {
            (Some(heads), _) => Ok(heads),
            (None, Some(before)) => Err(JournalError::not_found(before)),
            (None, None) => unreachable!("only a session before can be missing"),
        }
    }

    fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError> {
        self.pool.run("read", reader::open_sessions)
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError> {
        self.pool.run("read", |link| reader::blob(link, hash))
    }

    fn spent(&self, accounts: &[Arc<str>]) -> Result<Vec<Amount>, JournalError> {
        self.pool.run("read", |link| reader::spent(link, accounts))
    }

    fn claim(&self, agents: &[String], limit: u32) -> Result<Vec<SessionHead>, JournalError> {
        self.check_access()?;
        let _alone = self.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        claim::claim(&self.pool, &self.shared.lease, agents, limit)
    }

    fn release(&self, sessions: &[SessionId]) -> Result<(), JournalError> {
        if self.writing.is_none() || sessions.is_empty() {
            return Ok(());
        }
        claim::release(&self.pool, &self.shared.lease, sessions)
    }

    fn tenure(&self) -> u64 {
        self.shared.lease.tenure()
    }

    fn hold(&self, tenure: u64) -> Hold {
        self.shared.lease.hold(tenure)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn prune(&self, query: &PruneQuery) -> Result<PruneReport, JournalError> {
        if query.dry_run {
            return self.pool.run("read", |link| {
                link.allow(LONG_WORK);
                prune::count(link, query)
            });
        }
        self.check_access()?;
        prune::prune(&self.pool, query, self.shared.limits.prune_sessions_max)
    }

    /// Makes the room of what was removed free for what comes. The server gives back to the system
    /// what lies at the end of its files; appends go on meanwhile.
    fn compact(&self) -> Result<CompactReport, JournalError> {
        self.check_access()?;
        self.pool.run("compacted", |link| {
            link.allow(LONG_WORK);
            let bytes_before = schema::bytes(link)?;
            for table in schema::TABLES {
                link.batch(&format!("VACUUM (ANALYZE) {table}"))?;
            }
            Ok(CompactReport { bytes_before, bytes_after: schema::bytes(link)? })
        })
    }

    fn close(&self) -> Result<(), JournalError> {
        self.shared.queue.end(JournalError::closed(self.name()));
        apart(|| self.pool.close());
        let Some(writing) = &self.writing else { return Ok(()) };
        if writing.thread == thread::current().id() {
            // A sink closes the journal, or drops it: the thread cannot wait for its own end.
            return Ok(());
        }
        let mut end = writing.end.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match std::mem::replace(&mut *end, End::Ended(Ok(()))) {
            End::Ended(result) => result,
            End::Running(handle) => {
                handle.join().unwrap_or_else(|_| Err(JournalError::writer_panicked(self.name())))
            }
        };
        *end = End::Ended(result.clone());
        result
    }

    fn stats(&self) -> JournalStats {
        self.shared.counters.read()
    }
}

impl Drop for PostgresJournal {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `close` first.
        let _ = self.close();
    }
}

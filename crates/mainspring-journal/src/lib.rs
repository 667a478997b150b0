//! The durable log: sessions as numbered, append-only lists of events, and the blobs they name.
//!
//! Owns how events are stored, who may append, and what "durable" means. It keeps these
//! invariants: an append is stored whole or not at all; an acknowledged append is there after
//! `kill -9` and, with [`Durability::Full`], after a power cut; of two owners of one session only
//! the one with the newer epoch can write; stored events come back byte for byte. It never reads
//! what an event means, except the format version in the first one.
//!
//! Start reading at [`Journal`], then `fence.rs` (who may append) and `sqlite/writer.rs` (how).

mod address;
mod block;
mod delivery;
mod error;
pub mod fence;
mod limits;
mod memory;
mod postgres;
mod prune;
mod queue;
mod sqlite;

use std::sync::Arc;

use mainspring_session::{Amount, BlobHash, Epoch, Origin, Record, Seq, SessionId};

pub use error::JournalError;
pub use limits::JournalLimits;

use address::Address;

/// One session's new events, appended together or not at all.
pub struct Append {
    /// The session.
    pub session: SessionId,
    /// The owner that appends.
    pub epoch: Epoch,
    /// Position of the first new event: the number of events the session has.
    pub expected_seq: Seq,
    /// The events: one JSON object each without line breaks, joined by `\n`.
    pub events: Vec<u8>,
    /// How many events there are, at least 1.
    pub count: u32,
    /// When they were decided, in microseconds since the epoch.
    pub at_us: i64,
    /// What the append does to the ownership of the session.
    pub mode: AppendMode,
    /// What the session is after these events.
    pub status: SessionStatus,
    /// Bodies the events name; one that is stored already is not stored again. Each is kept at
    /// least as long as the session.
    pub blobs: Vec<(BlobHash, Arc<[u8]>)>,
    /// What the session amounts to after these events, as an addition to its snapshots before; see
    /// [`Snapshot`]. Stored with the events or not at all.
    pub snapshot: Option<Vec<u8>>,
    /// What the append adds to accounts; added with the events or not at all.
    pub charges: Vec<Charge>,
    /// Whether the owner lets go of the session with this append, so that another may take it over
    /// at once. Without a meaning for a session whose turn has ended: such a one has no owner.
    pub release: bool,
    /// Handed back in [`Acked`], so that the caller knows which append it was.
    pub token: u64,
    /// Where the result goes.
    pub sink: Arc<dyn AckSink>,
}

impl Append {
    /// How much there is to write, in bytes.
    fn bytes(&self) -> usize {
        let blobs = self.blobs.iter().map(|(_, body)| body.len()).sum::<usize>();
        self.events.len() + blobs + self.snapshot.as_ref().map_or(0, Vec::len)
    }
}

/// What an append adds to an account: the budget of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The account, by whatever name its keeper gives it.
    pub account: Arc<str>,
    /// What was spent.
    pub amount: Amount,
}

/// What an append does to the ownership of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendMode {
    /// The session begins: it must not exist, the epoch is 1 and the first event has position 0.
    Create {
        /// The agent's name, for the list of sessions.
        agent: String,
        /// How to load the agent again, if it came from a module.
        origin: Option<Origin>,
    },
    /// The session begins with the first events of another, which are named and not copied: it
    /// must not exist, `expected_seq` is how many events it shares with its parent (at least 1, at
    /// most all), and the epoch is one more than that of the last shared event.
    Fork {
        /// The session whose first events are shared.
        parent: SessionId,
        /// The agent's name, for the list of sessions.
        agent: String,
        /// How to load the agent again, if it came from a module.
        origin: Option<Origin>,
    },
    /// The owner goes on: the epoch is the session's, and this process is its owner.
    Continue,
    /// A new owner takes over: the epoch is one more than the session's, no other process owns it,
    /// and every later append of the old owner is refused.
    TakeOver,
}

/// What a session is after its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionStatus {
    /// It has a turn that can go on.
    Open,
    /// It has a turn that goes on only once a person decides something.
    Waiting,
    /// Its last turn ended with an answer.
    Finished,
    /// Its last turn ended with an error.
    Failed,
    /// Its last turn was cancelled.
    Cancelled,
}

/// Takes the results of appends.
pub trait AckSink: Send + Sync {
    /// Takes the results of one commit that belong to this sink, in the order of the appends.
    ///
    /// Called from the writer's thread, or from within [`Journal::append`] if the append is
    /// refused at once or the store is in memory: so hold no lock across `append` that this
    /// takes, and return soon, since the next commit waits. It may call `append`. A panic here is
    /// caught and costs only this call.
    fn acked(&self, acks: Vec<Acked>);
}

/// The result of one append.
#[derive(Debug, Clone)]
pub struct Acked {
    /// The append's token.
    pub token: u64,
    /// `Ok` once the events are durable; otherwise nothing of the append is stored.
    pub result: Result<(), JournalError>,
}

/// What the journal knows of a session without reading its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHead {
    /// The session.
    pub id: SessionId,
    /// Counts its owners.
    pub epoch: Epoch,
    /// How many events it has: the position of the next one.
    pub next_seq: Seq,
    /// What it is after its last event.
    pub status: SessionStatus,
    /// The agent's name.
    pub agent: String,
    /// How to load the agent again, if it came from a module.
    pub origin: Option<Origin>,
    /// The session it was forked from and how many events they share; none if it was not forked,
    /// or if the parent has been pruned. If those events all came to the parent from a session that
    /// it was itself forked from, that session is the one.
    pub parent: Option<(SessionId, Seq)>,
    /// The process that runs it, in a store that several processes share.
    pub owner: Option<String>,
    /// Time of the first event of its own, in microseconds since the epoch.
    pub created_us: i64,
    /// Time of the last event, in microseconds since the epoch.
    pub updated_us: i64,
}

/// One addition to what a session amounts to, written every now and then so that a reader needs
/// only the events after the last one. The journal does not know what is in it. A session's state
/// at a position is made of all its snapshots up to there, oldest first, and the events after the
/// last. All of them can be lost without losing anything but time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How many events it covers: the position of the first one after it.
    pub seq: Seq,
    /// What the writer put in.
    pub body: Vec<u8>,
}

/// Whether this process may act on the sessions it has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It owns them.
    Held,
    /// Its lease may have run out: nothing may be begun until it is known again. Results may still
    /// be appended; the store decides.
    Paused,
    /// It has lost them for good: every append is refused.
    Lost,
}

/// Which sessions to remove.
#[derive(Debug, Clone)]
pub struct PruneQuery {
    /// Only sessions whose last event is older, in microseconds since the epoch.
    pub before_us: i64,
    /// Only those of these statuses; `Open` and `Waiting` ones are never removed.
    pub statuses: Vec<SessionStatus>,
    /// Only those of this agent; `None` for all.
    pub agent: Option<String>,
    /// Only count what would be removed.
    pub dry_run: bool,
}

/// What a pruning has removed, or would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Sessions that are gone.
    pub sessions: u64,
    /// Of those, the ones whose first events stay because a fork shares them.
    pub kept_for_forks: u64,
    /// Events that are gone.
    pub events: u64,
    /// Blobs that no session names any more and are gone.
    pub blobs: u64,
}

/// What a compaction has gained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactReport {
    /// Bytes of the store before.
    pub bytes_before: u64,
    /// Bytes of the store after.
    pub bytes_after: u64,
}

/// Which sessions to list.
#[derive(Debug, Clone)]
pub struct SessionQuery {
    /// Only those of this status; `None` for all.
    pub status: Option<SessionStatus>,
    /// At most so many; [`JournalLimits::sessions_page_max`] at most.
    pub limit: u32,
    /// Only those created before this one: the last of the page before.
    pub before: Option<SessionId>,
}

impl Default for SessionQuery {
    fn default() -> Self {
        Self { status: None, limit: 100, before: None }
    }
}

/// What a journal has written since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Commits, each of one or more appends.
    pub commits: u64,
    /// Appends that were stored.
    pub appends: u64,
    /// Events that were stored.
    pub events: u64,
    /// Bytes of events and blobs that were handed in and stored.
    pub bytes: u64,
}

/// A store of sessions.
///
/// Reads see every append that has been acknowledged.
pub trait Journal: Send + Sync {
    /// Hands in an append and returns at once; the result goes to its sink.
    ///
    /// The result is an error, and nothing is stored, with these codes: `journal_conflict` (another
    /// owner or another position), `session_not_found`, `journal_full`, `journal_io`,
    /// `journal_read_only`, `journal_limit_reached` (larger than
    /// [`JournalLimits::append_bytes_max`]), `engine_overloaded` (the queue is full, try again
    /// later), `engine_closed`, and `internal` (the events are not as [`Append`] says).
    fn append(&self, append: Append);

    /// Reads a session's events from a position on and before another (`None`: to the end), oldest
    /// first. What a fork shares with its parents is part of it.
    ///
    /// # Errors
    /// `session_not_found`; `journal_newer` if a newer version wrote one of the events;
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn load_range(
        &self,
        session: &SessionId,
        from: Seq,
        until: Option<Seq>,
    ) -> Result<Vec<Record>, JournalError>;

    /// Reads a session's events from a position on, oldest first; see [`Journal::load_range`].
    ///
    /// # Errors
    /// As [`Journal::load_range`].
    fn load(&self, session: &SessionId, from: Seq) -> Result<Vec<Record>, JournalError> {
        self.load_range(session, from, None)
    }

    /// Reads a session's snapshots that cover at most so many events (`None`: all), oldest first.
    /// Those of the events that a fork shares with its parents are part of it.
    ///
    /// # Errors
    /// `session_not_found`; `journal_corrupt`; `journal_io`; `engine_closed`.
    fn snapshots(
        &self,
        session: &SessionId,
        until: Option<Seq>,
    ) -> Result<Vec<Snapshot>, JournalError>;

    /// Reads what is known of a session; `None` if it does not exist.
    ///
    /// # Errors
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn head(&self, session: &SessionId) -> Result<Option<SessionHead>, JournalError>;

    /// Lists sessions, the one created last first.
    ///
    /// # Errors
    /// `session_not_found` if [`SessionQuery::before`] names no session; `journal_corrupt`;
    /// `journal_io`; `engine_closed`.
    fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionHead>, JournalError>;

    /// Lists every session of status [`SessionStatus::Open`], the one created first first, at a
    /// cost that does not grow with what else is stored.
    ///
    /// # Errors
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError>;

    /// Reads a blob; `None` if it is not stored.
    ///
    /// # Errors
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError>;

    /// Reads what all appends together have added to these accounts, in their order; nothing for one
    /// that none has added to.
    ///
    /// # Errors
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn spent(&self, accounts: &[Arc<str>]) -> Result<Vec<Amount>, JournalError>;

    /// Takes sessions of status [`SessionStatus::Open`] that nobody owns, of these agents, the one
    /// created first first. This process owns them from then on; of several processes that claim
    /// at once each session goes to one. The first append of each is a [`AppendMode::TakeOver`].
    ///
    /// # Errors
    /// `journal_corrupt`; `journal_io`; `engine_closed`; `journal_read_only`.
    fn claim(&self, agents: &[String], limit: u32) -> Result<Vec<SessionHead>, JournalError>;

    /// Lets go of sessions of this process that it will not go on with. Of others, nothing
    /// happens.
    ///
    /// # Errors
    /// `journal_io`; `engine_closed`. The lease's end lets go of them then.
    fn release(&self, sessions: &[SessionId]) -> Result<(), JournalError>;

    /// Counts how often this process has had to begin anew as an owner. What is claimed, created
    /// or taken over belongs to the tenure in which that was done.
    fn tenure(&self) -> u64;

    /// Whether this process may act on what it has taken in a tenure. Takes no lock and costs well
    /// under a microsecond, since it is asked before every tool call.
    fn hold(&self, tenure: u64) -> Hold;

    /// Whether other processes may own sessions of this store at the same time.
    fn is_shared(&self) -> bool;

    /// Names the store itself: another text for a copy of it, the same for the store after it was
    /// closed and opened. Approvals are bound to it, so that a copy repeats nothing.
    fn identity(&self) -> &str;

    /// Removes ended sessions for good. Events that a fork shares and blobs that a session names
    /// stay. Runs beside appends, a few sessions at a time, each whole or not at all.
    ///
    /// # Errors
    /// `journal_io`, `journal_full`: what had been removed until then stays removed;
    /// `engine_closed`; `journal_read_only`.
    fn prune(&self, query: &PruneQuery) -> Result<PruneReport, JournalError>;

    /// Gives the room of what was removed back to the system. Appends wait meanwhile.
    ///
    /// # Errors
    /// `journal_full`: the disk has no room for the copy that this needs; `journal_io`;
    /// `engine_closed`; `journal_read_only`.
    fn compact(&self) -> Result<CompactReport, JournalError>;

    /// Stores what has been handed in, folds the write-ahead log into the file, and lets another
    /// process open the journal. Later calls of any kind get `engine_closed`. Closing twice is
    /// the same as once. From within a sink it returns before the work is done.
    ///
    /// # Errors
    /// `journal_full` or `journal_io` if the write-ahead log could not be folded in. Nothing
    /// acknowledged is lost by that: the next opening does it.
    fn close(&self) -> Result<(), JournalError>;

    /// What has been written since the journal was opened.
    fn stats(&self) -> JournalStats;
}

/// Whether a journal may be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Access {
    /// Reads and writes; one process at a time.
    #[default]
    ReadWrite,
    /// Reads only, beside a writer or without one. The file must exist.
    ReadOnly,
}

/// What an acknowledged append survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// `kill -9` and a power cut: every commit waits for the disk.
    #[default]
    Full,
    /// `kill -9`. A power cut may lose the last commits, never a part of one.
    Normal,
}

/// How to open a journal.
#[derive(Debug, Clone, Default)]
pub struct JournalOptions {
    /// Whether it may be written.
    pub access: Access,
    /// What an acknowledged append survives.
    pub durability: Durability,
    /// Bounds on batches, queues and pages.
    pub limits: JournalLimits,
    /// What other processes know this one by, in a store that several share; `None`: host name and
    /// process number.
    pub node: Option<String>,
}

/// Opens a journal by its address.
///
/// `memory:` is a new, empty store that ends with the process. `sqlite:///FILE` is a file
/// relative to the current folder, `sqlite:////PATH/FILE` an absolute one; a plain path is the
/// same. The file is made if it is missing, its folder is not.
///
/// `postgresql://USER:PASSWORD@HOST:PORT/DATABASE` (or `postgres://`) is a database that several
/// processes share. The database must exist; the tables in it are made if they are missing.
/// Parameters are those of libpq, as far as they make sense here, with `sslmode` and `sslrootcert`
/// as libpq documents them.
///
/// # Errors
/// `journal_url_invalid`; `journal_locked` if another process has the file open for writing;
/// `journal_read_only`; `journal_corrupt` if the file is no journal; `journal_newer`;
/// `journal_full`; `journal_io`.
///
/// # Example
/// ```
/// # use mainspring_journal::{JournalOptions, SessionQuery, open};
/// let journal = open("memory:", JournalOptions::default())?;
/// assert!(journal.sessions(&SessionQuery::default())?.is_empty());
/// # Ok::<(), mainspring_journal::JournalError>(())
/// ```
pub fn open(url: &str, options: JournalOptions) -> Result<Arc<dyn Journal>, JournalError> {
    match address::parse(url)? {
        Address::Memory => Ok(Arc::new(memory::MemoryJournal::new(options))),
        Address::Sqlite(path) => Ok(Arc::new(sqlite::SqliteJournal::open(&path, options)?)),
        Address::Postgres(url) => {
            Ok(Arc::new(postgres::PostgresJournal::open(url.reveal(), options)?))
        }
    }
}

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
mod fence;
mod limits;
mod memory;
mod sqlite;

use std::sync::Arc;

use mainspring_session::{BlobHash, Epoch, Origin, Record, Seq, SessionId};

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
    /// Bodies the events name; one that is stored already is not stored again.
    pub blobs: Vec<(BlobHash, Arc<[u8]>)>,
    /// Handed back in [`Acked`], so that the caller knows which append it was.
    pub token: u64,
    /// Where the result goes.
    pub sink: Arc<dyn AckSink>,
}

impl Append {
    /// How much there is to write, in bytes.
    fn bytes(&self) -> usize {
        self.events.len() + self.blobs.iter().map(|(_, body)| body.len()).sum::<usize>()
    }
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
    /// The owner goes on: the epoch is the session's.
    Continue,
    /// A new owner takes over: the epoch is one more than the session's, and every later append
    /// of the old owner is refused.
    TakeOver,
}

/// What a session is after its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionStatus {
    /// It has a turn to continue.
    Open,
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
    /// Its owner.
    pub epoch: Epoch,
    /// How many events it has: the position of the next one.
    pub next_seq: Seq,
    /// What it is after its last event.
    pub status: SessionStatus,
    /// The agent's name.
    pub agent: String,
    /// How to load the agent again, if it came from a module.
    pub origin: Option<Origin>,
    /// Time of the first event, in microseconds since the epoch.
    pub created_us: i64,
    /// Time of the last event, in microseconds since the epoch.
    pub updated_us: i64,
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

    /// Reads a session's events from a position on, oldest first.
    ///
    /// # Errors
    /// `session_not_found`; `journal_newer` if `from` is 0 and a newer version wrote the session;
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn load(&self, session: &SessionId, from: Seq) -> Result<Vec<Record>, JournalError>;

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

    /// Lists every session that has a turn to continue, the one created first first, at a cost
    /// that does not grow with what else is stored.
    ///
    /// # Errors
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError>;

    /// Reads a blob; `None` if it is not stored.
    ///
    /// # Errors
    /// `journal_corrupt`; `journal_io`; `engine_closed`.
    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError>;

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
}

/// Opens a journal by its address.
///
/// `memory:` is a new, empty store that ends with the process. `sqlite:///FILE` is a file
/// relative to the current folder, `sqlite:////PATH/FILE` an absolute one; a plain path is the
/// same. The file is made if it is missing, its folder is not.
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
    }
}

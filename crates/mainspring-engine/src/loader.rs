//! Reads the journal away from the shards, so that a slow disk stalls nobody's session.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use mainspring_journal::{Journal, JournalError, SessionHead, SessionStatus};
use mainspring_session::{ErrorCode, Event, Failure, Seq, SessionId, State};

use crate::mail::{Opened, Reply, ResumeRequest, StartRequest};
use crate::outcome::SessionReport;
use crate::watch::{WatchBatch, WatchItem};

/// A session read from the journal, and what it was read for.
pub(crate) enum Loaded {
    /// For a turn; no state if the session does not exist.
    Start(StartRequest, Reply<Opened>, Result<Option<State>, Failure>),
    /// To be continued.
    Resume(ResumeRequest, Reply<Opened>, Result<State, Failure>),
}

type Job = Box<dyn FnOnce(&dyn Journal) + Send>;

/// The reading thread.
pub(crate) struct Loader {
    jobs: mpsc::Sender<Job>,
}

impl Loader {
    /// Starts the thread. It ends when every [`Loader`] has been dropped.
    pub(crate) fn start(journal: Arc<dyn Journal>) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread =
            std::thread::Builder::new().name("mainspring-read".to_owned()).spawn(move || {
                for job in inbox {
                    // A panic while reading ends that read; its reply is dropped and reported
                    // by the caller's own guard.
                    let run = std::panic::AssertUnwindSafe(|| job(journal.as_ref()));
                    if std::panic::catch_unwind(run).is_err() {
                        tracing::error!("a journal read panicked");
                    }
                }
            })?;
        Ok((Self { jobs }, thread))
    }

    /// Runs a read.
    pub(crate) fn run(&self, job: impl FnOnce(&dyn Journal) + Send + 'static) {
        // The thread only ends after every sender is gone.
        let _ = self.jobs.send(Box::new(job));
    }
}

impl Clone for Loader {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone() }
    }
}

/// Reads and folds a whole session.
pub(crate) fn load_state(journal: &dyn Journal, session: &SessionId) -> Result<State, Failure> {
    let records = journal.load(session, Seq(0)).map_err(|error| error.failure())?;
    let mut state = State::default();
    for record in &records {
        let event: Event = record.event().map_err(|error| {
            Failure::new(
                ErrorCode::JOURNAL_CORRUPT,
                format!("event {} of session {session} cannot be read: {error}", record.seq.0),
            )
        })?;
        state.fold(&event);
    }
    Ok(state)
}

/// Like [`load_state`], with none for a session that does not exist.
pub(crate) fn find_state(
    journal: &dyn Journal,
    session: &SessionId,
) -> Result<Option<State>, Failure> {
    match journal.head(session).map_err(|error| error.failure())? {
        None => Ok(None),
        Some(_) => load_state(journal, session).map(Some),
    }
}

/// The report of a session that is not alive here.
pub(crate) fn report(journal: &dyn Journal, session: &SessionId) -> Result<SessionReport, Failure> {
    find_state(journal, session)?
        .map(|state| SessionReport::of(session, &state))
        .ok_or_else(|| not_found(session))
}

/// Events from a position on; `ended` unless the session is alive here.
pub(crate) fn watch(
    journal: &dyn Journal,
    session: &SessionId,
    from: Seq,
    alive: bool,
) -> Result<WatchBatch, Failure> {
    const BATCH_MAX: usize = 1024;
    let records = journal.load(session, from).map_err(|error| error.failure())?;
    let all = records.len() <= BATCH_MAX;
    let items = records.iter().take(BATCH_MAX).map(WatchItem::of).collect();
    Ok(WatchBatch { items, ended: all && !alive })
}

/// Heads that can be resumed.
pub(crate) fn open_heads(journal: &dyn Journal) -> Result<Vec<SessionHead>, JournalError> {
    let heads = journal.open_sessions()?;
    Ok(heads.into_iter().filter(|head| head.status == SessionStatus::Open).collect())
}

/// The error for an id the journal does not hold.
pub(crate) fn not_found(session: &SessionId) -> Failure {
    Failure::new(
        ErrorCode::SESSION_NOT_FOUND,
        format!("session \"{session}\" is not in the journal"),
    )
    .with_hint("`mainspring sessions` lists the ones that are")
}

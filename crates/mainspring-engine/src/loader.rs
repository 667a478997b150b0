//! Reads the journal away from the shards, so that a slow disk stalls nobody's session.
//!
//! A state is read from the session's snapshots and the events after the last of them; without
//! usable snapshots, from all events.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use mainspring_journal::{Journal, JournalError, SessionHead, SessionStatus};
use mainspring_session::{
    AgentSpec, BlobHash, CallStatus, ErrorCode, Event, Failure, ForkEdit, Message, Part, Phase,
    Record, Seq, SessionId, State, ToolCallState, WAIT_MS_MAX, Weights,
};

use crate::mail::{Edit, ForkRequest, Opened, Reply, ResumeRequest, StartRequest};
use crate::outcome::{Pending, PendingKind, SessionReport};
use crate::watch::{WatchBatch, WatchItem};

/// A session read from the journal, and what it was read for.
pub(crate) enum Loaded {
    /// For a turn; no state if the session does not exist.
    Start(StartRequest, Reply<Opened>, Result<Option<Folded>, Failure>),
    /// To be continued, with the spec that it had if that is asked for.
    Resume(ResumeRequest, Reply<Opened>, Result<(Folded, Option<AgentSpec>), Failure>),
    /// To be forked, at this position and with this edit.
    Fork(ForkRequest, Reply<Opened>, Result<(Folded, Option<ForkEdit>), Failure>),
}

/// A state, and how much of it the stored snapshots hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Folded {
    pub(crate) state: State,
    pub(crate) covered: Covered,
    /// Longest wait, in microseconds, that its events tell of: no wait that is under way is longer,
    /// wherever the wall clock has been set meanwhile.
    pub(crate) wait_us_max: u64,
}

/// What a session's stored snapshots hold.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Covered {
    /// The position after the last event.
    pub(crate) seq: Seq,
    /// How many messages of the conversation.
    pub(crate) messages: usize,
}

impl Covered {
    /// A fork has changed what the snapshots before it hold: the next one repeats it.
    pub(crate) fn edited(&mut self, edit: Option<&ForkEdit>) {
        if let Some(ForkEdit::Message { index, .. }) = edit {
            self.messages = self.messages.min(*index as usize);
        }
    }
}

type Job = Box<dyn FnOnce(&dyn Journal) + Send>;

/// Where reads are done: on a thread of their own, or at once where there are no threads.
#[derive(Clone)]
pub(crate) enum Loader {
    Thread(mpsc::Sender<Job>),
    Inline(Arc<dyn Journal>),
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
        Ok((Self::Thread(jobs), thread))
    }

    /// Runs a read.
    pub(crate) fn run(&self, job: impl FnOnce(&dyn Journal) + Send + 'static) {
        match self {
            // The thread only ends after every sender is gone.
            Self::Thread(jobs) => drop(jobs.send(Box::new(job))),
            Self::Inline(journal) => job(journal.as_ref()),
        }
    }
}

/// Reads a session's state as of a position (`None`: now).
pub(crate) fn load_state(
    journal: &dyn Journal,
    session: &SessionId,
    until: Option<Seq>,
) -> Result<Folded, Failure> {
    let snapshots = journal.snapshots(session, until).map_err(|error| error.failure())?;
    let restored = match snapshots.last() {
        None => None,
        Some(_) => State::restore(snapshots.iter().map(|snapshot| snapshot.body.as_slice())),
    };
    if restored.is_none() && !snapshots.is_empty() {
        tracing::warn!(%session, "the snapshots cannot be used, all events are read");
    }
    let (mut state, mut covered) = match (restored, snapshots.last()) {
        (Some(state), Some(last)) if state.next_seq == last.seq => {
            let covered = Covered { seq: last.seq, messages: state.settled_messages() };
            (state, covered)
        }
        _ => Default::default(),
    };
    let from = state.next_seq;
    // Of what a snapshot holds it is not known how long it waited.
    let mut wait_us_max = if from == Seq(0) { 0 } else { WAIT_MS_MAX * 1000 };
    let records = journal.load_range(session, from, until).map_err(|error| error.failure())?;
    for record in &records {
        let event = read(session, record)?;
        wait_us_max = wait_us_max.max(wait_us(record, &event));
        if let Event::SessionForked(forked) = &event {
            covered.edited(forked.edit.as_ref());
        }
        state.fold(&event);
    }
    Ok(Folded { state, covered, wait_us_max })
}

/// How long an event tells to wait.
fn wait_us(record: &Record, event: &Event) -> u64 {
    let until_us = match event {
        Event::ModelCallFailed(failed) => failed.retry_at_us,
        Event::ToolCallFailed(failed) => failed.retry_at_us,
        _ => None,
    };
    until_us.map_or(0, |until_us| u64::try_from(until_us - record.at_us).unwrap_or(0))
}

fn read(session: &SessionId, record: &Record) -> Result<Event, Failure> {
    record.event().map_err(|error| {
        Failure::new(
            ErrorCode::JOURNAL_CORRUPT,
            format!("event {} of session {session} cannot be read: {error}", record.seq.0),
        )
    })
}

/// Like [`load_state`], with none for a session that does not exist.
pub(crate) fn find_state(
    journal: &dyn Journal,
    session: &SessionId,
) -> Result<Option<Folded>, Failure> {
    match journal.head(session).map_err(|error| error.failure())? {
        None => Ok(None),
        Some(_) => load_state(journal, session, None).map(Some),
    }
}

/// The spec in force in a session.
pub(crate) fn spec_of(journal: &dyn Journal, state: &State) -> Result<AgentSpec, Failure> {
    let corrupt = |what: String| Failure::new(ErrorCode::JOURNAL_CORRUPT, what);
    let Some(fingerprint) = &state.fingerprint else {
        return Err(corrupt("the session has no agent".to_owned()));
    };
    find_spec(journal, fingerprint)?
        .ok_or_else(|| corrupt(format!("the spec of the agent {:?} is missing", fingerprint)))
}

/// The spec of this hash, if it is stored and can be read.
pub(crate) fn find_spec(
    journal: &dyn Journal,
    fingerprint: &BlobHash,
) -> Result<Option<AgentSpec>, Failure> {
    let Some(body) = journal.blob(fingerprint).map_err(|error| error.failure())? else {
        return Ok(None);
    };
    let mut spec: AgentSpec = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the spec of an agent cannot be read: {error}");
        Failure::new(ErrorCode::JOURNAL_CORRUPT, message)
    })?;
    // Weights that are gone or damaged are found missing where they are needed.
    if let Some(id) = spec.route.as_ref().and_then(|route| route.weights.as_deref()) {
        let body = journal.blob(&BlobHash::named(id)).map_err(|error| error.failure())?;
        spec.weights = body.and_then(|body| Weights::parse(&body).ok()).map(Arc::new);
    }
    Ok(Some(spec))
}

/// A session for a request to continue it.
pub(crate) fn for_resume(
    journal: &dyn Journal,
    session: &SessionId,
    with_spec: bool,
) -> Result<(Folded, Option<AgentSpec>), Failure> {
    let folded = find_state(journal, session)?.ok_or_else(|| not_found(session))?;
    let spec = with_spec.then(|| spec_of(journal, &folded.state)).transpose()?;
    Ok((folded, spec))
}

/// A session as of where it is to be forked, and what the edit changes in it.
pub(crate) fn for_fork(
    journal: &dyn Journal,
    request: &ForkRequest,
) -> Result<(Folded, Option<ForkEdit>), Failure> {
    let parent = &request.parent;
    let head = journal.head(parent).map_err(|error| error.failure())?;
    let head = head.ok_or_else(|| not_found(parent))?;
    let last = head.next_seq.0.saturating_sub(1);
    let at = request.at.map_or(last, |at| at.0);
    if at > last {
        let message = format!("session \"{parent}\" cannot be forked at event {at}, last {last}");
        return Err(Failure::new(ErrorCode::AGENT_INVALID, message)
            .with_hint(format!("`mainspring show {parent}` shows its events")));
    }
    let folded = load_state(journal, parent, Some(Seq(at + 1)))?;
    let Some(edit) = &request.edit else { return Ok((folded, None)) };
    let records =
        journal.load_range(parent, Seq(at), Some(Seq(at + 1))).map_err(|error| error.failure())?;
    let event = records.first().map(|record| read(parent, record)).transpose()?;
    let edit = event.and_then(|event| place_edit(&event, &folded.state, edit));
    match edit {
        Some(edit) => Ok((folded, Some(edit))),
        None => {
            let message = format!("event {at} of session \"{parent}\" says nothing to be edited");
            Err(Failure::new(ErrorCode::AGENT_INVALID, message).with_hint(
                "fork at an input_received, model_call_finished or tool_call_finished event",
            ))
        }
    }
}

/// What an edit of an event's words changes in the state just after it.
fn place_edit(event: &Event, state: &State, edit: &Edit) -> Option<ForkEdit> {
    let text = |text: &str| vec![Part::Text { text: text.to_owned() }];
    let last_message = |content: Vec<Part>| {
        let index = u32::try_from(state.messages.len().checked_sub(1)?).ok()?;
        Some(ForkEdit::Message { index, content })
    };
    match (event, edit) {
        (Event::InputReceived(_), Edit::Content(content)) => last_message(content.clone()),
        (Event::InputReceived(_), Edit::Text(said)) => last_message(text(said)),
        (Event::ModelCallFinished(_), Edit::Text(said)) => match &state.phase {
            Phase::Judging(_) => Some(ForkEdit::Answer { text: said.clone() }),
            _ => last_message(text(said)),
        },
        (Event::ToolCallFinished(finished), Edit::Text(said)) => {
            if state.call(finished.call).is_some() {
                return Some(ForkEdit::Call { call: finished.call, text: said.clone() });
            }
            // The step's results joined the conversation with this one, in the order of the calls.
            let first = state.messages.iter().rposition(|message| {
                matches!(message, Message::Assistant { tool_calls, .. } if !tool_calls.is_empty())
            })?;
            let count = state.messages.len() - first - 1;
            let first_call = state.tool_call_count.checked_sub(count as u64)?;
            let offset = usize::try_from(finished.call.0.checked_sub(first_call)?).ok()?;
            let index = u32::try_from(first + 1 + offset).ok()?;
            Some(ForkEdit::Message { index, content: text(said) })
        }
        _ => None,
    }
}

/// What waits for decisions: in one session, or in all that wait for nothing else, the newest first.
///
/// # Errors
/// `session_not_found`; the journal's own errors.
pub fn pending(
    journal: &dyn Journal,
    session: Option<&SessionId>,
    sessions_max: u32,
) -> Result<Vec<Pending>, Failure> {
    match session {
        Some(session) => pending_in(journal, session),
        None => all_pending(journal, sessions_max),
    }
}

fn pending_in(journal: &dyn Journal, session: &SessionId) -> Result<Vec<Pending>, Failure> {
    let folded = find_state(journal, session)?.ok_or_else(|| not_found(session))?;
    let waiting = folded.state.calls().iter().filter_map(|call| {
        let kind = match &call.status {
            CallStatus::Awaiting(approval) => PendingKind::Approval(approval.clone()),
            CallStatus::Unknown => PendingKind::Effect,
            _ => return None,
        };
        Some(pending_call(session, &folded.state, call, kind))
    });
    Ok(waiting.collect())
}

fn pending_call(
    session: &SessionId,
    state: &State,
    call: &ToolCallState,
    kind: PendingKind,
) -> Pending {
    Pending {
        session: session.clone(),
        call: call.index,
        kind,
        tool: call.call.name.clone(),
        arguments: call.call.arguments.clone(),
        effect_id: state.effect_id(call),
        attempt: call.attempt,
    }
}

fn all_pending(journal: &dyn Journal, limit: u32) -> Result<Vec<Pending>, Failure> {
    let query = mainspring_journal::SessionQuery {
        status: Some(SessionStatus::Waiting),
        limit,
        before: None,
    };
    let heads = journal.sessions(&query).map_err(|error| error.failure())?;
    let mut found = Vec::new();
    for head in heads {
        found.extend(pending_in(journal, &head.id)?);
    }
    Ok(found)
}

/// The report of a session that is not alive here.
pub(crate) fn report(journal: &dyn Journal, session: &SessionId) -> Result<SessionReport, Failure> {
    report_at(journal, session, None)
}

/// The report of a session as of a position (`None`: now).
pub(crate) fn report_at(
    journal: &dyn Journal,
    session: &SessionId,
    until: Option<Seq>,
) -> Result<SessionReport, Failure> {
    if journal.head(session).map_err(|error| error.failure())?.is_none() {
        return Err(not_found(session));
    }
    let folded = load_state(journal, session, until)?;
    Ok(SessionReport::of(session, &folded.state))
}

/// A session's state as of a position (`None`: now), as JSON: the state's own fields, and
/// `messages`, the conversation.
///
/// # Errors
/// `session_not_found`; the journal's own errors.
pub fn state_json(
    journal: &dyn Journal,
    session: &SessionId,
    until: Option<Seq>,
) -> Result<String, Failure> {
    if journal.head(session).map_err(|error| error.failure())?.is_none() {
        return Err(not_found(session));
    }
    let state = load_state(journal, session, until)?.state;
    let mut value = serde_json::to_value(&state).expect("a state has string keys only");
    value["messages"] =
        serde_json::to_value(&state.messages).expect("messages have string keys only");
    Ok(value.to_string())
}

/// Events from a position on; `ended` unless more may come.
pub(crate) fn watch(
    journal: &dyn Journal,
    session: &SessionId,
    from: Seq,
    more: bool,
) -> Result<WatchBatch, Failure> {
    const BATCH_MAX: u64 = 1024;
    let until = Seq(from.0 + BATCH_MAX);
    let records =
        journal.load_range(session, from, Some(until)).map_err(|error| error.failure())?;
    let all = (records.len() as u64) < BATCH_MAX;
    let items = records.iter().map(WatchItem::of).collect();
    Ok(WatchBatch { items, ended: all && !more })
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

//! What a shard can be told.

use std::sync::Arc;

use mainspring_journal::Acked;
use mainspring_models::ModelReply;
use mainspring_session::{Failure, Origin, Part, Seq, SessionId};
use mainspring_wire::HttpFailure;

use crate::agent::Agent;
use crate::host::HostResult;
use crate::live::Key;
use crate::loader::Loaded;
use crate::outcome::SessionReport;
use crate::watch::WatchBatch;

/// Where an answer goes. Called once, from an engine thread; it must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T, Failure>) + Send>;

/// Asks for a turn: of a new session, or the next one of a session that has ended its last.
pub struct StartRequest {
    /// The session; none for a new one with a fresh id.
    pub session: Option<SessionId>,
    /// Who runs it.
    pub agent: Arc<Agent>,
    /// What the user says.
    pub content: Vec<Part>,
    /// How to load the agent again, if it came from a module.
    pub origin: Option<Origin>,
}

/// What to do when the agent is not the one the session was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnChange {
    /// Go on with the agent as it is now.
    #[default]
    Continue,
    /// Refuse with `agent_changed`.
    Refuse,
}

/// Asks to continue a turn whose process is gone.
pub struct ResumeRequest {
    /// The session.
    pub session: SessionId,
    /// Who runs it.
    pub agent: Arc<Agent>,
    /// What to do if the agent has changed.
    pub on_change: OnChange,
}

/// A turn that is durable and under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The session.
    pub session: SessionId,
    /// Position of the first event of this turn, or of the takeover.
    pub from: Seq,
}

/// One letter.
pub(crate) enum Mail {
    Start(SessionId, StartRequest, Reply<Opened>),
    Resume(ResumeRequest, Reply<Opened>),
    Loaded(SessionId, Box<Loaded>),
    Cancel(SessionId, String, Reply<()>),
    Wait(SessionId, Reply<SessionReport>),
    Watch(SessionId, Seq, Reply<WatchBatch>),
    Appended(Vec<Acked>),
    Model { key: Key, step: u32, attempt: u32, result: Result<ModelReply, HttpFailure> },
    Delta { key: Key, step: u32, attempt: u32, text: String },
    Host(Vec<HostResult>),
    Close,
}

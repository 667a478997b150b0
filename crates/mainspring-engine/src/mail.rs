//! What a shard can be told.

use std::sync::Arc;

use mainspring_journal::{Acked, SessionHead};
use mainspring_models::ModelReply;
use mainspring_session::{
    ApprovalDecision, ApprovalId, Budget, CallIndex, Check, CheckFinding, EffectOutcome, ErrorCode,
    Fact, Failure, Funding, Origin, Part, Seq, SessionId, StepClass,
};
use mainspring_wire::HttpFailure;

use crate::agent::Agent;
use crate::decisions::Aside;
use crate::follow::Followed;
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
    /// Whether the turn is only stored, for whichever engine claims it.
    pub submit: bool,
    /// What the turn's steps are for; none leaves that to the agent.
    pub step_class: Option<StepClass>,
    /// Who pays from this turn on.
    pub payment: Payment,
}

/// What is to change about who pays for a session.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Payment {
    /// The tenant; none: as before, and nobody for a new session.
    pub tenant: Option<String>,
    /// The sessions that this one is a child of, the outermost first; none: as before.
    pub within: Option<Vec<SessionId>>,
    /// The session's own budget; none: as before.
    pub budget: Option<Budget>,
}

impl Payment {
    /// Who pays once it is done; none if nothing changes.
    ///
    /// # Errors
    /// `budget_invalid`, also if the session has another tenant.
    pub(crate) fn of(self, before: &Funding) -> Result<Option<Funding>, Failure> {
        if self == Self::default() {
            return Ok(None);
        }
        let mut funding = before.clone();
        if let Some(tenant) = self.tenant {
            if !before.tenant.is_empty() && before.tenant != tenant {
                let message = format!("the session has tenant {:?}, not {tenant:?}", before.tenant);
                return Err(Failure::new(ErrorCode::BUDGET_INVALID, message));
            }
            funding.tenant = tenant;
        }
        funding.within = self.within.unwrap_or(funding.within);
        funding.budget = self.budget.or(funding.budget);
        funding.check()?;
        Ok(Some(funding))
    }
}

/// What to do when the agent is not the one the session was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnChange {
    /// Go on with the agent as it is now.
    #[default]
    Continue,
    /// Go on with instructions, tools, models and limits as they were; the tools' functions and
    /// the models' keys are those of the agent as it is now.
    Pin,
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

/// What a fork changes of what the event at which it branches off said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// The user's input.
    Content(Vec<Part>),
    /// A text: of an input, an answer, or a tool's result.
    Text(String),
}

/// Asks for a new session that begins with the first events of another.
pub struct ForkRequest {
    /// The other session.
    pub parent: SessionId,
    /// The last event that both share; none for the last one there is.
    pub at: Option<Seq>,
    /// The new session; none for a fresh id.
    pub session: Option<SessionId>,
    /// Who runs it.
    pub agent: Arc<Agent>,
    /// What is changed of what event `at` said.
    pub edit: Option<Edit>,
    /// What the user says next, where a turn has ended.
    pub content: Option<Vec<Part>>,
    /// How to load the agent again, if it came from a module.
    pub origin: Option<Origin>,
    /// Who pays for the fork; as for its parent where nothing is said.
    pub payment: Payment,
}

/// A turn that is durable and under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The session.
    pub session: SessionId,
    /// The agent's name.
    pub agent: String,
    /// Position of the first event of this turn, or of the takeover.
    pub from: Seq,
}

/// A decision about a tool call that waits for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// About a call that waits for approval; none as the id means whichever request is open.
    Approval(Option<ApprovalId>, ApprovalDecision),
    /// About a call of which it is not known whether it took effect.
    Effect(EffectOutcome),
    /// The turn ends, for this reason; not about one call.
    Cancel(String),
}

/// Asks to record a decision, once.
pub struct DecideRequest {
    /// The session.
    pub session: SessionId,
    /// The call.
    pub call: CallIndex,
    /// What was decided.
    pub decision: Decision,
    /// Who decided, if they said.
    pub by: Option<String>,
    /// Who goes on with the session here; none to leave that to whoever resumes or claims it.
    pub agent: Option<Arc<Agent>>,
}

impl DecideRequest {
    /// The fact that the decision is, given the request that is open.
    pub(crate) fn fact(&self, open: Option<&ApprovalId>) -> Fact {
        let (call, by) = (self.call, self.by.clone());
        match &self.decision {
            Decision::Approval(given, decision) => {
                let approval = given.as_ref().or(open).cloned();
                let approval = approval.unwrap_or_else(|| ApprovalId::named(""));
                Fact::ApprovalDecided { call, approval, decision: decision.clone(), by }
            }
            Decision::Effect(outcome) => {
                Fact::EffectResolved { call, outcome: outcome.clone(), by }
            }
            Decision::Cancel(reason) => Fact::CancelRequested { reason: reason.clone() },
        }
    }
}

/// Which sessions an engine claims by itself.
pub struct ClaimRequest {
    /// Agents whose sessions it takes, told apart by name.
    pub agents: Vec<Arc<Agent>>,
    /// What to do if an agent has changed.
    pub on_change: OnChange,
}

/// What came of a drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Sessions whose turn ended meanwhile.
    pub finished: u64,
    /// Sessions that were let go between two steps, to be taken up elsewhere.
    pub parked: u64,
    /// Sessions that were still inside a step when the time was up.
    pub cut: u64,
}

/// One letter.
pub(crate) enum Mail {
    Start(SessionId, StartRequest, Reply<Opened>),
    Resume(ResumeRequest, Reply<Opened>),
    Fork(SessionId, ForkRequest, Reply<Opened>),
    Decide(DecideRequest, Reply<()>),
    Decided(DecideRequest, Reply<()>, Result<(), Aside>),
    Loaded(SessionId, Box<Loaded>),
    Cancel(SessionId, String, Reply<()>),
    Wait(SessionId, Reply<SessionReport>),
    Watch(SessionId, Seq, Reply<WatchBatch>),
    Claim(ClaimRequest, Reply<Vec<Opened>>),
    Claimed(Result<Vec<SessionHead>, Failure>, Option<Reply<Vec<Opened>>>),
    Found(SessionId, Result<Option<SessionHead>, Failure>, Followed),
    Unreleased(Vec<SessionId>),
    Heads(Vec<(SessionId, Option<SessionHead>)>),
    Drain(tokio::time::Instant, Reply<DrainReport>),
    Appended(Vec<Acked>),
    Model { key: Key, step: u32, attempt: u32, result: Result<ModelReply, HttpFailure> },
    Summary { key: Key, step: u32, result: Result<ModelReply, HttpFailure> },
    Checked { key: Key, step: u32, check: Check, finding: CheckFinding },
    Delta { key: Key, step: u32, attempt: u32, text: String },
    Host(Vec<HostResult>),
    Close,
}

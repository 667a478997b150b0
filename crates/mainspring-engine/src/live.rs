//! One session that is alive on a shard: its state, its mailbox, and what is under way for it.
//!
//! Invariant: at most one append is under way, and no command of an event is carried out, and no
//! watcher sees it, before its append has been acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use mainspring_journal::{AppendMode, Charge, SessionStatus};
use mainspring_models::ModelRequest;
use mainspring_models::budget::Account;
use mainspring_session::{
    CallIndex, CallStatus, Command, Event, Fact, Moment, Outcome, Refused, Seq, SessionId, State,
    commands, decide,
};
use mainspring_wire::CallIds;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::cache::{self, CacheWatch};
use crate::engine::EngineLimits;
use crate::history::History;
use crate::loader::{Covered, Folded};
use crate::mail::{Opened, Reply};
use crate::outcome::SessionReport;
use crate::watch::Watch;

/// Names a live session on its shard. Never used twice.
pub(crate) type Key = u64;

/// The bits of an append's token that count the appends of its session; the others are its key.
const APPEND_BITS: u32 = 20;

/// The session whose append has this token.
pub(crate) fn key_of(token: u64) -> Key {
    token >> APPEND_BITS
}

/// A fact waiting for its turn.
pub(crate) struct Letter {
    pub(crate) fact: Fact,
    /// The fact is at least as late as this, whatever the clock says, in microseconds.
    pub(crate) not_before_us: i64,
    /// Told once the fact is durable, or that it came to nothing.
    pub(crate) reply: Option<Reply<()>>,
}

impl From<Fact> for Letter {
    fn from(fact: Fact) -> Self {
        Self { fact, not_before_us: i64::MIN, reply: None }
    }
}

/// Events that are being made durable, and what follows once they are.
pub(crate) struct Pending {
    /// Which append it is; an acknowledgement of another one does not count.
    pub(crate) token: u64,
    pub(crate) commands: Vec<Command>,
    pub(crate) first: Seq,
    pub(crate) at_us: i64,
    pub(crate) count: u32,
    /// The events as JSON lines, for those who watch.
    pub(crate) lines: Vec<u8>,
    /// The report, if the events end the turn.
    pub(crate) report: Option<SessionReport>,
    /// Those whose decisions are among the events.
    pub(crate) replies: Vec<Reply<()>>,
    /// What the snapshots hold with the one of this append.
    pub(crate) covered: Option<Covered>,
    /// What the append charges to the session's tenant.
    pub(crate) charges: Vec<Charge>,
    /// Whether the session is let go of with this append.
    pub(crate) release: bool,
}

/// A session that is alive.
pub(crate) struct Live {
    pub(crate) id: SessionId,
    pub(crate) agent: Arc<Agent>,
    pub(crate) state: State,
    pub(crate) inbox: VecDeque<Letter>,
    pub(crate) pending: Option<Pending>,
    /// How the next append treats the session's ownership.
    pub(crate) mode: AppendMode,
    pub(crate) history: History,
    pub(crate) cache: CacheWatch,
    pub(crate) model: Option<AbortHandle>,
    /// Whether the append under way stores the agent's weights.
    pub(crate) stores_weights: bool,
    /// Jobs whose end has not been heard of.
    pub(crate) jobs: Vec<u64>,
    /// How many appends have been handed in, for their tokens.
    pub(crate) appends: u64,
    /// Counts turns, to tell a turn's deadline from an older one's.
    pub(crate) turn: u64,
    /// When the turn's time is up; none once it was, which a turn that waited for people outlives.
    pub(crate) turn_ends: Option<Instant>,
    /// Position after the last durable event.
    pub(crate) durable: Seq,
    /// When this process took the session; see `Journal::tenure`.
    pub(crate) tenure: u64,
    /// The tenant's account that the last model call was made on.
    pub(crate) payer: Option<Account>,
    /// What the stored snapshots hold.
    pub(crate) covered: Covered,
    /// Calls about which the host is being asked, whether to approve them or what became of them.
    pub(crate) questions: Vec<CallIndex>,
    /// When what was stored last was decided, in microseconds since the epoch.
    pub(crate) decided_us: i64,
    /// Longest wait that the first decision here can lead to; see [`Folded`].
    pub(crate) wait_us_max: u64,
    /// Whether the store says that nobody owns the session.
    pub(crate) released: bool,
    /// How the last turn ended, if it has and that is durable.
    pub(crate) report: Option<SessionReport>,
    pub(crate) opening: Vec<(Seq, Reply<Opened>)>,
    pub(crate) waiting: Vec<Reply<SessionReport>>,
    pub(crate) cancelling: Vec<Reply<()>>,
    pub(crate) watched: Rc<Cell<bool>>,
    /// Text of the answer being written, from before somebody watched.
    pub(crate) unwatched_text: Rc<RefCell<String>>,
    pub(crate) watch: Watch,
}

impl Live {
    pub(crate) fn new(
        id: SessionId,
        agent: Arc<Agent>,
        folded: Folded,
        mode: AppendMode,
        tenure: u64,
    ) -> Self {
        let Folded { state, covered, wait_us_max } = folded;
        let durable = state.next_seq;
        Self {
            id,
            agent,
            state,
            inbox: VecDeque::new(),
            pending: None,
            mode,
            history: History::default(),
            cache: CacheWatch::default(),
            model: None,
            stores_weights: false,
            jobs: Vec::new(),
            appends: 0,
            turn: 0,
            turn_ends: None,
            durable,
            tenure,
            payer: None,
            covered,
            questions: Vec::new(),
            decided_us: 0,
            wait_us_max,
            released: false,
            report: None,
            opening: Vec::new(),
            waiting: Vec::new(),
            cancelling: Vec::new(),
            watched: Rc::new(Cell::new(false)),
            unwatched_text: Rc::default(),
            watch: Watch::default(),
        }
    }

    /// A token for the next append of this session, which has this key: not that of any append
    /// before whose acknowledgement could still come, or come again.
    pub(crate) fn next_token(&mut self, key: Key) -> u64 {
        self.appends += 1;
        (key << APPEND_BITS) | (self.appends & ((1 << APPEND_BITS) - 1))
    }

    /// Whether nothing is left to do here: the turn has ended, or only a person's decision can
    /// bring it on, or another process will. What outlived the last turn of a session that another
    /// process runs is late for an owner that is gone.
    pub(crate) fn is_over(&self) -> bool {
        let quiet = self.inbox.is_empty() && self.pending.is_none();
        let rests = !self.state.is_open() || self.is_parked();
        quiet && (self.state.held || rests && self.jobs.is_empty())
    }

    /// Whether the turn waits for a person and for nothing else.
    pub(crate) fn is_parked(&self) -> bool {
        // What a person has answered meanwhile is no question any more.
        let asked = |call: &CallIndex| {
            self.state.call(*call).is_some_and(|call| call.status == CallStatus::Unknown)
        };
        self.state.waits_for_people() && !self.questions.iter().any(asked)
    }

    /// The request to one of its models with the conversation as it stands; none if the agent has
    /// no such model.
    pub(crate) fn model_request(&mut self, tier: u32) -> Option<ModelRequest> {
        let agent = Arc::clone(&self.agent);
        let (model, tier) =
            (agent.spec.models.get(tier as usize)?, agent.tiers.get(tier as usize)?);
        let opening = !self.state.turn_has_called();
        let history = self.history.update(&tier.codec, &self.state);
        let mut body = match opening {
            true => tier.codec.opening_body(history),
            false => tier.codec.body(history),
        };
        if tier.cache_key {
            cache::add_key(&mut body, &self.id);
        }
        let ids = CallIds { first: CallIndex(self.state.tool_call_count) };
        let (endpoints, codec) = (tier.endpoints.clone(), tier.codec.clone());
        let (affinity, tenant, deadline) = self.call_context();
        let request = ModelRequest::new(model, endpoints, codec, body.into(), ids);
        Some(ModelRequest { affinity, tenant, deadline, ..request })
    }

    /// What every call for the session has: where its caches are, who it is for, and until when.
    pub(crate) fn call_context(&self) -> (u64, Arc<str>, Option<Instant>) {
        let tenant = Arc::from(self.state.spending.funding.tenant.as_str());
        (affinity_of(&self.id), tenant, self.turn_ends)
    }

    /// The append that was to store the agent's weights has ended well or badly, if it was one.
    pub(crate) fn settle_weights(&mut self, stored: bool) {
        if std::mem::take(&mut self.stores_weights) {
            self.agent.weights.settle(stored);
        }
    }

    /// The host has answered a question about a call, or will not.
    pub(crate) fn answered(&mut self, call: CallIndex) {
        if let Some(at) = self.questions.iter().position(|asked| *asked == call) {
            self.questions.swap_remove(at);
        }
    }

    /// The session's status as the journal's head shows it; `asks` if the host is about to be
    /// asked something.
    pub(crate) fn status(&self, asks: bool) -> SessionStatus {
        match &self.state.outcome {
            _ if self.is_parked() && !asks => SessionStatus::Waiting,
            _ if self.state.is_open() => SessionStatus::Open,
            Some(Outcome::Failed(_)) => SessionStatus::Failed,
            Some(Outcome::Cancelled(_)) => SessionStatus::Cancelled,
            _ => SessionStatus::Finished,
        }
    }

    /// The snapshot that is due with the next append, if one is, and what is stored with it.
    pub(crate) fn due_snapshot(&self, limits: &EngineLimits) -> Option<(Vec<u8>, Covered)> {
        let next = self.state.next_seq;
        if next.0 < limits.snapshot_events_min
            || next.0 - self.covered.seq.0 < limits.snapshot_every_events
        {
            return None;
        }
        let covered = Covered { seq: next, messages: self.state.settled_messages() };
        Some((self.state.snapshot(self.covered.messages), covered))
    }

    /// Decides all waiting facts. Returns the events and refused facts; the state has moved on,
    /// ahead of the journal, so nothing may act on it until the events are durable.
    pub(crate) fn decide_all(&mut self, at_us: i64) -> Decided {
        let mut decided = Decided::default();
        while let Some(letter) = self.inbox.pop_front() {
            if matches!(
                letter.fact,
                Fact::Input { .. } | Fact::Reopened { .. } | Fact::Forked { .. }
            ) {
                self.turn += 1;
                self.report = None;
                decided.begins_turn = true;
            }
            let waited = self.state.waits_for_people();
            let at_us = at_us.max(letter.not_before_us);
            let now = Moment { at_us, seed: Moment::seed_of(&self.id, self.state.next_seq) };
            let made = decide(&mut self.state, &self.agent.spec, letter.fact, now);
            match (&made, letter.reply) {
                (Ok(events), Some(reply)) if !events.is_empty() => decided.replies.push(reply),
                (_, Some(reply)) => decided.stale.push(reply),
                (_, None) => {}
            }
            match made {
                Ok(events) => decided.events.extend(events),
                Err(refused) => decided.refused.push(refused),
            }
            if waited && !self.state.waits_for_people() {
                // The time that a person took does not count.
                self.turn += 1;
                decided.begins_turn = true;
            }
        }
        decided.commands = commands(&self.state, &self.agent.spec, &decided.events);
        decided
    }
}

/// What came of a session's waiting facts.
#[derive(Default)]
pub(crate) struct Decided {
    pub(crate) events: Vec<Event>,
    pub(crate) commands: Vec<Command>,
    pub(crate) refused: Vec<Refused>,
    /// Those whose decisions are among the events.
    pub(crate) replies: Vec<Reply<()>>,
    /// Those whose decisions came to nothing.
    pub(crate) stale: Vec<Reply<()>>,
    /// Whether a turn began, or goes on here.
    pub(crate) begins_turn: bool,
}

/// What keeps a session's calls at one endpoint, the same in every process.
fn affinity_of(session: &SessionId) -> u64 {
    Moment::seed_of(session, Seq(0)).max(1)
}

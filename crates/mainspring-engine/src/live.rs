//! One session that is alive on a shard: its state, its mailbox, and what is under way for it.
//!
//! Invariant: at most one append is under way, and no command of an event is carried out, and no
//! watcher sees it, before its append has been acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use mainspring_journal::{AppendMode, SessionStatus};
use mainspring_session::{
    Command, Event, Fact, Moment, Outcome, Refused, Seq, SessionId, State, commands, decide,
};
use tokio::task::AbortHandle;

use crate::agent::Agent;
use crate::history::History;
use crate::mail::{Opened, Reply};
use crate::outcome::SessionReport;
use crate::watch::Watch;

/// Names a live session on its shard. Never used twice.
pub(crate) type Key = u64;

/// A fact waiting for its turn.
pub(crate) struct Letter {
    pub(crate) fact: Fact,
    /// The fact is at least as late as this, whatever the clock says, in microseconds.
    pub(crate) not_before_us: i64,
}

impl From<Fact> for Letter {
    fn from(fact: Fact) -> Self {
        Self { fact, not_before_us: i64::MIN }
    }
}

/// Events that are being made durable, and what follows once they are.
pub(crate) struct Pending {
    pub(crate) commands: Vec<Command>,
    pub(crate) first: Seq,
    pub(crate) at_us: i64,
    pub(crate) count: u32,
    /// The events as JSON lines, for those who watch.
    pub(crate) lines: Vec<u8>,
    /// The report, if the events end the turn.
    pub(crate) report: Option<SessionReport>,
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
    pub(crate) model: Option<AbortHandle>,
    /// Jobs whose end has not been heard of.
    pub(crate) jobs: Vec<u64>,
    /// Counts turns, to tell a turn's deadline from an older one's.
    pub(crate) turn: u64,
    /// Position after the last durable event.
    pub(crate) durable: Seq,
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
    pub(crate) fn new(id: SessionId, agent: Arc<Agent>, state: State, mode: AppendMode) -> Self {
        let durable = state.next_seq;
        Self {
            id,
            agent,
            state,
            inbox: VecDeque::new(),
            pending: None,
            mode,
            history: History::default(),
            model: None,
            jobs: Vec::new(),
            turn: 0,
            durable,
            report: None,
            opening: Vec::new(),
            waiting: Vec::new(),
            cancelling: Vec::new(),
            watched: Rc::new(Cell::new(false)),
            unwatched_text: Rc::default(),
            watch: Watch::default(),
        }
    }

    /// Whether nothing is left to do or to wait for.
    pub(crate) fn is_over(&self) -> bool {
        !self.state.is_open()
            && self.inbox.is_empty()
            && self.pending.is_none()
            && self.jobs.is_empty()
    }

    /// The session's status as the journal's head shows it.
    pub(crate) fn status(&self) -> SessionStatus {
        match &self.state.outcome {
            _ if self.state.is_open() => SessionStatus::Open,
            Some(Outcome::Failed(_)) => SessionStatus::Failed,
            Some(Outcome::Cancelled(_)) => SessionStatus::Cancelled,
            _ => SessionStatus::Finished,
        }
    }

    /// Decides all waiting facts. Returns the events and refused facts; the state has moved on,
    /// ahead of the journal, so nothing may act on it until the events are durable.
    pub(crate) fn decide_all(&mut self, at_us: i64, mut seed: impl FnMut() -> u64) -> Decided {
        let mut decided = Decided::default();
        while let Some(letter) = self.inbox.pop_front() {
            if matches!(letter.fact, Fact::Input { .. } | Fact::Reopened { .. }) {
                self.turn += 1;
                self.report = None;
                decided.begins_turn = true;
            }
            let at_us = at_us.max(letter.not_before_us);
            let now = Moment { at_us, seed: seed() };
            match decide(&mut self.state, &self.agent.spec, letter.fact, now) {
                Ok(events) => decided.events.extend(events),
                Err(refused) => decided.refused.push(refused),
            }
        }
        decided.commands = commands(&self.state, &decided.events);
        decided
    }
}

/// What came of a session's waiting facts.
#[derive(Default)]
pub(crate) struct Decided {
    pub(crate) events: Vec<Event>,
    pub(crate) commands: Vec<Command>,
    pub(crate) refused: Vec<Refused>,
    /// Whether a turn began, or goes on here.
    pub(crate) begins_turn: bool,
}

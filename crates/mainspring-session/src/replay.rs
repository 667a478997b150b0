//! Runs a recorded session again against what it was told: each recorded event that came from
//! outside becomes the fact that led to it, and `decide` must give the recorded events again.
//!
//! Invariant: nothing is asked of the world. What comes out is either "the same to the byte" or the
//! first event that differs.

use crate::budget::Funding;
use crate::checks::CheckFinding;
use crate::decide::{Fact, Moment, decide};
use crate::event::{
    AnswerRejected, Event, ModelCallFinished, Problem, Record, SCHEMA_VERSION, SessionForked,
    ToolCallFailed,
};
use crate::ids::{BlobHash, Seq};
use crate::spec::AgentSpec;
use crate::state::{CallStatus, Phase, State, ToolCallState};
use crate::summary::Summary;

/// What a replay needs to know of the world it leaves alone.
pub trait Recorded {
    /// The spec of this hash; none if it is not to be had.
    fn spec(&mut self, fingerprint: &BlobHash) -> Option<AgentSpec>;

    /// What the checks find wrong with a recorded answer, made anew.
    fn problems(&mut self, spec: &AgentSpec, finished: &ModelCallFinished) -> Vec<Problem>;
}

/// Where a replay left the record.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Position of the first event that differs.
    pub seq: Seq,
    /// The recorded event; none if the log ends before it.
    pub recorded: Option<String>,
    /// What came out instead; none if nothing did.
    pub replayed: Option<String>,
    /// Why, in words.
    pub why: String,
}

/// How a replay ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// How many events came out the same.
    pub events: u64,
    /// The state after them.
    pub state: State,
    /// The first difference; none if there is none.
    pub divergence: Option<Divergence>,
}

/// Replays a log, from its first event to its last.
pub fn replay(records: &[Record], recorded: &mut impl Recorded) -> Replayed {
    let mut player = Player { records, at: 0, state: State::default(), spec: None };
    while player.at < records.len() {
        if let Err(divergence) = player.step(recorded) {
            let (events, state) = (player.at as u64, player.folded());
            return Replayed { events, state, divergence: Some(divergence) };
        }
    }
    Replayed { events: player.at as u64, state: player.state, divergence: None }
}

struct Player<'a> {
    records: &'a [Record],
    /// How many events have come out the same.
    at: usize,
    /// The state after them, and inside a step the state after the whole decision.
    state: State,
    spec: Option<(BlobHash, AgentSpec)>,
}

impl Player<'_> {
    /// Replays one fact and compares all that follows from it.
    fn step(&mut self, recorded: &mut impl Recorded) -> Result<(), Divergence> {
        let record = &self.records[self.at];
        if record.schema < SCHEMA_VERSION {
            let why = format!(
                "the session was recorded in event format {}, a replay follows format \
                 {SCHEMA_VERSION}",
                record.schema
            );
            return Err(self.differs(None, &why));
        }
        let event = record.event().map_err(|error| self.differs(None, &error.to_string()))?;
        if event == Event::Unknown {
            self.state.fold(&event);
            self.at += 1;
            return Ok(());
        }
        self.choose_spec(&event, recorded)?;
        let Some((_, spec)) = &self.spec else {
            return Err(self.differs(None, "the log does not begin with the start of a session"));
        };
        let Some(fact) = self.fact(&event, spec, recorded) else {
            return Err(self.differs(None, "nothing that was recorded leads to this event"));
        };
        let session = match &event {
            Event::SessionStarted(started) => Some(&started.session),
            Event::SessionForked(forked) => Some(&forked.session),
            _ => self.state.session.as_ref(),
        };
        let seed = session.map_or(0, |session| Moment::seed_of(session, self.state.next_seq));
        let now = Moment { at_us: self.moment(&fact, record), seed };
        let made = match decide(&mut self.state, spec, fact, now) {
            Ok(made) => made,
            Err(refused) => return Err(self.differs(None, &refused.to_string())),
        };
        if made.is_empty() {
            return Err(self.differs(None, "nothing follows from what was recorded"));
        }
        for (position, event) in made.iter().enumerate() {
            if position > 0 && self.branches_off(event) {
                self.state = self.folded();
                return Ok(());
            }
            self.compare(event)?;
        }
        Ok(())
    }

    /// Whether the log leaves its parent's here, between two events of one decision.
    fn branches_off(&self, made: &Event) -> bool {
        let next = self.records.get(self.at).map(Record::event);
        matches!(next, Some(Ok(Event::SessionForked(_))))
            && !matches!(made, Event::SessionForked(_))
    }

    /// The state after the events that came out the same.
    fn folded(&self) -> State {
        let mut state = State::default();
        for record in &self.records[..self.at] {
            // What came out the same could be read.
            state.fold(&record.event().unwrap_or(Event::Unknown));
        }
        state
    }

    fn choose_spec(
        &mut self,
        event: &Event,
        recorded: &mut impl Recorded,
    ) -> Result<(), Divergence> {
        let fingerprint = match event {
            Event::SessionStarted(started) => &started.fingerprint,
            Event::SessionForked(forked) => &forked.fingerprint,
            Event::EpochTaken(taken) => &taken.fingerprint,
            _ => return Ok(()),
        };
        if self.spec.as_ref().is_none_or(|(known, _)| known != fingerprint) {
            let Some(mut spec) = recorded.spec(fingerprint) else {
                return Err(self.differs(None, "the agent of this event is not in the store"));
            };
            let learnt = spec.route.as_ref().is_some_and(|route| route.weights.is_some());
            if learnt && spec.weights.is_none() {
                let why = "the weights of the agent of this event are not in the store";
                return Err(self.differs(None, why));
            }
            // What was recorded has been cut already.
            spec.limits.tool_result_bytes_max = u64::MAX;
            self.spec = Some((fingerprint.clone(), spec));
        }
        Ok(())
    }

    fn compare(&mut self, made: &Event) -> Result<(), Divergence> {
        let replayed = json(made);
        let Some(record) = self.records.get(self.at) else {
            return Err(self.differs(Some(replayed), "the recorded log ends here"));
        };
        // The stored text first: it is the same unless an older or newer version wrote it.
        let same = record.json.get() == replayed || record.event().is_ok_and(|it| it == *made);
        if !same {
            return Err(self.differs(Some(replayed), "another event comes out"));
        }
        self.at += 1;
        Ok(())
    }

    fn differs(&self, replayed: Option<String>, why: &str) -> Divergence {
        let recorded = self.records.get(self.at);
        let past = || self.records.last().map_or(Seq(0), |record| Seq(record.seq.0 + 1));
        Divergence {
            seq: recorded.map_or_else(past, |record| record.seq),
            recorded: recorded.map(|record| record.json.get().to_owned()),
            replayed,
            why: why.to_owned(),
        }
    }

    /// When the fact became known: at the time of its events, and a timer never before its time.
    fn moment(&self, fact: &Fact, record: &Record) -> i64 {
        match (fact, &self.state.phase) {
            (Fact::TimerFired, Phase::Backoff(_, due_us)) => record.at_us.max(*due_us),
            (Fact::TimerFired, Phase::Acting(_)) => {
                let due = self.started_here().filter_map(|call| match call.status {
                    CallStatus::Backoff(due_us) => Some(due_us),
                    _ => None,
                });
                due.max().map_or(record.at_us, |due_us| record.at_us.max(due_us))
            }
            _ => record.at_us,
        }
    }

    /// The calls that the next records start, as long as one decision may have started them: those
    /// of one are in the order of the calls.
    fn started_here(&self) -> impl Iterator<Item = &ToolCallState> {
        let mut last = None;
        let starts = self.records[self.at..].iter().map_while(move |record| match record.event() {
            Ok(Event::ToolCallStarted(started)) if last < Some(started.call) => {
                last = Some(started.call);
                last
            }
            _ => None,
        });
        starts.filter_map(|call| self.state.call(call))
    }

    /// The fact that led to an event; none if such an event never comes first.
    fn fact(&self, event: &Event, spec: &AgentSpec, recorded: &mut impl Recorded) -> Option<Fact> {
        Some(match event.clone() {
            Event::InputReceived(event) => {
                Fact::Input { content: event.content, step_class: event.step_class }
            }
            Event::ModelCallFinished(event) => {
                let problems = recorded.problems(spec, &event);
                answered(event, problems)
            }
            Event::ModelCallFailed(event) => Fact::ModelFailed {
                step: event.step,
                attempt: event.attempt,
                error: event.error,
                retry_after_ms: event.retry_after_ms,
                streamed_chars: event.streamed_chars,
            },
            Event::SummaryFinished(event) => Fact::SummaryEnded {
                step: event.step,
                outcome: Ok(Summary { text: event.text, usage: event.usage, timing: event.timing }),
            },
            Event::SummaryFailed(event) => {
                Fact::SummaryEnded { step: event.step, outcome: Err(event.error) }
            }
            Event::AnswerVerified(_) => Fact::Verified { rejection: None },
            Event::AnswerRejected(event) => verdict(event)?,
            Event::CheckFinished(event) => Fact::Checked {
                step: event.step,
                check: event.check,
                finding: CheckFinding {
                    score: event.score,
                    reason: event.reason,
                    usage: event.usage,
                    duration_us: event.duration_us,
                    error: event.error,
                },
            },
            event => self.owner_fact(event)?,
        })
    }

    /// The fact of a new session or owner, of who pays, or of a tool call.
    fn owner_fact(&self, event: Event) -> Option<Fact> {
        Some(match event {
            Event::SessionStarted(event) => Fact::Started {
                session: event.session,
                origin: event.origin,
                fingerprint: event.fingerprint,
                store: event.store,
                held: event.held,
            },
            Event::SessionForked(SessionForked {
                session,
                origin,
                fingerprint,
                store,
                edit,
                ..
            }) => {
                let funding = self.funded_next();
                Fact::Forked { session, origin, fingerprint, store, edit, funding }
            }
            Event::BudgetSet(funding) => Fact::Funded { funding },
            Event::EpochTaken(event) => Fact::Reopened {
                epoch: event.epoch,
                fingerprint: event.fingerprint,
                store: event.store,
                held: event.held,
            },
            event => self.tool_fact(event)?,
        })
    }

    /// Who pays for a fork, if that came with it.
    fn funded_next(&self) -> Option<Funding> {
        match self.records.get(self.at + 1)?.event() {
            Ok(Event::BudgetSet(funding)) => Some(funding),
            _ => None,
        }
    }

    fn tool_fact(&self, event: Event) -> Option<Fact> {
        Some(match event {
            Event::ToolCallFinished(event) => Fact::ToolReturned {
                call: event.call,
                attempt: self.state.call(event.call)?.attempt,
                text: event.text,
                duration_us: event.duration_us,
            },
            Event::ToolCallFailed(ToolCallFailed { call, attempt, error, .. }) => {
                Fact::ToolFailed { call, attempt, error }
            }
            Event::ToolCallLate(event) => match (event.text, event.error) {
                (Some(text), _) => {
                    let (call, attempt) = (event.call, event.attempt);
                    Fact::ToolReturned { call, attempt, text, duration_us: 0 }
                }
                (None, error) => {
                    Fact::ToolFailed { call: event.call, attempt: event.attempt, error: error? }
                }
            },
            Event::ToolCallStarted(event) => match self.state.call(event.call)?.status {
                CallStatus::Planned(_) => Fact::PolicyAnswered { call: event.call, needed: false },
                _ => Fact::TimerFired,
            },
            Event::ApprovalRequested(event) => {
                Fact::PolicyAnswered { call: event.call, needed: true }
            }
            Event::ApprovalDecided(event) => Fact::ApprovalDecided {
                call: event.call,
                approval: event.approval,
                decision: event.decision,
                by: event.by,
            },
            Event::EffectResolved(event) => {
                Fact::EffectResolved { call: event.call, outcome: event.outcome, by: event.by }
            }
            Event::ModelCallStarted(_) => Fact::TimerFired,
            Event::CancelRequested { reason } => Fact::CancelRequested { reason },
            Event::LimitReached { .. } => Fact::TurnTimedOut,
            _ => return None,
        })
    }
}

fn answered(event: ModelCallFinished, problems: Vec<Problem>) -> Fact {
    let ModelCallFinished { step, attempt, answer, finish_reason, usage, timing, notes, .. } =
        event;
    Fact::ModelAnswered { step, attempt, answer, finish_reason, usage, timing, notes, problems }
}

/// The user's function rejected an answer; a rejection by the checks follows by itself.
fn verdict(event: AnswerRejected) -> Option<Fact> {
    let problem = event.problems.into_iter().find(|problem| problem.check == "verify")?;
    Some(Fact::Verified { rejection: Some(problem.message) })
}

fn json(event: &Event) -> String {
    let mut out = Vec::new();
    event.write_json(&mut out);
    String::from_utf8(out).expect("JSON is UTF-8")
}

//! What a session has spent, as part of its state; and what its next model call is expected to use.
//!
//! Nothing is kept of a session that nobody keeps an account of. The figures are folded from the
//! log, so that they are the same after a crash, in a fork and in a replay.

use serde::{Deserialize, Serialize};

use crate::budget::{Amount, Budget, Funding, Left, usd_to_nanos};
use crate::compact;
use crate::context::{ActiveSummary, SummaryFinished};
use crate::decide::Moment;
use crate::error::ErrorCode;
use crate::event::{Event, ModelCallFinished, TurnClock};
use crate::message::Usage;
use crate::notes::CallNotes;
use crate::spec::{AgentSpec, ModelSpec, Price};
use crate::state::State;
use crate::summary::SUMMARY_INSTRUCTIONS;

/// Bytes of text in a token of a summary's request. English text has about 4, JSON about 3; the
/// smaller number expects more tokens.
const BYTES_PER_TOKEN: u64 = 3;
/// Tokens that an answer is expected to have, unless the request allows only fewer.
pub const OUTPUT_TOKENS_LIKELY: u64 = 1_024;

/// What a session pays for, and with what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spending {
    /// Who pays.
    #[serde(skip_serializing_if = "Funding::is_empty")]
    pub funding: Funding,
    /// What counts against the session's own budget; a fork goes on from its parent's.
    #[serde(skip_serializing_if = "Amount::is_nothing")]
    pub spent: Amount,
    /// What this session alone has spent since it began or was forked off.
    #[serde(skip_serializing_if = "Amount::is_nothing")]
    pub charged: Amount,
    /// What the model call under way is expected to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Amount>,
    /// Whether a soft limit, of whoever pays, was passed when the last call ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub low: bool,
    /// Wall time of turns that is over, in milliseconds, where the budget counts it.
    #[serde(skip_serializing_if = "is_zero")]
    pub used_ms: u64,
    /// Since when a process has been running the turn, in microseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_since_us: Option<i64>,
}

/// What a model call may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// What it is expected to use.
    pub likely: Amount,
    /// What it uses if it is read and not answered.
    pub read: Amount,
    /// Dollars that it cannot exceed, in billionths; none without a bound.
    pub usd_nanos_max: Option<u64>,
    /// Tokens that it cannot exceed; none without a bound.
    pub tokens_max: Option<u64>,
}

impl Spending {
    /// Whether nobody keeps an account of the session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is left of the session's own budget, beside what is reserved; none without one.
    #[must_use]
    pub fn left(&self) -> Option<Left> {
        let budget = self.funding.budget.as_ref()?;
        Some(budget.left(self.spent.plus(self.reserved.unwrap_or_default())))
    }

    /// Whether a soft limit is passed, so that only the cheapest model may be asked.
    #[must_use]
    pub fn is_low(&self) -> bool {
        let own = self.funding.budget.as_ref();
        self.low || own.is_some_and(|budget| budget.is_low(self.spent))
    }

    /// Milliseconds that the session's turns may still take at a time; none if nothing counts them.
    #[must_use]
    pub fn ms_left(&self, at_us: i64) -> Option<u64> {
        let bound = self.funding.budget.as_ref()?.ms?;
        Some(bound.saturating_sub(self.used_ms).saturating_sub(self.running_ms(at_us)))
    }

    /// For how long a process has been running the turn, in milliseconds.
    pub(crate) fn running_ms(&self, at_us: i64) -> u64 {
        let since = self.running_since_us.unwrap_or(at_us);
        u64::try_from(at_us.saturating_sub(since) / 1000).unwrap_or(0)
    }

    pub(crate) fn fund(&mut self, funding: &Funding) {
        if self.charged.is_nothing() {
            // What a fork has not spent itself is not spent of a budget of its own.
            self.spent = Amount::default();
            self.used_ms = 0;
        }
        self.funding = funding.clone();
        self.low = false;
    }

    /// A fork pays for itself; what was under way elsewhere is paid for there.
    pub(crate) fn fork(&mut self) {
        self.charged = Amount::default();
        self.reserved = None;
        self.running_since_us = None;
    }

    pub(crate) fn settle(&mut self, used: Amount) {
        self.reserved = None;
        if !self.funding.is_empty() {
            self.spent = self.spent.plus(used);
            self.charged = self.charged.plus(used);
        }
    }

    /// Notes an answer. A server that does not say what it used is taken at what was expected.
    pub(crate) fn answered(&mut self, finished: &ModelCallFinished) {
        if self.funding.is_empty() {
            return;
        }
        let expected = self.reserved.unwrap_or_else(Amount::one_call);
        let ModelCallFinished { usage, cost_usd, notes, .. } = finished;
        self.settle(charge_of_answer(*usage, *cost_usd, notes, expected));
        self.low = notes.budget_low;
    }

    /// Notes a summary.
    pub(crate) fn summarised(&mut self, finished: &SummaryFinished) {
        let expected = self.reserved.unwrap_or_else(Amount::one_call);
        let SummaryFinished { usage, cost_usd, .. } = finished;
        self.settle(charge_of_answer(*usage, *cost_usd, &CallNotes::default(), expected));
    }

    /// Notes that a turn is over: a call that was dropped is taken at what was expected of it.
    pub(crate) fn turn_ended(&mut self) {
        if let Some(reserved) = self.reserved {
            self.settle(reserved);
        }
    }

    pub(crate) fn clock(&mut self, clock: &TurnClock) {
        self.used_ms = self.used_ms.saturating_add(self.running_ms(clock.clock_us));
        self.running_since_us = clock.running.then_some(clock.clock_us);
    }
}

/// What a call that was answered has used: its cost with that of a second call beside it, if one was
/// made, and what was expected where the server does not count.
#[must_use]
pub fn charge_of_answer(
    usage: Usage,
    cost_usd: Option<f64>,
    notes: &CallNotes,
    expected: Amount,
) -> Amount {
    if usage.total() == 0 {
        return expected;
    }
    let used = Amount::of_call(usage, cost_usd);
    match notes.hedge {
        Some(_) => used.plus(Amount { tokens: usage.input_tokens, ..Amount::one_call() }),
        None => used,
    }
}

/// What a failed call of a session is taken to have used; none where nobody keeps an account.
pub(crate) fn failed_call(state: &State, spec: &AgentSpec, code: &ErrorCode) -> Option<Amount> {
    let reserved = state.spending.reserved?;
    Some(charge_of_failure(code, reserved, estimate(state, spec, state.tier).read))
}

/// What a call that failed is taken to have used: nothing where the server refused it or was not
/// reached, what it has read where it may have begun to write, all that was expected where nobody
/// knows, and not even a call where it was not made.
#[must_use]
pub fn charge_of_failure(code: &ErrorCode, likely: Amount, read: Amount) -> Amount {
    let refused = [
        ErrorCode::MODEL_AUTH,
        ErrorCode::MODEL_BAD_REQUEST,
        ErrorCode::MODEL_CONNECT,
        ErrorCode::MODEL_CONTENT_FILTER,
        ErrorCode::MODEL_CONTEXT_OVERFLOW,
        ErrorCode::MODEL_NOT_FOUND,
        ErrorCode::MODEL_RATE_LIMITED,
        ErrorCode::MODEL_SERVER_ERROR,
    ];
    let begun = [
        ErrorCode::MODEL_ADAPTER_FAILED,
        ErrorCode::MODEL_BAD_RESPONSE,
        ErrorCode::MODEL_INTERRUPTED,
        ErrorCode::MODEL_TIMEOUT,
    ];
    if refused.contains(code) {
        Amount::one_call()
    } else if begun.contains(code) {
        read
    } else if *code == ErrorCode::PROCESS_LOST || *code == ErrorCode::INTERNAL {
        likely
    } else {
        Amount::default()
    }
}

/// What the next call of a model with the conversation as it is sent may use.
#[must_use]
pub fn estimate(state: &State, spec: &AgentSpec, tier: u32) -> Estimate {
    let Some(model) = spec.models.get(tier as usize) else { return Estimate::default() };
    let input = compact::input_tokens(state, spec, model, tier);
    Estimate::of_call(model, input)
}

/// What a summary may use: a call of its own, with so much text.
#[must_use]
pub fn estimate_summary(spec: &AgentSpec, summary: &ActiveSummary) -> Estimate {
    let Some(model) = spec.models.get(summary.tier as usize) else { return Estimate::default() };
    let bytes = summary.bytes_max + SUMMARY_INSTRUCTIONS.len() as u64;
    Estimate::of_call(model, InputTokens { likely: bytes / BYTES_PER_TOKEN, most: bytes + 256 })
}

/// Tokens that a call reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputTokens {
    /// As many as are expected.
    pub likely: u64,
    /// As many as there can be.
    pub most: u64,
}

impl Estimate {
    /// What a call that reads so many tokens may use.
    #[must_use]
    pub fn of_call(model: &ModelSpec, input: InputTokens) -> Self {
        let (output_max, asked) = output_bound(model);
        let output_tokens = match output_max {
            Some(bound) if asked => bound,
            bound => bound.unwrap_or(u64::MAX).min(OUTPUT_TOKENS_LIKELY),
        };
        let amount = |usage| Amount::of_call(usage, model.price.map(|price| price.of(usage)));
        let reading = |input_tokens| Usage { input_tokens, ..Usage::default() };
        let most = reading(input.most.max(input.likely));
        let full = output_max.map(|output_tokens| Usage { output_tokens, ..most });
        let dearest = model.price.map(|price| Price {
            input_usd: price.input_usd.max(price.cache_write_usd.unwrap_or(0.0)),
            cache_write_usd: None,
            ..price
        });
        let usd_nanos_max = match (dearest, full) {
            (None, _) => Some(0),
            (Some(price), Some(full)) => Some(usd_to_nanos(price.of(full))),
            // What costs nothing to write has a bound all the same.
            (Some(price), None) if price.output_usd == 0.0 => Some(usd_to_nanos(price.of(most))),
            (Some(_), None) => None,
        };
        Self {
            likely: amount(Usage { output_tokens, ..reading(input.likely) }),
            read: amount(reading(input.likely)),
            usd_nanos_max,
            tokens_max: full.map(|full| full.total()),
        }
    }
}

/// Tokens that a model can write in one call, and whether it is the request that says so.
fn output_bound(model: &ModelSpec) -> (Option<u64>, bool) {
    match compact::asked_tokens(model) {
        Some(asked) => (Some(asked), true),
        None => (model.output_tokens_max.or(model.context_tokens), false),
    }
}

/// Starts or stops the clock of a turn whose budget counts time, after a decision: it runs while
/// a process can do something for the turn.
pub(crate) fn clock_after(state: &State, now: Moment) -> Option<Event> {
    let counts = state.spending.funding.budget.as_ref().is_some_and(|budget| budget.ms.is_some());
    let runs = counts && state.is_open() && !state.held && !state.waits_for_people();
    (runs != state.spending.running_since_us.is_some())
        .then_some(Event::TurnClock(TurnClock { clock_us: now.at_us, running: runs }))
}

/// Stops the clock before the end of a turn.
pub(crate) fn clock_before(state: &State, next: &Event, now: Moment) -> Option<Event> {
    (next.is_terminal() && state.spending.running_since_us.is_some())
        .then_some(Event::TurnClock(TurnClock { clock_us: now.at_us, running: false }))
}

/// The tier of the cheapest model whose price is known; the first if none is.
pub(crate) fn cheapest_tier(spec: &AgentSpec) -> u32 {
    let cost = |price: &Price| price.input_usd + price.output_usd;
    let priced = (0..).zip(&spec.models).filter_map(|(tier, model)| Some((tier, model.price?)));
    let cheapest = priced.min_by(|(_, one), (_, other)| cost(one).total_cmp(&cost(other)));
    cheapest.map_or(0, |(tier, _)| tier)
}

impl State {
    /// The tier that a soft limit leaves; none while no soft limit is passed.
    #[must_use]
    pub fn frugal_tier(&self, spec: &AgentSpec) -> Option<u32> {
        self.spending.is_low().then(|| cheapest_tier(spec))
    }

    /// The budget of the session itself.
    #[must_use]
    pub fn budget(&self) -> Option<&Budget> {
        self.spending.funding.budget.as_ref()
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

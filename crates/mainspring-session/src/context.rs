//! The context of a model call: the events about what of the conversation a model gets to read, and
//! the part of the state that is folded from them.
//!
//! The conversation itself (`State::messages`) stays whole. What is sent is a [`View`] of it: ranges
//! of messages, some of them cut, and perhaps a summary of what was left out (`view.rs`). A view
//! stands until the next compaction and only grows at its end, so that the bytes before the newest
//! message stay the same and providers' caches hit. When a new view is due, and which one, stands in
//! `compact.rs`; how long a view is in tokens, in `tokens.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::budget::Amount;
use crate::deferred;
use crate::error::Failure;
use crate::event::Timing;
use crate::message::{Message, ToolCall, Usage};
use crate::notes::CallNotes;
use crate::state::ActiveModelCall;
use crate::tokens::{Meter, Weight};
use crate::view;

/// The strongest thing that a compaction did, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompactionMethod {
    /// It cut the middle out of old tool results.
    Trim,
    /// It put a model's summary in the place of the oldest messages.
    Summarise,
    /// It left out the oldest messages.
    Drop,
    /// It cut inside the newest messages, or left out tool calls of the newest answer.
    Squeeze,
}

/// Why a compaction was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompactionReason {
    /// The next call was estimated to exceed what the model can read.
    Window,
    /// The model's server refused the call as too long.
    Overflow,
}

/// A message that is sent with its texts cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trim {
    /// Position of the message in the conversation.
    pub message: u32,
    /// Bytes that each of its texts keeps at most, head and tail together.
    pub bytes: u32,
}

/// From here on, models read another view of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextCompacted {
    /// The step before whose model call it was made.
    pub step: u32,
    /// The strongest thing it did.
    pub method: CompactionMethod,
    /// Why.
    pub reason: CompactionReason,
    /// Messages that are sent: half-open ranges over the conversation, in order. The last one goes
    /// on with what is added later.
    pub kept: Vec<(u32, u32)>,
    /// Of those, the ones that are cut, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trimmed: Vec<Trim>,
    /// What stands in the place of the messages left out: a model's summary of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Estimated tokens of the call before.
    pub tokens_before: u64,
    /// Estimated tokens of the call after.
    pub tokens_after: u64,
    /// What was aimed at.
    pub tokens_target: u64,
}

/// A model was about to be asked for a summary of the oldest messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryStarted {
    /// The step before whose model call it is made.
    pub step: u32,
    /// The model that is asked, by position in the agent's list.
    pub tier: u32,
    /// The messages that are summarised, half-open; the summary of those before them is included.
    pub messages: (u32, u32),
    /// Bytes of their text that the model gets to read.
    pub bytes_max: u64,
    /// What it was expected to use, where somebody keeps an account of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Amount>,
}

/// A model gave a summary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryFinished {
    /// The step.
    pub step: u32,
    /// The summary.
    pub text: String,
    /// Tokens, as the provider counted them.
    pub usage: Usage,
    /// US dollars, if the price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// How long it took.
    pub timing: Timing,
}

/// There is no summary; the messages are left out without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryFailed {
    /// The step.
    pub step: u32,
    /// Why not.
    pub error: Failure,
    /// What it is taken to have used, where somebody keeps an account of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged: Option<Amount>,
}

/// A summary that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveSummary {
    /// The step before whose model call it is made.
    pub step: u32,
    /// The model that is asked, by position in the agent's list.
    pub tier: u32,
    /// The messages that are summarised, half-open.
    pub messages: (u32, u32),
    /// Bytes of their text that the model gets to read.
    pub bytes_max: u64,
}

/// What of the conversation is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    /// How many compactions led to it; 0: everything is sent.
    pub generation: u32,
    /// The messages sent, as in [`ContextCompacted`]; the last range has no end.
    pub kept: Vec<(u32, u32)>,
    /// The messages that are cut.
    pub trimmed: Vec<Trim>,
    /// What stands for the messages left out.
    pub summary: Option<String>,
}

/// What of the state the context of model calls depends on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContextState {
    /// What of the conversation is sent.
    pub view: View,
    /// The view that the last call had.
    pub(crate) called: u32,
    /// Messages of the conversation whose weight is known.
    pub(crate) weighed: u32,
    /// The weight of the view up to there.
    pub(crate) weight: Weight,
    /// What is known of each model's tokens, by position in the agent's list.
    pub(crate) meters: BTreeMap<u32, Meter>,
    /// The attempt at the step under way that was refused as too long.
    pub(crate) overflow: Option<Overflow>,
    /// How the making of a summary for the step to come ended; none if none was tried.
    pub(crate) summary: Option<SummaryOutcome>,
    /// Whether calls of `tool_call` in the pending answer stand for the tools that they name.
    pub(crate) deferring: bool,
    /// Prompt caches that were lost without a reason, over the whole session.
    pub cache_busts: u64,
    /// Tokens that were read anew because of that.
    pub cache_bust_tokens: u64,
}

/// A model call that was refused as too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overflow {
    /// The step.
    pub(crate) step: u32,
    /// The attempt.
    pub(crate) attempt: u32,
    /// Tokens that it was estimated to have.
    pub(crate) tokens: u64,
    /// How many attempts at the step have been refused so.
    pub(crate) count: u32,
    /// Whether a compaction has answered it.
    pub(crate) answered: bool,
}

/// How the making of a summary ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SummaryOutcome {
    /// With this text about the messages up to this one.
    Text(String, u32),
    /// Without one.
    None,
}

impl ContextState {
    /// The weight of what is sent of a conversation.
    pub(crate) fn weight(&self, messages: &[Message]) -> Weight {
        if self.view.generation > 0 && self.weighed == 0 {
            return view::weight(messages, &self.view);
        }
        let new = messages.get(self.weighed as usize..).unwrap_or(&[]);
        new.iter().fold(self.weight, |sum, message| sum.plus(Weight::of(message)))
    }

    /// Whether the next call begins with other bytes than the last, since less is sent: what a
    /// provider has in its cache of the conversation is lost anyway, so another model may be asked.
    #[must_use]
    pub fn is_boundary(&self) -> bool {
        self.view.generation != self.called
    }

    /// A call is made with the conversation as it stands.
    pub(crate) fn called(&mut self, messages: &[Message]) {
        self.called = self.view.generation;
        self.weigh(messages);
    }

    fn weigh(&mut self, messages: &[Message]) {
        self.weight = self.weight(messages);
        self.weighed = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    }

    /// What was weighed has been changed since.
    pub(crate) fn weigh_anew(&mut self) {
        self.weighed = 0;
        self.weight = Weight::default();
    }

    /// A call was answered.
    pub(crate) fn answered(&mut self, tier: u32, usage: Usage, notes: &CallNotes) {
        let (generation, weight) = (self.view.generation, self.weight);
        self.meters.entry(tier).or_default().learn(generation, weight, usage.input_tokens);
        self.overflow = None;
        self.summary = None;
        self.deferring = notes.deferring;
        if let Some(bust) = &notes.cache_bust {
            self.cache_busts += 1;
            self.cache_bust_tokens = self.cache_bust_tokens.saturating_add(bust.lost_tokens);
        }
    }

    /// A call was refused as too long.
    pub(crate) fn refused(&mut self, call: ActiveModelCall) {
        let meter = self.meters.entry(call.tier).or_default();
        let tokens = meter.base(Weight::default()) + i128::from(meter.tokens(self.weight));
        let tokens = u64::try_from(tokens).unwrap_or(0).max(1);
        meter.refuse(tokens);
        let before = self.overflow.filter(|before| before.step == call.step);
        let count = 1 + before.map_or(0, |before| before.count);
        let (step, attempt) = (call.step, call.attempt);
        self.overflow = Some(Overflow { step, attempt, tokens, count, answered: false });
    }

    /// Another view is in force.
    pub(crate) fn compacted(&mut self, compacted: &ContextCompacted, messages: &[Message]) {
        self.view = View {
            generation: self.view.generation + 1,
            kept: compacted.kept.clone(),
            trimmed: compacted.trimmed.clone(),
            summary: compacted.summary.clone(),
        };
        self.weigh_anew();
        self.weigh(messages);
        self.summary = None;
        if let Some(overflow) = &mut self.overflow {
            overflow.answered = true;
        }
    }

    /// Messages at the end were taken back: what a view keeps of them ends there too.
    pub(crate) fn rewound(&mut self, messages: &[Message]) {
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        for range in &mut self.view.kept {
            *range = (range.0.min(count), range.1.min(count));
        }
        self.view.trimmed.retain(|trim| trim.message < count);
        self.weigh_anew();
        self.weigh(messages);
    }

    /// Other models may be in force from here on.
    pub(crate) fn agent_changed(&mut self) {
        self.meters.clear();
        self.summary = None;
    }

    /// The step to come will not be made, by the end of a turn or by a fork. Whether attempts at it
    /// have been made, so that the next one is another.
    pub(crate) fn leave_step(&mut self, step: u32) -> bool {
        self.summary = None;
        self.overflow.take().is_some_and(|overflow| overflow.step == step)
    }

    /// The call that a call stands for: one of `tool_call` stands for the tool that it names.
    pub(crate) fn meant(&self, call: &ToolCall) -> ToolCall {
        let meant = self.deferring.then(|| deferred::meant(call)).flatten();
        meant.unwrap_or_else(|| call.clone())
    }

    /// The attempt with which a step begins: the one after those refused as too long.
    pub(crate) fn first_attempt(&self, step: u32) -> u32 {
        let refused = self.overflow.filter(|overflow| overflow.step == step);
        refused.map_or(1, |overflow| overflow.attempt + 1)
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

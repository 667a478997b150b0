//! When a conversation has to be compacted before a model call, and how.
//!
//! Weakest means first: cut old tool results, ask a model for a summary of the oldest part, leave the
//! oldest part out, and at last cut inside the newest messages. Each is only planned here; the event
//! ([`ContextCompacted`]) says what came of it. A compaction aims well below what the model can read,
//! so that the next one is far off and prompt caches live until then.
//!
//! Invariant: a plan fits its limit whatever the conversation holds, as long as instructions and tools
//! leave room for a few hundred tokens.

use crate::context::{
    ActiveSummary, CompactionMethod, CompactionReason, ContextCompacted, SummaryOutcome,
    SummaryStarted, Trim,
};
use crate::error::ErrorCode;
use crate::event::Event;
use crate::message::Message;
use crate::spec::{AgentSpec, Api, ModelSpec};
use crate::spending::{InputTokens, estimate_summary};
use crate::state::{Phase, State};
use crate::tokens::{Meter, Weight};
use crate::view;

/// Attempts at one step that may be refused as too long before the error stands.
const OVERFLOWS_MAX: u32 = 16;
/// Room for an answer where nothing says how long it may become, at most a quarter of the window.
const ANSWER_TOKENS: u64 = 4_096;
/// Most bytes of a summary.
pub(crate) const SUMMARY_BYTES_MAX: usize = 8_000;
/// Share of a model's window that the text to be summarised may take.
const SUMMARY_WINDOW_PERCENT: u64 = 50;
/// Bytes of the text to be summarised where the model's window is not known.
const SUMMARY_INPUT_BYTES: u64 = 48_000;
/// Fewer left-out tokens than this are not worth a summary.
const SUMMARY_TOKENS_MIN: u64 = 500;
/// Tokens of the words that stand for what was left out.
const NOTE_TOKENS: u64 = 24;
/// Bytes that each text of the newest messages keeps, tried from the most to the least.
const SQUEEZES: [u32; 8] = [65_536, 16_384, 4_096, 1_024, 512, 256, 64, 0];

/// The room that a call has.
struct Room<'a> {
    meter: &'a Meter,
    /// Tokens of the call beside its messages.
    base: i128,
    /// Tokens that it is estimated to have now.
    tokens: u64,
    /// Of those, the ones that the provider counted.
    exact: u64,
    /// Most that the model can read; none if nothing is known.
    limit: Option<u64>,
}

/// What must come before the next model call; nothing if the conversation fits as it is.
pub(crate) fn due(state: &State, spec: &AgentSpec) -> Option<Event> {
    let (reason, target, room) = pressed(state, spec)?;
    let mut plan = Plan::new(state, &room, target);
    plan.trim(spec.compaction.result_bytes);
    let trimmed = plan.fits();
    if !trimmed {
        match summary(state, spec, &plan) {
            Summary::Wanted(started) => return Some(Event::SummaryStarted(started)),
            Summary::Had(text, until) => plan.replace(text, until),
            Summary::None => {}
        }
        plan.drop_oldest();
        plan.squeeze();
    }
    plan.event(state, reason, &room)
}

/// Whether the error that a step failed with is answered by a compaction.
pub(crate) fn after_overflow(state: &State, spec: &AgentSpec) -> Option<Event> {
    match &state.phase {
        Phase::Failing(error) if error.code == ErrorCode::MODEL_CONTEXT_OVERFLOW => {
            due(state, spec)
        }
        _ => None,
    }
}

/// Why a compaction is due, and how many tokens it should leave.
fn pressed<'a>(state: &'a State, spec: &'a AgentSpec) -> Option<(CompactionReason, u64, Room<'a>)> {
    if !spec.compaction.enabled || state.messages.is_empty() {
        return None;
    }
    let tier =
        state.tier.min(u32::try_from(spec.models.len()).unwrap_or(u32::MAX).saturating_sub(1));
    let model = spec.models.get(tier as usize)?;
    let room = Room::of(state, spec, model, tier);
    let percent = u64::from(spec.compaction.target_percent.clamp(10, 90));
    let share = |limit: u64| limit / 100 * percent;
    let overflow = state.context.overflow.filter(|overflow| !overflow.answered);
    if let Some(overflow) = overflow {
        if overflow.count > OVERFLOWS_MAX {
            return None;
        }
        let half = overflow.tokens / 2;
        let target = room.limit.map_or(half, |limit| share(limit).min(half));
        return Some((CompactionReason::Overflow, target, room));
    }
    let limit = room.limit?;
    (room.at_most() > limit).then(|| (CompactionReason::Window, share(limit), room))
}

impl<'a> Room<'a> {
    fn of(state: &'a State, spec: &AgentSpec, model: &ModelSpec, tier: u32) -> Self {
        const UNKNOWN: &Meter = &Meter::NEW;
        let context = &state.context;
        let meter = context.meters.get(&tier).unwrap_or(UNKNOWN);
        let base = meter.base(always(spec));
        let messages = meter.tokens(context.weight(&state.messages));
        let tokens = u64::try_from(base + i128::from(messages)).unwrap_or(0);
        let answer = answer_tokens(model);
        let declared = model
            .context_tokens
            .map(|window| window.saturating_sub(answer.unwrap_or(ANSWER_TOKENS).min(window / 2)));
        let limit = match (declared, meter.refused_at()) {
            (Some(declared), Some(refused)) => Some(declared.min(refused)),
            (declared, refused) => declared.or(refused),
        };
        Self { meter, base, tokens, exact: meter.exact(context.view.generation), limit }
    }

    /// The tokens of the call with what is estimated of it a fifth higher. Before anything has been
    /// counted it is as estimated: a refusal costs less than what would be cut for nothing.
    fn at_most(&self) -> u64 {
        if self.meter.is_new() {
            return self.tokens;
        }
        self.tokens.saturating_add(self.tokens.saturating_sub(self.exact) / 5)
    }
}

/// What every call holds beside the conversation.
fn always(spec: &AgentSpec) -> Weight {
    let tools = spec.listed_tools().iter();
    let tools = tools.map(|it| it.name.len() + it.description.len() + it.parameters.get().len());
    let output = spec.output_schema.as_ref().map_or(0, |schema| schema.get().len());
    Weight::text(spec.instructions.len() + tools.sum::<usize>() + output)
}

/// Tokens that a call reads. No token of text is shorter than a byte; what does not depend on text,
/// above all pictures, is taken to have ten times as many as expected at most.
pub(crate) fn input_tokens(
    state: &State,
    spec: &AgentSpec,
    model: &ModelSpec,
    tier: u32,
) -> InputTokens {
    let room = Room::of(state, spec, model, tier);
    let weight = state.context.weight(&state.messages);
    let (counted, new) = match room.meter.counted(state.context.view.generation) {
        Some((tokens, before)) => (tokens, weight.beyond(before)),
        None => (0, weight.plus(always(spec))),
    };
    InputTokens { likely: room.tokens, most: counted + new.bytes + 10 * new.fixed + 256 }
}

/// How many tokens an answer may have, as far as the request says it.
fn answer_tokens(model: &ModelSpec) -> Option<u64> {
    // Messages wants a bound in every request, and counts it in; so it is the model's own.
    let usual = if model.api == Api::Messages { u64::MAX } else { ANSWER_TOKENS * 2 };
    asked_tokens(model).or_else(|| model.output_tokens_max.map(|most| most.min(usual)))
}

/// How many tokens an answer may have by the request's own fields.
pub(crate) fn asked_tokens(model: &ModelSpec) -> Option<u64> {
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Bounds {
        max_tokens: Option<u64>,
        max_completion_tokens: Option<u64>,
        max_output_tokens: Option<u64>,
    }
    let bounds: Option<Bounds> =
        model.params.as_ref().and_then(|params| serde_json::from_str(params.get()).ok());
    let bounds = bounds.unwrap_or_default();
    bounds.max_tokens.or(bounds.max_completion_tokens).or(bounds.max_output_tokens)
}

/// A message of a view that is being planned.
struct Item {
    /// Position in the conversation.
    index: u32,
    /// How it is cut; none if it is whole.
    trim: Option<u32>,
    /// Its tokens, cut as it is.
    tokens: u64,
    /// Whether it must stay.
    pinned: bool,
}

/// A view that is being planned.
struct Plan<'a> {
    messages: &'a [Message],
    meter: &'a Meter,
    items: Vec<Item>,
    summary: Option<String>,
    /// Where the newest message of the user or of a model is among the items.
    newest: usize,
    base: u64,
    tokens: u64,
    target: u64,
    method: CompactionMethod,
}

impl<'a> Plan<'a> {
    fn new(state: &'a State, room: &Room<'a>, target: u64) -> Self {
        let messages = state.messages.as_slice();
        let view = &state.context.view;
        let base = u64::try_from(room.base.max(0)).unwrap_or(u64::MAX);
        let mut plan = Self {
            messages,
            meter: room.meter,
            items: Vec::new(),
            summary: view.summary.clone(),
            newest: 0,
            base,
            tokens: 0,
            target,
            method: CompactionMethod::Trim,
        };
        for (from, to) in state.sent_ranges() {
            for index in from..to {
                let trim = view.trimmed.binary_search_by_key(&index, |trim| trim.message).ok();
                let trim = trim.map(|at| view.trimmed[at].bytes);
                let tokens = plan.tokens_of(index, trim);
                plan.items.push(Item { index, trim, tokens, pinned: false });
            }
        }
        plan.pin();
        plan.count();
        plan
    }

    /// Pins what must stay: the first and the last input, and the newest answer with its results.
    fn pin(&mut self) {
        let is_user =
            |item: &Item| matches!(self.messages[item.index as usize], Message::User { .. });
        let first = self.items.first().is_some_and(is_user);
        let last = self.items.iter().rposition(is_user);
        let owns =
            |item: &Item| !matches!(self.messages[item.index as usize], Message::Tool { .. });
        self.newest = self.items.iter().rposition(owns).unwrap_or(0);
        for (at, item) in self.items.iter_mut().enumerate() {
            item.pinned = at >= self.newest || (at == 0 && first) || Some(at) == last;
        }
    }

    fn tokens_of(&self, index: u32, trim: Option<u32>) -> u64 {
        let message = &self.messages[index as usize];
        let weight = match trim {
            None => Weight::of(message),
            Some(bytes) => Weight::of(&view::trimmed(message.clone(), bytes as usize)),
        };
        self.meter.tokens(weight)
    }

    fn count(&mut self) {
        let summary = self.summary.as_ref().map_or(0, String::len);
        let note = self.meter.tokens(Weight::text(summary)) + NOTE_TOKENS;
        let items: u64 = self.items.iter().map(|item| item.tokens).sum();
        self.tokens = self.base.saturating_add(items).saturating_add(note);
    }

    fn fits(&self) -> bool {
        self.tokens.saturating_add(self.tokens / 10) <= self.target
    }

    /// Cuts one message to so many bytes, if that makes it shorter.
    fn cut(&mut self, at: usize, bytes: u32) {
        let item = &self.items[at];
        let message = &self.messages[item.index as usize];
        let bytes = item.trim.map_or(bytes, |before| before.min(bytes));
        if item.trim == Some(bytes) || !view::exceeds(message, bytes as usize) {
            return;
        }
        let (index, before) = (item.index, item.tokens);
        let tokens = self.tokens_of(index, Some(bytes));
        if tokens < before {
            let item = &mut self.items[at];
            item.trim = Some(bytes);
            item.tokens = tokens;
            self.tokens = self.tokens.saturating_sub(before - tokens);
        }
    }

    /// Cuts old tool results, the oldest first.
    fn trim(&mut self, bytes: u32) {
        for at in 0..self.newest {
            if self.fits() {
                return;
            }
            if matches!(self.messages[self.items[at].index as usize], Message::Tool { .. }) {
                self.cut(at, bytes);
            }
        }
    }

    /// The end of the oldest part whose leaving out makes the rest fit, by position among the items,
    /// and its tokens. `extra` tokens stand for it.
    fn oldest(&self, extra: u64) -> (usize, u64) {
        let mut gone = 0;
        let mut at = 0;
        while at < self.newest {
            let left = self.tokens.saturating_sub(gone).saturating_add(extra);
            if gone > 0 && left.saturating_add(left / 10) <= self.target {
                break;
            }
            // An answer goes with its results.
            let mut end = at + 1;
            while end < self.newest && self.is_result(end) {
                end += 1;
            }
            let unit = self.items[at..end].iter().filter(|item| !item.pinned);
            gone += unit.map(|item| item.tokens).sum::<u64>();
            at = end;
        }
        (at, gone)
    }

    fn is_result(&self, at: usize) -> bool {
        matches!(self.messages[self.items[at].index as usize], Message::Tool { .. })
    }

    /// Puts a summary in the place of the messages before `until`.
    fn replace(&mut self, text: String, until: u32) {
        self.items.retain(|item| item.pinned || item.index >= until);
        self.summary = Some(text);
        self.method = CompactionMethod::Summarise;
        self.pin();
        self.count();
    }

    fn drop_oldest(&mut self) {
        if self.fits() {
            return;
        }
        let (end, gone) = self.oldest(0);
        if gone == 0 {
            return;
        }
        let mut at = 0;
        self.items.retain(|item| {
            at += 1;
            item.pinned || at > end
        });
        self.method = CompactionMethod::Drop;
        self.pin();
        self.count();
    }

    /// Cuts inside what is left, and at last leaves out calls of the newest answer.
    fn squeeze(&mut self) {
        for bytes in SQUEEZES {
            if self.fits() {
                return;
            }
            self.method = CompactionMethod::Squeeze;
            for at in 0..self.items.len() {
                self.cut(at, bytes);
            }
        }
        if !self.fits() {
            self.drop_calls();
        }
        if !self.fits() && self.summary.take().is_some() {
            self.count();
        }
    }

    /// Leaves out the oldest results of the newest answer, and with them their calls; the last stays.
    fn drop_calls(&mut self) {
        let (first, last) = (self.newest + 1, self.items.len().saturating_sub(1));
        if first >= last {
            return;
        }
        let owner = self.items[self.newest].index as usize;
        let Message::Assistant { text, tool_calls, .. } = &self.messages[owner] else { return };
        let bytes = self.items[self.newest].trim.map_or(usize::MAX, |bytes| bytes as usize);
        let call_tokens = |index: u32| {
            let at = (index as usize).wrapping_sub(owner + 1);
            let weight = tool_calls.get(at).map_or(Weight::default(), |call| {
                let call = view::trimmed(
                    Message::Assistant {
                        text: String::new(),
                        tool_calls: vec![call.clone()],
                        reasoning: Vec::new(),
                    },
                    bytes,
                );
                Weight::of(&call)
            });
            self.meter.tokens(weight)
        };
        let mut spare = self.tokens;
        let mut end = first;
        while end < last && spare.saturating_add(spare / 10) > self.target {
            let item = &self.items[end];
            spare = spare.saturating_sub(item.tokens + call_tokens(item.index));
            end += 1;
        }
        let text_tokens = self.meter.tokens(Weight::text(text.len().min(bytes)));
        let kept: u64 = self.items[end..].iter().map(|item| call_tokens(item.index)).sum();
        self.items.drain(first..end);
        self.items[self.newest].tokens = kept.saturating_add(text_tokens);
        self.count();
    }

    /// The event; none if the plan changes nothing.
    fn event(self, state: &State, reason: CompactionReason, room: &Room<'_>) -> Option<Event> {
        let mut kept: Vec<(u32, u32)> = Vec::new();
        for item in &self.items {
            match kept.last_mut() {
                Some(last) if last.1 == item.index => last.1 += 1,
                _ => kept.push((item.index, item.index + 1)),
            }
        }
        let trims = self.items.iter();
        let trimmed: Vec<_> = trims
            .filter_map(|item| Some(Trim { message: item.index, bytes: item.trim? }))
            .collect();
        let before = &state.context.view;
        let same = kept == state.sent_ranges()
            && trimmed == before.trimmed
            && self.summary == before.summary;
        if same {
            return None;
        }
        Some(Event::ContextCompacted(ContextCompacted {
            step: step_of(state),
            method: self.method,
            reason,
            kept,
            trimmed,
            summary: self.summary,
            tokens_before: room.tokens,
            tokens_after: self.tokens,
            tokens_target: self.target,
        }))
    }
}

/// The step that the compaction is made for.
fn step_of(state: &State) -> u32 {
    let overflow = state.context.overflow.filter(|overflow| !overflow.answered);
    overflow.map_or(state.steps, |overflow| overflow.step)
}

enum Summary {
    Wanted(SummaryStarted),
    Had(String, u32),
    None,
}

/// Whether a summary is to be asked for, or has been made.
fn summary(state: &State, spec: &AgentSpec, plan: &Plan<'_>) -> Summary {
    match &state.context.summary {
        Some(SummaryOutcome::Text(text, until)) => return Summary::Had(text.clone(), *until),
        Some(SummaryOutcome::None) => return Summary::None,
        None => {}
    }
    let (end, gone) = plan.oldest(plan.meter.tokens(Weight::text(SUMMARY_BYTES_MAX)));
    let Some(tier) = summariser(spec).filter(|_| spec.compaction.summarise) else {
        return Summary::None;
    };
    if gone < SUMMARY_TOKENS_MIN || gone >= plan.tokens {
        return Summary::None;
    }
    let first = plan.items.iter().find(|item| !item.pinned).map_or(0, |item| item.index);
    let until = plan.items.get(end).map_or(0, |item| item.index);
    if until <= first {
        return Summary::None;
    }
    let window = spec.models.get(tier as usize).and_then(|model| model.context_tokens);
    // Three bytes a token are on the safe side.
    let bytes_max = window.map_or(SUMMARY_INPUT_BYTES, |it| it / 100 * SUMMARY_WINDOW_PERCENT * 3);
    let (step, messages) = (step_of(state), (first, until));
    let active = ActiveSummary { step, tier, messages, bytes_max };
    let paid = !state.spending.funding.is_empty();
    let reserved = paid.then(|| estimate_summary(spec, &active).likely);
    Summary::Wanted(SummaryStarted { step, tier, messages, bytes_max, reserved })
}

/// The cheapest model of the route: the one of the lowest price, or the first where prices are not
/// known; none without models.
fn summariser(spec: &AgentSpec) -> Option<u32> {
    let priced = |model: &ModelSpec| model.price.map(|price| price.input_usd + price.output_usd);
    let mut best: Option<(u32, f64)> = None;
    for (tier, model) in (0..).zip(&spec.models) {
        let usd = priced(model).unwrap_or(f64::MAX);
        if best.is_none_or(|(_, lowest)| usd < lowest) {
            best = Some((tier, usd));
        }
    }
    best.map(|(tier, _)| tier)
}

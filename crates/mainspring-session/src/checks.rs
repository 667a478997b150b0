//! The checks of an answer that the core makes or orders itself: the score of what its text shows,
//! and the checks that cost model calls.
//!
//! Invariant: they are made of answers for which a larger model could be asked, and of no others;
//! the cheapest goes first, and the first that finds something is the last. A check that fails to
//! find out either way counts as no verdict. Start reading at [`score`] and [`planned`].

use mainspring_route::{Evidence, Policy, Signals, StepClass};
use serde::{Deserialize, Serialize};

use crate::budget::Amount;
use crate::error::Failure;
use crate::event::{Event, FinishReason, Problem};
use crate::message::{Answer, Message, Part, Usage};
use crate::notes::CallNotes;
use crate::routing;
use crate::spec::{AgentSpec, ModelSpec};
use crate::spending::{Estimate, InputTokens, charge_of_failure, estimate};
use crate::state::{PendingAnswer, Phase, State};

/// Bytes of the conversation, its end, in which the values of tool arguments are looked for.
const CONTEXT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a question or an answer that a judge reads.
pub const JUDGE_TEXT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of what tools found, its end, that a judge reads.
pub const JUDGE_CONTEXT_BYTES_MAX: usize = 8 * 1024;
/// Bytes that a judge is told besides.
const JUDGE_PROMPT_BYTES: usize = 1024;
/// From here on a check by a model counts as passed, where nothing is learnt.
const PASS_MIN: f64 = 0.5;

/// A check that asks a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The same model answers again, and the answers are compared.
    Agreement,
    /// Another model judges the answer.
    Judge,
}

impl Check {
    /// Its name, as in [`crate::Problem::check`].
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Check::Agreement => "agreement",
            Check::Judge => "judge",
        }
    }
}

/// What an answer's own text says of whether it is right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerScore {
    /// What kind of answer it was taken for.
    pub class: StepClass,
    /// Probability that it is right.
    pub p_ok: f64,
    /// What was found in it.
    pub signals: Signals,
}

/// A check of an answer was about to be made, by a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStarted {
    /// The step whose answer it is about.
    pub step: u32,
    /// Which check.
    pub check: Check,
    /// The model that is asked.
    pub model: String,
    /// How many calls of it.
    pub calls: u32,
    /// What they were expected to use together, where somebody keeps an account of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Amount>,
}

/// A check of an answer ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckFinished {
    /// The step whose answer it is about.
    pub step: u32,
    /// Which check.
    pub check: Check,
    /// Whether the answer passed; none if the check could not find out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<bool>,
    /// What the check itself says, from 0 (wrong) to 1 (right).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Probability that the answer is right, with all that is known by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_ok: Option<f64>,
    /// What was found, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Tokens of its calls.
    pub usage: Usage,
    /// US dollars, if the price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Why it could not find out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What it is taken to have used, where somebody keeps an account of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged: Option<Amount>,
}

/// What the engine found out for a check.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CheckFinding {
    /// From 0 (wrong) to 1 (right); none if it could not find out.
    pub score: Option<f64>,
    /// What was found, in words.
    pub reason: String,
    /// Tokens of the calls that were answered.
    pub usage: Usage,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Why it could not find out.
    pub error: Option<Failure>,
}

/// What an answer's own text says of it, and the problem that this is, if it is one. Nothing where
/// no larger model could be asked.
pub(crate) fn score(
    state: &State,
    spec: &AgentSpec,
    (answer, finish_reason, notes): (&Answer, FinishReason, &CallNotes),
    problems: &mut Vec<Problem>,
) -> Option<Box<AnswerScore>> {
    routing::next_tier(state, spec)?;
    let class = match answer.tool_calls.is_empty() {
        true => routing::step_class(state, spec),
        false => StepClass::ToolArgs,
    };
    let context = context(state, spec);
    let arguments: Vec<_> = answer.tool_calls.iter().map(|call| call.arguments.as_str()).collect();
    let signals = mainspring_route::signals(&Evidence {
        class,
        question: routing::question(state),
        context: &context,
        answer: &answer.text,
        arguments: &arguments,
        cut_off: finish_reason == FinishReason::Length,
        refused: finish_reason == FinishReason::ContentFilter,
        logprob_mean: notes.logprob_mean,
        agreement: None,
        judge: None,
        p_before: state.route.p_before,
    });
    let plain = Policy::default();
    let policy = spec.route.as_ref().map_or(&plain, |route| &route.policy);
    let verdict = mainspring_route::score(policy, spec.weights.as_deref(), class, &signals);
    if !verdict.accept {
        let message = verdict.reasons.join("; ");
        problems.push(Problem { check: "score".to_owned(), message, call: None });
    }
    Some(Box::new(AnswerScore { class, p_ok: verdict.p_ok, signals }))
}

/// What the model was told besides the question, the newest first, within [`CONTEXT_BYTES_MAX`].
fn context<'a>(state: &'a State, spec: &'a AgentSpec) -> Vec<&'a str> {
    let mut left = CONTEXT_BYTES_MAX;
    let mut texts = Vec::new();
    let messages = state.messages.iter().rev().flat_map(texts_of);
    for text in std::iter::once(spec.instructions.as_str()).chain(messages) {
        if left == 0 {
            break;
        }
        let end = &text[text.ceil_char_boundary(text.len().saturating_sub(left))..];
        left = left.saturating_sub(text.len());
        texts.push(end);
    }
    texts
}

fn texts_of(message: &Message) -> Vec<&str> {
    match message {
        Message::User { content } => content
            .iter()
            .filter_map(|part| match part {
                Part::Text { text } => Some(text.as_str()),
                Part::Image { .. } => None,
            })
            .collect(),
        Message::Assistant { text, tool_calls, .. } => {
            let calls = tool_calls.iter().map(|call| call.arguments.as_str());
            std::iter::once(text.as_str()).chain(calls).collect()
        }
        Message::Tool { text, .. } => vec![text.as_str()],
    }
}

/// Probability that an answer is right, with what a check found; none if nothing is learnt of it.
fn learnt(spec: &AgentSpec, pending: &PendingAnswer, check: Check, found: f64) -> Option<f64> {
    let (weights, score) = (spec.weights.as_deref()?, pending.score.as_deref()?);
    let mut signals = score.signals.clone();
    match check {
        Check::Agreement => signals.agreement = Some(found),
        Check::Judge => signals.judge = Some(found),
    }
    weights.answer_ok(score.class, &signals)
}

/// Whether a check looks at an answer's form, which its model can mend once told.
pub(crate) fn is_of_form(check: &str) -> bool {
    matches!(
        check,
        "parse" | "empty" | "tool_unknown" | "tool_arguments" | "tool_count" | "output_schema"
    )
}

/// What a check is expected to use, where somebody keeps an account of the session.
fn reserve(state: &State, spec: &AgentSpec, check: Check) -> Option<Amount> {
    if state.spending.funding.is_empty() {
        return None;
    }
    let (_, calls) = check_model(state, spec, check)?;
    Some(estimate_check(state, spec, check)?.likely.times(calls))
}

/// What a check is taken to have used, where somebody keeps an account of the session.
fn charged(
    state: &State,
    spec: &AgentSpec,
    check: Check,
    finding: &CheckFinding,
    cost_usd: Option<f64>,
) -> Option<Amount> {
    // A fork reserves nothing for what it takes up.
    let reserved = state.spending.reserved.or_else(|| reserve(state, spec, check))?;
    Some(match &finding.error {
        None if finding.usage.total() == 0 => reserved,
        Some(error) if finding.usage.total() == 0 => {
            let read = estimate_check(state, spec, check).map(|estimate| estimate.read);
            charge_of_failure(&error.code, reserved, read.unwrap_or_default())
        }
        _ => Amount { calls: reserved.calls, ..Amount::of_call(finding.usage, cost_usd) },
    })
}

/// The checks by models that an answer must pass that has passed all others.
pub(crate) fn planned(state: &State, spec: &AgentSpec, answer: &Answer) -> Vec<Check> {
    let Some(route) = spec.route.as_deref() else { return Vec::new() };
    let mut checks = Vec::new();
    if routing::next_tier(state, spec).is_none() {
        return checks;
    }
    if route.agreement > 0 {
        checks.push(Check::Agreement);
    }
    if route.judge.is_some() && answer.tool_calls.is_empty() {
        checks.push(Check::Judge);
    }
    checks
}

/// The start of the next check by a model, if nothing else is awaited.
pub(crate) fn next(state: &State, spec: &AgentSpec, pending: &PendingAnswer) -> Option<Event> {
    if pending.checking.is_some() {
        return None;
    }
    let check = *pending.checks.first()?;
    let step = state.steps.saturating_sub(1);
    let asked = check_model(state, spec, check);
    let (model, calls) =
        asked.map_or((String::new(), 0), |(model, calls)| (model.name.clone(), calls));
    let reserved = reserve(state, spec, check);
    Some(Event::CheckStarted(CheckStarted { step, check, model, calls, reserved }))
}

/// The model that a check asks, and how often; none if the agent has no such check any more.
#[must_use]
pub fn check_model<'a>(
    state: &State,
    spec: &'a AgentSpec,
    check: Check,
) -> Option<(&'a ModelSpec, u32)> {
    let route = spec.route.as_deref()?;
    match check {
        Check::Agreement if route.agreement == 0 => None,
        Check::Agreement => Some((spec.models.get(state.tier as usize)?, route.agreement)),
        Check::Judge => Some((route.judge.as_ref()?, 1)),
    }
}

/// What one call of a check may use.
#[must_use]
pub fn estimate_check(state: &State, spec: &AgentSpec, check: Check) -> Option<Estimate> {
    let (model, _) = check_model(state, spec, check)?;
    Some(match check {
        Check::Agreement => estimate(state, spec, state.tier),
        Check::Judge => {
            let Phase::Judging(pending) = &state.phase else { return None };
            let context: usize =
                state.messages[state.turn_messages()..].iter().map(Message::bytes).sum();
            let question = routing::question(state).len().min(JUDGE_TEXT_BYTES_MAX);
            let answer = pending.answer.text.len().min(JUDGE_TEXT_BYTES_MAX);
            let told = question + answer + context.min(JUDGE_CONTEXT_BYTES_MAX);
            let bytes = (told + JUDGE_PROMPT_BYTES) as u64;
            Estimate::of_call(model, InputTokens { likely: bytes / 3, most: bytes })
        }
    })
}

/// What the end of a check by a model leads to; nothing if it is not awaited.
pub(crate) fn finished(
    state: &State,
    spec: &AgentSpec,
    (step, check): (u32, Check),
    finding: CheckFinding,
) -> Option<Event> {
    let Phase::Judging(pending) = &state.phase else { return None };
    if pending.checking != Some(check) || step + 1 != state.steps {
        return None;
    }
    let p_ok = finding.score.and_then(|found| learnt(spec, pending, check, found));
    let accept = spec.route.as_ref().map_or(0.5, |route| route.policy.accept);
    let passed = match (p_ok, finding.score) {
        (Some(p_ok), _) => Some(p_ok >= accept),
        (None, Some(found)) => Some(found >= PASS_MIN),
        (None, None) => None,
    };
    let price = check_model(state, spec, check).and_then(|(model, _)| model.price);
    let cost_usd = price.map(|price| price.of(finding.usage));
    let charged = charged(state, spec, check, &finding, cost_usd);
    let reason = match (passed, p_ok, finding.reason.is_empty()) {
        (Some(false), Some(p_ok), true) => format!("it is right with a probability of {p_ok:.2}"),
        _ => finding.reason,
    };
    Some(Event::CheckFinished(CheckFinished {
        step,
        check,
        passed,
        score: finding.score,
        p_ok,
        reason,
        cost_usd,
        charged,
        usage: finding.usage,
        duration_us: finding.duration_us,
        error: finding.error,
    }))
}

//! Which model a step begins with: what the runtime knows about the step, put before the policy.
//!
//! Invariant: a decision follows from state, spec and moment alone, so that a replay makes it again.
//! An agent with one model decides nothing. A conversation stays on its model inside a tool loop; it
//! is decided anew where a turn begins and after a step for which the next model had to be asked.
//! Start reading at [`choose`].

use std::borrow::Cow;

use mainspring_route::{Candidate, Decision, Policy, Prices, Scored, Step, StepClass};
use serde::{Deserialize, Serialize};

use crate::budget::NANOS_PER_USD;
use crate::compact;
use crate::decide::Moment;
use crate::message::{Message, Part};
use crate::spec::{Ability, AgentSpec, ModelSpec, ToolMode};
use crate::state::State;

/// How long a provider is taken to keep a prompt's prefix, in microseconds.
///
/// # Source
/// OpenAI and Anthropic keep one for 5 minutes after its last use by default.
pub const CACHE_US_MAX: i64 = 300_000_000;
/// How long a model that failed for good is not begun with, in microseconds.
pub const DOWN_US_MAX: i64 = 60_000_000;
/// Bytes of the step's own text that the policy reads.
pub const TEXT_BYTES_MAX: usize = 2048;
/// How often one step may go to a larger model: two models at most work at it.
pub const ESCALATIONS_MAX: u32 = 1;

/// What trials of other models may cost on average, as a share of the step's own cost.
const TRIAL_SHARE_MAX: f64 = 0.3;
/// Share of steps that a small model must get right to be asked first, where prices are not known.
const RIGHT_MIN: f64 = 0.4;
/// Tokens an answer is taken to have while none has been seen.
const OUTPUT_TOKENS_GUESS: u64 = 256;

/// How the agent's models share its steps.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteSpec {
    /// The numbers of the policy.
    pub policy: Policy,
    /// Id of the learnt weights; none means that nothing is learnt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The model that judges the answers in words of all models but the largest; none: nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<ModelSpec>,
    /// How many further answers the same model gives, to see whether they agree. 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub agreement: u32,
    /// Whether the next model sees the answer that was rejected.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub show_draft: bool,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Why a step begins with a model: everything that was weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteDecision {
    /// What the step is for.
    pub class: StepClass,
    /// Tokens that the request was taken to have.
    pub input_tokens: u64,
    /// The model in force before, by position; none in a session's first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<u32>,
    /// Whether the prompt's prefix was lost anyway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub boundary: bool,
    /// US dollars that were left to spend, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_usd: Option<f64>,
    /// Id of the weights that were used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// What the policy made of it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// What is known of one of the agent's models from the calls of this session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierState {
    /// When it was last called, in microseconds since the epoch.
    pub called_us: i64,
    /// Tokens of the prefix that it has seen last, its own answer included.
    pub cached_tokens: u64,
    /// When a call of it failed for good, if none has succeeded since.
    pub failed_us: Option<i64>,
    /// Its answers.
    pub calls: u32,
    /// Steps whose answer of it was accepted.
    pub accepted: u32,
    /// Steps in which a larger model had to be asked after it.
    pub rejected: u32,
}

/// What routing needs to know of a session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteState {
    /// What is known of each model, by position; empty for an agent of one.
    pub tiers: Vec<TierState>,
    /// Position in the conversation of the input that began the turn.
    pub turn_from: u32,
    /// The class that the turn was given, if it was.
    pub turn_class: Option<StepClass>,
    /// How long the conversation was when the step began. What comes after it may be taken back
    /// until the step's answer is accepted.
    pub step_from: u32,
    /// Answers of the model in force that were sent back in this step.
    pub step_repairs: u32,
    /// How often a larger model has been asked in this step.
    pub escalations: u32,
    /// The models that failed in this step, by position.
    pub failed: Vec<u32>,
    /// How often messages were taken back.
    pub rewinds: u32,
    /// The step for which the model in force was chosen.
    pub decided: u32,
    /// Probability that the model in force is right, as estimated when it was chosen.
    pub p_before: Option<f64>,
    /// Whether the model in force was chosen for one step, to learn about it.
    pub trial: bool,
}

impl RouteState {
    /// Whether the step has not been tried yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.step_repairs == 0 && self.escalations == 0 && self.failed.is_empty()
    }
}

/// What the next step is for: as the user says, otherwise by a fixed rule.
///
/// | the agent | the step | class |
/// |---|---|---|
/// | has tools | the first of its turn | `plan` |
/// | has tools | after tool results | `tool_args` |
/// | has an output schema and no tools | any | `extract` |
/// | has neither | of the session's first turn | `answer` |
/// | has neither | of a later turn | `chat` |
#[must_use]
pub fn step_class(state: &State, spec: &AgentSpec) -> StepClass {
    if let Some(class) = state.route.turn_class.or(spec.step_class) {
        return class;
    }
    let in_loop = matches!(state.messages.last(), Some(Message::Tool { .. }));
    match (spec.tools.is_empty(), in_loop) {
        (false, true) => StepClass::ToolArgs,
        (false, false) => StepClass::Plan,
        (true, _) if spec.output_schema.is_some() => StepClass::Extract,
        _ if state.route.turn_from == 0 => StepClass::Answer,
        _ => StepClass::Chat,
    }
}

/// The step's own short text: what the user asked in this turn, cut to [`TEXT_BYTES_MAX`].
#[must_use]
pub fn step_text(state: &State) -> &str {
    let text = question(state);
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

/// What the user asked in this turn.
#[must_use]
pub fn question(state: &State) -> &str {
    let text = match state.messages.get(state.route.turn_from as usize) {
        Some(Message::User { content }) => content.iter().find_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
            Part::Image { .. } => None,
        }),
        _ => None,
    };
    text.unwrap_or_default()
}

/// The model that the next step begins with, and why. Only asked where there is a choice.
pub(crate) fn choose(state: &State, spec: &AgentSpec, now: Moment) -> RouteDecision {
    let plain = RouteSpec::default();
    let route = spec.route.as_deref().unwrap_or(&plain);
    let class = step_class(state, spec);
    let tier = state.tier.min(u32::try_from(spec.models.len()).unwrap_or(1) - 1);
    let input = compact::input_tokens(state, spec, &spec.models[tier as usize], tier);
    let input_tokens = input.likely;
    let needs = Needs { tools: !spec.tools.is_empty(), images: has_images(state) };
    let candidates: Vec<_> = (0..)
        .zip(&spec.models)
        .map(|(tier, model)| candidate(state, (tier, model), input_tokens, needs, now))
        .collect();
    // A model that was only tried is not one to stay with.
    let current = (state.steps > 0 && !state.route.trial).then_some(state.tier);
    let current = current.filter(|tier| in_range(*tier, spec));
    let warm = |tier: u32| {
        let known = state.route.tiers.get(tier as usize);
        known.is_some_and(|known| is_cached(known.called_us, now))
    };
    let boundary = state.context.is_boundary() || !current.is_some_and(warm);
    let budget_usd = budget_usd(state);
    let step = Step {
        class,
        label: &spec.name,
        text: step_text(state),
        input_tokens,
        output_tokens: output_tokens(state),
        current: current.map(|tier| tier as usize),
        in_tools: false,
        boundary,
        budget_usd,
        seed: now.seed,
    };
    let weights = spec.weights.as_deref();
    let mut policy = Cow::Borrowed(&route.policy);
    let explore = explore(route.policy.explore, &candidates, &step);
    if explore < policy.explore {
        policy.to_mut().explore = explore;
    }
    let outgrown = if weights.is_none() { outgrown(state, &candidates, &step) } else { None };
    if let Some(outgrown) = &outgrown {
        let start = policy.to_mut().start.entry(class).or_default();
        *start = (*start).max(outgrown.begin);
    }
    let mut decision = mainspring_route::choose(&policy, weights, &candidates, &step);
    if let Some(outgrown) = outgrown.filter(|it| it.begin == decision.tier && !decision.explored) {
        decision.reason = outgrown.reason;
    }
    decision.candidates = decision.candidates.into_iter().map(plain_score).collect();
    RouteDecision {
        class,
        input_tokens,
        current,
        boundary,
        budget_usd,
        weights: weights.map(|weights| weights.id().to_owned()),
        decision,
    }
}

/// The share of decisions that try another model: less where that is so much dearer that trials
/// would cost more than [`TRIAL_SHARE_MAX`] of the step on average.
fn explore(wanted: f64, candidates: &[Candidate<'_>], step: &Step<'_>) -> f64 {
    let costs = candidates.iter().filter_map(|candidate| {
        let (read, written) = (step.input_tokens, step.output_tokens);
        Some(candidate.price?.cost_usd(read, candidate.cached_tokens, written))
    });
    let costs: Vec<f64> = costs.collect();
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let most = costs.iter().copied().fold(0.0, f64::max);
    if most <= least { wanted } else { wanted.min(TRIAL_SHARE_MAX * least / (most - least)) }
}

/// Where steps begin once this session has shown that a model is not worth asking.
struct Outgrown {
    begin: usize,
    reason: String,
}

/// While nothing is learnt, the session's own record says whether a small model is worth its price.
fn outgrown(state: &State, candidates: &[Candidate<'_>], step: &Step<'_>) -> Option<Outgrown> {
    let mut found = None;
    for (tier, pair) in candidates.windows(2).enumerate() {
        let known = state.route.tiers.get(tier).copied().unwrap_or_default();
        if known.rejected == 0 || is_worth_it(known, pair, step) {
            break;
        }
        let (name, tried) = (pair[0].name, known.accepted + known.rejected);
        let reason =
            format!("{name} was right in {} of {tried} steps: not worth its price", known.accepted);
        found = Some(Outgrown { begin: tier + 1, reason });
    }
    found
}

/// Whether a step costs less when it begins with the smaller of two models.
///
/// What a step that is right saves is not a whole call of the larger model: what is new in the
/// conversation, that one must still read when it is asked the next time.
fn is_worth_it(known: TierState, pair: &[Candidate<'_>], step: &Step<'_>) -> bool {
    let tried = f64::from(known.accepted + known.rejected);
    // Small first: one step counts in its favour before there is any.
    let right = (f64::from(known.accepted) + 1.0) / (tried + 1.0);
    let (Some(small), Some(large)) = (pair[0].price, pair[1].price) else {
        return right >= RIGHT_MIN;
    };
    let (read, written) = (step.input_tokens, step.output_tokens);
    let calls = f64::from(known.calls).max(tried) / tried;
    let spent = calls * small.cost_usd(read, pair[0].cached_tokens, written);
    spent <= right * large.cost_usd(read, read, written)
}

/// A candidate's score as it stands in a log.
fn plain_score(scored: Scored) -> Scored {
    let mut plain = Scored::default();
    (plain.name, plain.p_ok) = (scored.name, scored.p_ok);
    (plain.cost_usd, plain.excluded) = (scored.cost_usd, scored.excluded);
    plain
}

/// The larger model that may be asked next in this step, by position.
pub(crate) fn next_tier(state: &State, spec: &AgentSpec) -> Option<u32> {
    if state.route.escalations >= ESCALATIONS_MAX {
        return None;
    }
    larger(state, spec).next()
}

/// The model that takes over from one that failed: a larger one if one is left, else a smaller one.
pub(crate) fn stand_in(state: &State, spec: &AgentSpec) -> Option<u32> {
    let untried = |tier: &u32| in_range(*tier, spec) && !state.route.failed.contains(tier);
    larger(state, spec).next().or_else(|| (0..state.tier).rev().find(untried))
}

/// The larger models that have not failed in this step.
pub(crate) fn larger<'a>(
    state: &'a State,
    spec: &AgentSpec,
) -> impl Iterator<Item = u32> + use<'a> {
    let count = u32::try_from(spec.models.len()).unwrap_or(u32::MAX);
    (state.tier + 1..count).filter(|tier| !state.route.failed.contains(tier))
}

fn in_range(tier: u32, spec: &AgentSpec) -> bool {
    (tier as usize) < spec.models.len()
}

fn candidate<'a>(
    state: &State,
    (tier, model): (u32, &'a ModelSpec),
    input_tokens: u64,
    needs: Needs,
    now: Moment,
) -> Candidate<'a> {
    let known = state.route.tiers.get(tier as usize).copied().unwrap_or_default();
    let down = known.failed_us.is_some_and(|at_us| now.at_us - at_us < DOWN_US_MAX);
    let kept = is_cached(known.called_us, now) && !state.context.is_boundary();
    let cached = if kept { known.cached_tokens } else { 0 };
    Candidate {
        name: &model.name,
        price: model.price.map(|price| Prices {
            input_usd: price.input_usd,
            output_usd: price.output_usd,
            cached_usd: price.cached_usd,
        }),
        context_tokens: model.context_tokens,
        capable: can_take(model, needs),
        ready: !down && !state.route.failed.contains(&tier),
        cached_tokens: cached.min(input_tokens),
    }
}

fn is_cached(called_us: i64, now: Moment) -> bool {
    called_us > 0 && now.at_us - called_us < CACHE_US_MAX
}

/// Whether a model's abilities fit the step, as far as they are known. What a provider does not do
/// by itself, a model that is held to a JSON Schema by its prompt does all the same.
fn can_take(model: &ModelSpec, needs: Needs) -> bool {
    let can = |ability| model.can(ability) != Some(false);
    let calls = !needs.tools || model.tool_mode == ToolMode::JsonSchema || can(Ability::Tools);
    calls && (!needs.images || can(Ability::Images))
}

/// What a step asks of its model.
#[derive(Debug, Clone, Copy)]
struct Needs {
    tools: bool,
    images: bool,
}

fn has_images(state: &State) -> bool {
    state.messages.iter().any(|message| match message {
        Message::User { content } => content.iter().any(|part| matches!(part, Part::Image { .. })),
        _ => false,
    })
}

/// Tokens of the next answer: as many as the session's answers had on average.
fn output_tokens(state: &State) -> u64 {
    match u64::from(state.steps) {
        0 => OUTPUT_TOKENS_GUESS,
        steps => (state.usage.output_tokens / steps).max(1),
    }
}

/// What is left to spend of the session's own budget; none without a limit.
fn budget_usd(state: &State) -> Option<f64> {
    Some(state.spending.left()?.usd_nanos? as f64 / NANOS_PER_USD)
}

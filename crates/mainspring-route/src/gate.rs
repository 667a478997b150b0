//! Whether a step may leave the model whose prompt cache holds the conversation.

use serde::{Deserialize, Serialize};

use crate::{Candidate, Policy, Step};

/// What was weighed when the best model for a step was not the current one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// What the switch loses: tokens read at the full price instead of from the cache.
    pub regret_usd: f64,
    /// What the switch gains: cheaper tokens, and a better answer at its worth.
    pub gain_usd: f64,
    /// Whether the step stays with the current model.
    pub held: bool,
}

/// The least worth of a right answer's probability, so that `cost_weight` 0 divides well.
const COST_WEIGHT_MIN: f64 = 1e-6;

/// Weighs a switch from `current` to `best`.
///
/// `gain_p` is what the switch gains in probability of a right answer.
pub(crate) fn weigh(
    policy: &Policy,
    step: &Step<'_>,
    current: &Candidate<'_>,
    best: &Candidate<'_>,
    gain_p: f64,
) -> Gate {
    let lost_tokens = current.cached_tokens.min(step.input_tokens);
    let lost_tokens = lost_tokens.saturating_sub(best.cached_tokens);
    let regret_usd = best.price.map_or(0.0, |price| price.regret_usd(lost_tokens));
    // Both as if they had the same cache: what the cache is worth is the regret.
    let cost = |model: &Candidate<'_>| {
        let cached = current.cached_tokens.max(best.cached_tokens);
        model.price.map(|price| price.cost_usd(step.input_tokens, cached, step.output_tokens))
    };
    let saved_usd = match (cost(current), cost(best)) {
        (Some(now), Some(then)) => now - then,
        _ => 0.0,
    };
    let gain_usd = saved_usd + gain_p / policy.cost_weight.max(COST_WEIGHT_MIN);
    let held = step.in_tools || (regret_usd > 0.0 && gain_usd <= regret_usd + policy.margin_usd);
    Gate { regret_usd, gain_usd, held }
}

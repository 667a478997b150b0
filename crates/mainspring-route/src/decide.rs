//! The decision where a step begins.
//!
//! In order: leave out what cannot or should not be asked, take the best of the rest, stay with the
//! current model if leaving costs more than it gains, and now and then try another one.

use serde::{Deserialize, Serialize};

use crate::eligible::{Exclusion, exclude, is_better};
use crate::gate::weigh;
use crate::weights::Prior;
use crate::{Candidate, Gate, Policy, Step, Weights};

/// Which model a step begins with, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Position of the model in the candidates.
    pub tier: usize,
    /// Probability with which this policy takes this model for this step, above 0 up to 1.
    pub propensity: f64,
    /// Whether the model was taken to learn about it, instead of the best one.
    #[serde(default)]
    pub explored: bool,
    /// Why, in plain words.
    pub reason: String,
    /// What is known of each candidate, in their order.
    #[serde(default)]
    pub candidates: Vec<Scored>,
    /// What was weighed, if the best model was not the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// What a decision knew of a candidate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The model's name.
    pub name: String,
    /// Probability of a right answer; None: nothing is learnt about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_ok: Option<f64>,
    /// What the step would cost; None: its prices are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Why it must not be asked; None: it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
    #[serde(skip)]
    pub(crate) prior: Option<Prior>,
}

/// Decides which model a step begins with.
///
/// Pure: the same arguments give the same decision. Where every candidate is left out, it is the
/// one with the mildest reason; its `excluded` says which. No candidates give tier 0.
#[must_use]
pub fn choose(
    policy: &Policy,
    weights: Option<&Weights>,
    candidates: &[Candidate<'_>],
    step: &Step<'_>,
) -> Decision {
    let mut scored = known(weights, candidates, step);
    let excluded = exclude(candidates, step, &mut scored);
    let free: Vec<usize> = (0..scored.len()).filter(|idx| excluded[*idx].is_none()).collect();
    let Some(first) = free.first().copied() else {
        return none_free(scored, &excluded);
    };
    let best = best_of(policy, step, &scored, &free, first);
    let held = step
        .current
        .filter(|current| !step.boundary && *current != best.tier && free.contains(current));
    let mut gate = None;
    if let Some(current) = held {
        let gain_p = gained(&scored[best.tier], &scored[current]);
        let weighed = weigh(policy, step, &candidates[current], &candidates[best.tier], gain_p);
        gate = Some(weighed);
        if weighed.held {
            return stay(scored, current, weighed, step.in_tools);
        }
    }
    let pinned = step.in_tools && !step.boundary && step.current.is_some();
    let others = if pinned { Vec::new() } else { explorable(candidates, step, &free, best.tier) };
    finish(policy, step, scored, best, &others, gate)
}

struct Best {
    tier: usize,
    reason: String,
}

fn known(weights: Option<&Weights>, candidates: &[Candidate<'_>], step: &Step<'_>) -> Vec<Scored> {
    let estimates = weights.map(|weights| weights.estimate(candidates, step)).unwrap_or_default();
    let scored = candidates.iter().enumerate().map(|(idx, model)| {
        let estimate = estimates.get(idx).copied().flatten();
        Scored {
            name: model.name.to_owned(),
            p_ok: estimate.map(|estimate| estimate.p_ok),
            cost_usd: model.price.map(|price| {
                price.cost_usd(step.input_tokens, model.cached_tokens, step.output_tokens)
            }),
            excluded: None,
            prior: estimate.map(|estimate| estimate.prior),
        }
    });
    scored.collect()
}

fn gained(best: &Scored, current: &Scored) -> f64 {
    best.p_ok.zip(current.p_ok).map_or(0.0, |(then, now)| then - now)
}

fn best_of(
    policy: &Policy,
    step: &Step<'_>,
    scored: &[Scored],
    free: &[usize],
    first: usize,
) -> Best {
    let learnt = free.iter().all(|idx| scored[*idx].p_ok.is_some());
    if !learnt || free.len() == 1 {
        let wanted = policy.start.get(&step.class).copied().unwrap_or(0);
        let tier = free.iter().copied().find(|idx| *idx >= wanted).unwrap_or(first);
        let class = step.class.as_str();
        let reason = match (free.len(), tier == wanted) {
            (1, _) => "the only model that may be asked".to_owned(),
            (_, true) if wanted > 0 => format!("the policy begins {class} steps here"),
            (_, true) => "small first: its answer is checked".to_owned(),
            (_, false) => format!("the first of the route that may be asked for {class} steps"),
        };
        return Best { tier, reason };
    }
    let cheapest = cheapest(scored, free, first);
    let worth = |idx: usize| {
        let model = &scored[idx];
        let above = if idx == cheapest { 0.0 } else { policy.gain_min };
        model.p_ok.unwrap_or(0.0) - policy.cost_weight * model.cost_usd.unwrap_or(0.0) - above
    };
    let mut tier = cheapest;
    // A dearer model must first have shown that it is better at steps of the class at all.
    let shown = |idx: &usize| is_better(&scored[*idx], &scored[cheapest]);
    for idx in free.iter().copied().filter(shown) {
        if worth(idx) > worth(tier) {
            tier = idx;
        }
    }
    Best { tier, reason: learnt_reason(&scored[tier], &scored[cheapest], tier == cheapest) }
}

/// The model that costs least, the first of equals; without all prices the first of the route.
fn cheapest(scored: &[Scored], free: &[usize], first: usize) -> usize {
    let mut found = first;
    for idx in free.iter().copied() {
        match (scored[idx].cost_usd, scored[found].cost_usd) {
            (Some(cost), Some(least)) if cost < least => found = idx,
            (Some(_), Some(_)) => {}
            _ => return first,
        }
    }
    found
}

fn learnt_reason(best: &Scored, cheapest: &Scored, is_cheapest: bool) -> String {
    let p_ok = best.p_ok.unwrap_or(0.0);
    if is_cheapest {
        return format!("right in {:.0} % of such steps, enough for its price", 100.0 * p_ok);
    }
    let other = cheapest.p_ok.unwrap_or(0.0);
    format!(
        "right in {:.0} % of such steps, {} in {:.0} %: worth its price",
        100.0 * p_ok,
        cheapest.name,
        100.0 * other
    )
}

/// What may be tried instead of the best: nothing that would lose a prompt cache.
fn explorable(
    candidates: &[Candidate<'_>],
    step: &Step<'_>,
    free: &[usize],
    best: usize,
) -> Vec<usize> {
    let warm = candidates[best].cached_tokens;
    let others = free
        .iter()
        .copied()
        .filter(|idx| *idx != best && (step.boundary || candidates[*idx].cached_tokens >= warm));
    others.collect()
}

fn finish(
    policy: &Policy,
    step: &Step<'_>,
    scored: Vec<Scored>,
    best: Best,
    others: &[usize],
    gate: Option<Gate>,
) -> Decision {
    let explore = if others.is_empty() { 0.0 } else { policy.explore.clamp(0.0, 0.5) };
    let (draw, pick) = draws(step.seed);
    if draw < explore {
        let tier = others[(pick % others.len() as u64) as usize];
        return Decision {
            tier,
            propensity: explore / others.len() as f64,
            explored: true,
            reason: format!("tried to learn about it, instead of {}", scored[best.tier].name),
            candidates: scored,
            gate,
        };
    }
    Decision {
        tier: best.tier,
        propensity: 1.0 - explore,
        explored: false,
        reason: best.reason,
        candidates: scored,
        gate,
    }
}

fn stay(scored: Vec<Scored>, current: usize, gate: Gate, in_tools: bool) -> Decision {
    let reason = if in_tools {
        "stays with the model that called the tools".to_owned()
    } else {
        format!(
            "stays: a switch gains ${:.6} and loses ${:.6} of prompt cache",
            gate.gain_usd, gate.regret_usd
        )
    };
    Decision {
        tier: current,
        propensity: 1.0,
        explored: false,
        reason,
        candidates: scored,
        gate: Some(gate),
    }
}

fn none_free(scored: Vec<Scored>, excluded: &[Option<Exclusion>]) -> Decision {
    // The gravest come first in their order, so the mildest is the greatest.
    let mut tier = 0;
    for idx in 0..excluded.len() {
        if excluded[idx] > excluded[tier] {
            tier = idx;
        }
    }
    let why = scored.get(tier).and_then(|model| model.excluded.clone()).unwrap_or_default();
    Decision {
        tier,
        propensity: 1.0,
        reason: format!("no model fits; the least bad: {why}"),
        candidates: scored,
        ..Decision::default()
    }
}

/// Two draws from a seed: one in 0..1, one whole number.
///
/// # Source
/// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
fn draws(seed: u64) -> (f64, u64) {
    let mut state = seed ^ 0x726f_7574_6500_0000;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let first = (next() >> 11) as f64 / (1u64 << 53) as f64;
    (first, next())
}

//! Which models may not be asked, and why, in plain words.

use crate::decide::Scored;
use crate::{Candidate, Step};

/// How much the estimate of a request's tokens may be too low.
const CONTEXT_MARGIN: f64 = 1.05;
/// One-sided 95 % of the normal distribution.
const CONFIDENCE: f64 = 1.645;

/// Why a model is left out, gravest first: the order in which to take one when all are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exclusion {
    Incapable,
    Context,
    NotReady,
    Budget,
    Dominated,
}

/// Marks every model that the step must not begin with.
pub(crate) fn exclude(
    candidates: &[Candidate<'_>],
    step: &Step<'_>,
    scored: &mut [Scored],
) -> Vec<Option<Exclusion>> {
    let mut found: Vec<Option<Exclusion>> = vec![None; candidates.len()];
    for (idx, model) in candidates.iter().enumerate() {
        if let Some((why, text)) = unfit(model, step) {
            (found[idx], scored[idx].excluded) = (Some(why), Some(text));
        }
    }
    exclude_unaffordable(step, scored, &mut found);
    exclude_dominated(scored, &mut found);
    found
}

fn unfit(model: &Candidate<'_>, step: &Step<'_>) -> Option<(Exclusion, String)> {
    if !model.capable {
        return Some((Exclusion::Incapable, "cannot do what the step needs".to_owned()));
    }
    let needed = (step.input_tokens as f64 * CONTEXT_MARGIN) as u64;
    let needed = needed.saturating_add(step.output_tokens);
    if let Some(fits) = model.context_tokens.filter(|fits| needed > *fits) {
        let text = format!("the step needs about {needed} tokens, {fits} fit");
        return Some((Exclusion::Context, text));
    }
    (!model.ready).then(|| (Exclusion::NotReady, "is not ready to be called".to_owned()))
}

/// A step that begins below the dearest model must leave enough for one call of that.
fn exclude_unaffordable(step: &Step<'_>, scored: &mut [Scored], found: &mut [Option<Exclusion>]) {
    let Some(budget) = step.budget_usd else { return };
    let free = |idx: usize, scored: &[Scored], found: &[Option<Exclusion>]| {
        found[idx].is_none().then(|| scored[idx].cost_usd.unwrap_or(0.0))
    };
    let costs = (0..scored.len()).filter_map(|idx| free(idx, scored, found));
    let dearest = costs.fold(0.0, f64::max);
    // Once a reserved call of the dearest cannot be paid at all, nothing is reserved any more.
    let reserve = if dearest <= budget { dearest } else { 0.0 };
    for idx in 0..scored.len() {
        let Some(cost) = free(idx, scored, found) else { continue };
        let needed = if cost < reserve { cost + reserve } else { cost };
        if needed > budget {
            found[idx] = Some(Exclusion::Budget);
            scored[idx].excluded =
                Some(format!("needs ${needed:.6}, ${budget:.6} are left to spend"));
        }
    }
}

/// A model is dominated by one that costs no more and is better with 95 % confidence.
fn exclude_dominated(scored: &mut [Scored], found: &mut [Option<Exclusion>]) {
    for idx in 0..scored.len() {
        if found[idx].is_some() {
            continue;
        }
        let better = (0..scored.len())
            .find(|other| found[*other].is_none() && dominates(&scored[*other], &scored[idx]));
        if let Some(other) = better {
            let text = format!("{} costs no more and is better at such steps", scored[other].name);
            (found[idx], scored[idx].excluded) = (Some(Exclusion::Dominated), Some(text));
        }
    }
}

fn dominates(better: &Scored, worse: &Scored) -> bool {
    let (Some(cost), Some(other_cost)) = (better.cost_usd, worse.cost_usd) else { return false };
    cost <= other_cost && is_better(better, worse)
}

/// Whether a model is better than another at steps of the class, with 95 % confidence.
pub(crate) fn is_better(better: &Scored, worse: &Scored) -> bool {
    let (Some(one), Some(other)) = (better.prior, worse.prior) else { return false };
    let spread = (one.variance() + other.variance()).sqrt();
    one.mean - other.mean > CONFIDENCE * spread
}

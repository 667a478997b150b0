//! Whether an answer may count, from what its checks found.
//!
//! Untrained, only strong evidence speaks against an answer; what is merely unusual does not reject.

use serde::{Deserialize, Serialize};

use crate::{Policy, Signals, StepClass, Weights};

/// What an answer is worth that nothing speaks against, while nothing is learnt.
const UNTRAINED: f64 = 0.8;
/// Share of said-again runs from which an answer is taken to go in circles.
const REPETITION_MAX: f64 = 0.6;
/// Mean log-probability below which a model guesses: a token in five is right.
const LOGPROB_MIN: f64 = -1.6;
/// Phrases of doubt in one answer from which it is taken to guess.
const HEDGES_MAX: u32 = 3;

/// What is thought of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Probability that it is right.
    pub p_ok: f64,
    /// Whether it is accepted.
    pub accept: bool,
    /// What speaks against it, in plain words; empty if nothing does.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// Combines what the checks of an answer found into one verdict.
#[must_use]
pub fn score(
    policy: &Policy,
    weights: Option<&Weights>,
    class: StepClass,
    signals: &Signals,
) -> Verdict {
    let objections = objections(signals);
    let fatal = signals.empty || signals.cut_off || signals.refused;
    let learnt = weights.and_then(|weights| weights.answer_ok(class, signals));
    let p_ok = match learnt {
        Some(p_ok) if !fatal => p_ok,
        _ => objections.iter().fold(UNTRAINED, |p_ok, objection| p_ok * objection.factor),
    };
    let mut reasons: Vec<String> = objections.into_iter().map(|each| each.reason).collect();
    let accept = p_ok >= policy.accept;
    if !accept && learnt.is_some() && !fatal {
        reasons.push(format!("such answers are right in {:.0} % of cases", 100.0 * p_ok));
    }
    Verdict { p_ok, accept, reasons }
}

/// Something that speaks against an answer, and what it leaves of the probability.
struct Objection {
    factor: f64,
    reason: String,
}

fn objections(signals: &Signals) -> Vec<Objection> {
    let mut found = Vec::new();
    let mut object = |factor: f64, reason: String| found.push(Objection { factor, reason });
    if signals.empty {
        object(0.02, "it is empty".to_owned());
    }
    if signals.cut_off {
        object(0.1, "it was cut off at its greatest length".to_owned());
    }
    if signals.refused {
        object(0.1, "the model refused".to_owned());
    }
    if signals.repetition > REPETITION_MAX {
        let percent = 100.0 * signals.repetition;
        object(0.3, format!("{percent:.0} % of it repeats itself"));
    }
    if signals.equations_wrong > 0 {
        object(0.5, format!("{} of its equations do not hold", signals.equations_wrong));
    }
    let missing = signals.values.saturating_sub(signals.values_grounded);
    if missing > 0 && 2 * missing > signals.values {
        let of = signals.values;
        object(0.6, format!("{missing} of {of} argument values occur nowhere in what it was told"));
    }
    if let Some(mean) = signals.logprob_mean.filter(|mean| *mean < LOGPROB_MIN) {
        object(0.6, format!("its tokens were guesses: mean log-probability {mean:.2}"));
    }
    if let Some(share) = signals.agreement.filter(|share| *share < 1.0) {
        object(0.5 + 0.5 * share, format!("{:.0} % of other tries agree", 100.0 * share));
    }
    if let Some(judge) = signals.judge.filter(|judge| *judge < 1.0) {
        object(0.4 + 0.6 * judge, format!("the judge gives it {judge:.2} of 1"));
    }
    if signals.hedges >= HEDGES_MAX {
        object(0.9, format!("it doubts itself {} times", signals.hedges));
    }
    if signals.evasions > 0 && signals.words < 60 {
        object(0.8, "it says that it cannot answer".to_owned());
    }
    found
}

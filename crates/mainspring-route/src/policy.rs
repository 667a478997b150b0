//! What is given to a decision: the user's policy, the models, and the step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::StepClass;

const PER_MILLION: f64 = 1e-6;

/// How steps are routed: the user's wishes as plain data. The default needs no training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Share of the free decisions that go to another model than the best, 0 to 0.5.
    pub explore: f64,
    /// Least probability of being right with which an answer is accepted, 0 to 1.
    pub accept: f64,
    /// How much probability of being right one US dollar must buy; 10 says that a right step is
    /// worth ten cents. 0 ignores prices.
    pub cost_weight: f64,
    /// Least gain in probability for which a step begins with a model dearer than the cheapest, 0 to 1.
    pub gain_min: f64,
    /// What a switch of models must gain beyond the prompt cache that it loses, in US dollars.
    pub margin_usd: f64,
    /// Position in the route at which steps of a class begin while nothing is learnt; 0 if missing.
    pub start: BTreeMap<StepClass, usize>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            explore: 0.03,
            accept: 0.5,
            cost_weight: 10.0,
            gain_min: 0.05,
            margin_usd: 0.0002,
            start: BTreeMap::new(),
        }
    }
}

impl Policy {
    /// What is wrong with the numbers: the field, the value seen and the values allowed.
    ///
    /// # Errors
    /// A number that is not finite or outside its range.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            ("explore", self.explore, 0.5),
            ("accept", self.accept, 1.0),
            ("cost_weight", self.cost_weight, 1e9),
            ("gain_min", self.gain_min, 1.0),
            ("margin_usd", self.margin_usd, 1e6),
        ];
        for (name, value, most) in bounds {
            // Not a number is in no range.
            if !(0.0..=most).contains(&value) {
                return Err(format!("policy {name} is {value}, allowed are 0 to {most}"));
            }
        }
        Ok(())
    }
}

/// Prices of a model in US dollars for a million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Prices {
    /// Tokens read.
    pub input_usd: f64,
    /// Tokens written.
    pub output_usd: f64,
    /// Tokens read from the provider's prompt cache; None: the same as other tokens read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_usd: Option<f64>,
}

impl Prices {
    /// What a call costs, in US dollars.
    #[must_use]
    pub fn cost_usd(&self, input_tokens: u64, cached_tokens: u64, output_tokens: u64) -> f64 {
        let cached = cached_tokens.min(input_tokens);
        let fresh = (input_tokens - cached) as f64 * self.input_usd;
        let known = cached as f64 * self.cached_input_usd();
        (fresh + known + output_tokens as f64 * self.output_usd) * PER_MILLION
    }

    /// What is lost when that many tokens must be read anew instead of from the cache.
    #[must_use]
    pub fn regret_usd(&self, tokens: u64) -> f64 {
        tokens as f64 * (self.input_usd - self.cached_input_usd()).max(0.0) * PER_MILLION
    }

    fn cached_input_usd(&self) -> f64 {
        self.cached_usd.unwrap_or(self.input_usd)
    }
}

/// A model that a step may go to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Candidate<'a> {
    /// The model's name, as in the weights.
    pub name: &'a str,
    /// Its prices; None: not known.
    pub price: Option<Prices>,
    /// How many tokens fit into a request and its answer; None: not known.
    pub context_tokens: Option<u64>,
    /// Whether its abilities fit the step: images, tools, schemas.
    pub capable: bool,
    /// Whether it can be called now: its breaker is not open.
    pub ready: bool,
    /// How many of the request's tokens it has in its prompt cache.
    pub cached_tokens: u64,
}

/// The step that is decided about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Step<'a> {
    /// What the step is for.
    pub class: StepClass,
    /// A finer name of the task, as in the training data: an agent, a tool, a subject; or empty.
    pub label: &'a str,
    /// The step's own short text, not the whole conversation.
    pub text: &'a str,
    /// Tokens of the request.
    pub input_tokens: u64,
    /// Tokens of the answer, as expected.
    pub output_tokens: u64,
    /// Position of the model of the previous step.
    pub current: Option<usize>,
    /// Whether the step goes on with a tool call's results: the model stays, whatever it costs.
    pub in_tools: bool,
    /// Whether the cached prefix is lost anyway: compaction, a long pause, an escalation.
    pub boundary: bool,
    /// What is left to spend; None: no limit.
    pub budget_usd: Option<f64>,
    /// Decides whether this step explores.
    pub seed: u64,
}

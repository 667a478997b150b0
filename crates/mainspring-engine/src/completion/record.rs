//! What is told of a completion once it has ended: enough to train and judge a router by.

use std::sync::Arc;
use std::time::Duration;

use mainspring_route::{Decision, StepClass};
use mainspring_session::{Failure, Usage};
use serde::Serialize;

use super::choose::class_of;
use super::request::{Attempt, Completion, CompletionError, CompletionRequest};
use super::route::ModelRoute;

/// One completion, as it ended. Holds neither keys nor what was said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionRecord {
    /// The route's name.
    pub route: String,
    /// Whose call it was; empty for the default tenant.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub tenant: Arc<str>,
    /// The model whose answer counted; none where there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its position in the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<usize>,
    /// What kind of step it was.
    pub class: StepClass,
    /// Which model was to be asked first, and why.
    pub decision: Decision,
    /// From the request to the end, in microseconds.
    pub total_us: u64,
    /// Tokens of all calls.
    pub usage: Usage,
    /// Price of all calls in US dollars, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Every call that was made, in order.
    pub attempts: Vec<Attempt>,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl CompletionRecord {
    pub(crate) fn of(
        route: &ModelRoute,
        request: &CompletionRequest,
        total: Duration,
        decision: &Decision,
        result: &Result<Completion, CompletionError>,
    ) -> Self {
        let (answered, attempts, error) = match result {
            Ok(done) => (Some((done.model.clone(), done.tier)), &done.attempts, None),
            Err(error) => (None, &error.attempts, Some(error.failure.clone())),
        };
        let (usage, cost_usd) = total_of(attempts);
        let (model, tier) = answered.unzip();
        Self {
            route: route.name().to_owned(),
            tenant: Arc::clone(&request.tenant),
            model,
            tier,
            class: class_of(request),
            decision: decision.clone(),
            total_us: u64::try_from(total.as_micros()).unwrap_or(u64::MAX),
            usage,
            cost_usd,
            attempts: attempts.clone(),
            error,
        }
    }
}

/// Tokens and price of all attempts; no price where none is known.
pub(crate) fn total_of(attempts: &[Attempt]) -> (Usage, Option<f64>) {
    let mut usage = Usage::default();
    let mut cost_usd = None;
    for attempt in attempts {
        usage.add(attempt.usage);
        if let Some(cost) = attempt.cost_usd {
            cost_usd = Some(cost_usd.unwrap_or(0.0) + cost);
        }
    }
    (usage, cost_usd)
}

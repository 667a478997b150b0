//! One routed model call without a session: no log, no tools run, nothing durable.
//!
//! A [`ModelRoute`] is a set of models made ready once. [`Completer::complete`] chooses one, asks
//! it, checks the answer, and repairs, escalates or falls back where it must; the same checks and
//! the same policy as in a session, so that a gateway and an agent route alike. Every loop ends:
//! [`CompletionLimits`] bounds the calls that one completion makes.
//!
//! Reading starts at `run.rs`; `route.rs` keeps what differs between requests compiled.

mod choose;
mod paying;
mod record;
mod request;
mod route;
mod run;
mod variants;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::agent::{Agent, Tier};
use crate::ports::{Models, SharedModels};

pub use paying::TenantBudgets;
pub use record::CompletionRecord;
pub use request::{
    Attempt, Completion, CompletionError, CompletionRequest, Piece, Streaming, ToolDef,
};
pub use route::{ModelRoute, RouteConfig, Verify};

/// What one completion may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletionLimits {
    /// Model calls of one completion, repairs, retries and escalations included. Default 12.
    pub calls_max: u32,
    /// Times that a rejected answer is sent back to the model that gave it, for each model.
    /// Default 1.
    pub repairs_max: u32,
    /// Tool calls that one answer may ask for. Default 128.
    pub tool_calls_max: u32,
}

impl Default for CompletionLimits {
    fn default() -> Self {
        Self { calls_max: 12, repairs_max: 1, tool_calls_max: 128 }
    }
}

/// Somebody who is told of every completion, from the thread that made it.
pub type Hook = Arc<dyn Fn(&CompletionRecord) + Send + Sync>;

/// What a completer works with beside the models.
#[derive(Clone, Default)]
pub struct CompleterConfig {
    /// What one completion may do.
    pub limits: CompletionLimits,
    /// What tenants may spend.
    pub budgets: TenantBudgets,
    /// Who is told of every completion.
    pub hook: Option<Hook>,
}

/// Makes completions. To be used inside one tokio runtime, like the connections it uses.
pub struct Completer {
    models: SharedModels,
    limits: CompletionLimits,
    budgets: TenantBudgets,
    hook: Option<Hook>,
    seeds: AtomicU64,
}

impl Completer {
    /// A completer that calls models by `models`.
    #[must_use]
    pub fn new(models: Arc<dyn Models>, config: CompleterConfig) -> Self {
        let CompleterConfig { limits, budgets, hook } = config;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = now.map_or(1, |now| now.as_nanos() as u64);
        Self { models, limits, budgets, hook, seeds: AtomicU64::new(seed) }
    }

    /// Asks a route, and reports pieces of the answer as far as the request wants them.
    ///
    /// Dropping the future ends the call that is under way.
    ///
    /// # Errors
    /// `agent_invalid` and `tool_schema_invalid` for what cannot be asked; the failure of the last
    /// model that was asked; `budget_exhausted`; `output_invalid` where no model's answer fits the
    /// output schema; `model_timeout` where the request's own time is up.
    pub async fn complete(
        &self,
        route: &ModelRoute,
        request: &CompletionRequest,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Completion, CompletionError> {
        let variant = route.variant(request)?;
        let started = Instant::now();
        let payer = self.budgets.payer(request, &variant)?;
        let chances = choose::Chances {
            budget_usd: self.budgets.left_usd(payer.as_ref()),
            ready: self.ready(&variant),
            seed: self.seed(),
        };
        let decision = choose::begin(route, request, &chances);
        let asked = run::Asked { route, agent: &variant, request, decision: &decision, payer };
        let mut run = run::Run::new(self, asked, on_piece);
        let outcome = run.outcome().await;
        let result = run.finish(outcome);
        if let (Ok(done), true) = (&result, route.models().len() > 1) {
            let input_tokens = done.attempts.last().map_or(0, |last| last.usage.input_tokens);
            route.conversations.answered(request, done.tier, input_tokens);
        }
        if let Some(hook) = &self.hook {
            hook(&CompletionRecord::of(route, request, started.elapsed(), &decision, &result));
        }
        result
    }

    /// Which models of a route could be called now; not asked about the only one there is.
    fn ready(&self, agent: &Agent) -> Vec<bool> {
        if agent.tiers.len() == 1 {
            return vec![true];
        }
        let ready = |tier: &Tier| !self.models.readiness(&tier.endpoints).breaker_open;
        agent.tiers.iter().map(ready).collect()
    }

    /// A number that differs from call to call.
    fn seed(&self) -> u64 {
        // The golden ratio keeps neighbours far apart; the finaliser is MurmurHash3's.
        let seed = self.seeds.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let seed = (seed ^ (seed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        seed ^ (seed >> 33)
    }
}

//! Who pays for completions: the tenant, if it has a budget. Reserved before each call of a model,
//! settled after it; what is spent is counted from when the budgets were made, and not stored.

use std::time::Duration;

use mainspring_models::ModelReply;
use mainspring_models::budget::{BudgetPath, Most, Reservation, Wanted};
use mainspring_session::{
    Amount, Budget, Estimate, Failure, ModelSpec, Price, State, charge_of_failure, estimate,
};
use mainspring_wire::HttpFailure;
use tokio::time::Instant;

use super::request::CompletionRequest;
use crate::agent::Agent;
use crate::budgets::Budgets;
use crate::ports::{Clock, SystemClock};

/// What tenants may spend on completions. Clones are the same.
#[derive(Clone, Default)]
pub struct TenantBudgets(Budgets);

impl TenantBudgets {
    /// Budgets of these tenants, by name.
    ///
    /// # Errors
    /// `budget_invalid`.
    pub fn new(tenants: &[(String, Budget)]) -> Result<Self, Failure> {
        Budgets::new(tenants).map(Self)
    }

    /// The account that pays for a request; none where its tenant has no budget.
    pub(super) fn payer(
        &self,
        request: &CompletionRequest,
        agent: &Agent,
    ) -> Result<Option<BudgetPath>, Failure> {
        self.0.payer(&request.tenant, &agent.spec, SystemClock.now_us())
    }

    /// US dollars that an account has left; none where nothing bounds them.
    pub(super) fn left_usd(&self, payer: Option<&BudgetPath>) -> Option<f64> {
        let account = payer?.accounts().first()?;
        let nanos = self.0.ledger().report(account)?.left().usd_nanos?;
        Some(nanos as f64 / 1e9)
    }

    /// Waits until a call fits into what an account has left.
    pub(super) async fn reserve(
        &self,
        payer: &BudgetPath,
        request: &CompletionRequest,
        agent: &Agent,
        tier: usize,
    ) -> Result<Paid, HttpFailure> {
        let model = &agent.spec.models[tier];
        let estimate = expected(request, agent, tier);
        let Estimate { likely, usd_nanos_max, tokens_max, .. } = estimate;
        let most = Most { usd_nanos: usd_nanos_max, tokens: tokens_max };
        let until = Instant::now() + patience(request, model);
        let wanted = Wanted { likely, most };
        let reservation = self.0.ledger().admit(payer, wanted, until).await?;
        Ok(Paid { reservation, estimate, price: model.price })
    }
}

/// What a call is expected to use, by the same rule as a session's.
fn expected(request: &CompletionRequest, agent: &Agent, tier: usize) -> Estimate {
    let state = State { messages: request.messages.clone(), ..State::default() };
    estimate(&state, &agent.spec, u32::try_from(tier).unwrap_or(u32::MAX))
}

fn patience(request: &CompletionRequest, model: &ModelSpec) -> Duration {
    request.timeout.unwrap_or(Duration::from_millis(model.total_ms_max))
}

/// A call that is paid for. Dropped unsettled, it has cost what was reserved.
pub(super) struct Paid {
    reservation: Reservation,
    estimate: Estimate,
    price: Option<Price>,
}

impl Paid {
    /// Charges what a call has used.
    pub(super) fn settle(self, result: &Result<ModelReply, HttpFailure>) {
        let Estimate { likely, read, .. } = self.estimate;
        let used = match result {
            Ok(reply) if reply.usage.total() == 0 => likely,
            Ok(reply) => {
                Amount::of_call(reply.usage, self.price.map(|price| price.of(reply.usage)))
            }
            Err(error) => charge_of_failure(&error.failure.code, likely, read),
        };
        self.reservation.settle(used);
    }
}

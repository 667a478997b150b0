//! Who pays for a session's model calls: what is reserved before each, settled after it, and charged
//! to its tenant with the events that say so.
//!
//! Invariant: what a tenant is charged in the store is the sum of what the logs of its sessions say
//! that they have spent. Both are written in one append, so that a crash loses or doubles neither.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainspring_journal::{AppendMode, Charge, Journal};
use mainspring_models::ModelReply;
use mainspring_models::budget::{
    Account, AccountReport, BudgetPath, Ledger, LedgerLimits, Most, SecondCall, Wanted,
};
use mainspring_session::{
    ActiveModelCall, ActiveSummary, AgentSpec, Amount, Budget, Check, ErrorCode, Estimate, Event,
    Failure, Funding, ModelSpec, Price, charge_of_answer, charge_of_failure, check_model,
    check_tenant, estimate, estimate_check, estimate_summary,
};
use mainspring_wire::HttpFailure;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::live::{Key, Live};
use crate::loader::Loader;
use crate::shard::Shard;

/// The budgets of an engine. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Budgets {
    ledger: Ledger,
    tenants: Arc<BTreeMap<String, Budget>>,
}

impl Budgets {
    /// Budgets of these tenants, by name.
    ///
    /// # Errors
    /// `budget_invalid`.
    pub(crate) fn new(tenants: &[(String, Budget)]) -> Result<Self, Failure> {
        for (name, budget) in tenants {
            let invalid = |what: &str| {
                Err(Failure::new(ErrorCode::BUDGET_INVALID, format!("tenant {name:?}: {what}")))
            };
            check_tenant(name)?;
            budget.check()?;
            if name.is_empty() {
                return invalid("a tenant with a budget has no name");
            }
            if budget.ms.is_some() {
                return invalid("only the budget of a session counts seconds");
            }
        }
        let tenants = Arc::new(tenants.iter().cloned().collect());
        Ok(Self { ledger: Ledger::new(LedgerLimits::default()), tenants })
    }

    /// Reads what tenants have spent, in a store that nobody else writes to: before anything is
    /// charged here, so that nothing is counted twice.
    ///
    /// # Errors
    /// The journal's own errors.
    pub(crate) fn load(&self, journal: &dyn Journal, at_us: i64) -> Result<(), Failure> {
        if journal.is_shared() || self.tenants.is_empty() {
            return Ok(());
        }
        let accounts: Vec<_> =
            self.tenants.keys().filter_map(|tenant| self.account(tenant, at_us)).collect();
        let names: Vec<_> = accounts.iter().map(|(account, _)| account.to_shared()).collect();
        let spent = journal.spent(&names).map_err(|error| error.failure())?;
        for ((account, budget), total) in accounts.iter().zip(spent) {
            self.ledger.told(account, budget, Amount::default(), total);
        }
        Ok(())
    }

    /// The account of a tenant that has a budget here.
    fn account(&self, tenant: &str, at_us: i64) -> Option<(Account, Budget)> {
        let budget = self.tenants.get(tenant)?;
        Some((Account::tenant(tenant, budget.per, at_us), budget.clone()))
    }

    /// Refuses what cannot be paid because its price is not known.
    ///
    /// # Errors
    /// `budget_unpriced`.
    pub(crate) fn check(&self, funding: &Funding, spec: &AgentSpec) -> Result<(), Failure> {
        let own = funding.budget.as_ref();
        let counts = |budget: Option<&Budget>| budget.is_some_and(|it| it.usd_nanos.is_some());
        if !counts(own) && !counts(self.tenants.get(&funding.tenant)) {
            return Ok(());
        }
        match spec.models.iter().find(|model| model.price.is_none()) {
            Some(model) => Err(unpriced(&model.name)),
            None => Ok(()),
        }
    }

    /// The account that pays for a call without a session, kept from its first call on; none where
    /// the tenant has no budget here.
    ///
    /// # Errors
    /// `budget_unpriced`.
    pub(crate) fn payer(
        &self,
        tenant: &str,
        spec: &AgentSpec,
        at_us: i64,
    ) -> Result<Option<BudgetPath>, Failure> {
        let Some((account, budget)) = self.account(tenant, at_us) else { return Ok(None) };
        self.check(&Funding { tenant: tenant.to_owned(), ..Funding::default() }, spec)?;
        if !self.ledger.keeps(&account) {
            self.ledger.open(&account, budget, Amount::default());
        }
        Ok(Some(BudgetPath::new(vec![account])))
    }

    /// All accounts.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What a session has spent since its account was like this, for the store.
    pub(crate) fn charges(&self, live: &Live, before: Amount, at_us: i64) -> Vec<Charge> {
        let spending = &live.state.spending;
        let amount = spending.charged.minus(before);
        let now = || Some(self.account(&spending.funding.tenant, at_us)?.0);
        match live.payer.clone().or_else(now) {
            Some(account) if !amount.is_nothing() => {
                vec![Charge { account: account.to_shared(), amount }]
            }
            _ => Vec::new(),
        }
    }

    /// The same for a session that is not alive here.
    pub(crate) fn charges_aside(
        &self,
        funding: &Funding,
        amount: Amount,
        at_us: i64,
    ) -> Vec<Charge> {
        match self.account(&funding.tenant, at_us) {
            Some((account, _)) if !amount.is_nothing() => {
                self.ledger.spend(&account, amount);
                vec![Charge { account: account.to_shared(), amount }]
            }
            _ => Vec::new(),
        }
    }

    /// Notes calls whose process died: nobody has settled them here.
    pub(crate) fn note_lost(&self, live: &Live, events: &[Event], at_us: i64) {
        let funding = &live.state.spending.funding;
        if funding.is_empty() {
            return;
        }
        let lost = events.iter().filter_map(|event| match event {
            Event::ModelCallFailed(failed) if failed.error.code == ErrorCode::PROCESS_LOST => {
                failed.charged
            }
            Event::SummaryFailed(failed) if failed.error.code == ErrorCode::PROCESS_LOST => {
                failed.charged
            }
            _ => None,
        });
        let lost = lost.fold(Amount::default(), Amount::plus);
        if let (Some((account, _)), false) =
            (self.account(&funding.tenant, at_us), lost.is_nothing())
        {
            self.ledger.spend(&account, lost);
        }
    }

    /// The store has taken charges.
    pub(crate) fn committed(&self, charges: &[Charge]) {
        for charge in charges {
            self.ledger.committed(&Account::stored(&charge.account), charge.amount);
        }
    }

    /// Forgets a session.
    pub(crate) fn close(&self, live: &Live) {
        if live.state.budget().is_some() {
            self.ledger.close(&Account::session(&live.id));
        }
    }

    /// How the budget of a tenant stands; none if it has none here.
    pub(crate) fn report(
        &self,
        journal: &dyn Journal,
        tenant: &str,
        at_us: i64,
    ) -> Result<Option<AccountReport>, Failure> {
        let Some((account, budget)) = self.account(tenant, at_us) else { return Ok(None) };
        if journal.is_shared() || !self.ledger.keeps(&account) {
            let mark = self.ledger.mark(&account);
            let spent = journal.spent(&[account.to_shared()]).map_err(|error| error.failure())?;
            let total = spent.first().copied().unwrap_or_default();
            self.ledger.told(&account, &budget, mark, total);
        }
        Ok(self.ledger.report(&account))
    }
}

fn unpriced(model: &str) -> Failure {
    let message = format!("a budget counts dollars, and the price of model {model:?} is not known");
    Failure::new(ErrorCode::BUDGET_UNPRICED, message)
        .with_hint("give the model a price, 0 if it costs nothing, or count tokens instead")
}

/// A model call and who pays for it.
pub(crate) struct Paid {
    budgets: Budgets,
    path: BudgetPath,
    /// The tenant's account and budget, as long as the store must be asked for its total.
    ask: Option<(Account, Budget, Loader)>,
    /// What to say instead of making the call.
    refused: Option<Failure>,
    wanted: Wanted,
    /// What it has cost when it was only read.
    read: Amount,
    price: Option<Price>,
    until: Instant,
}

impl Shard {
    /// Who pays for a call of a model with the conversation; none if nobody does.
    pub(crate) fn paid(&mut self, key: Key, call: ActiveModelCall) -> Option<Paid> {
        let live = self.lives.get(&key)?;
        let likely = live.state.spending.reserved?;
        let bounds = estimate(&live.state, &live.agent.spec, call.tier);
        let agent = Arc::clone(&live.agent);
        self.paid_within(key, agent.spec.models.get(call.tier as usize)?, likely, bounds)
    }

    /// Who pays for one of the calls of a check; none if nobody does.
    pub(crate) fn paid_check(&mut self, key: Key, check: Check) -> Option<Paid> {
        let live = self.lives.get(&key)?;
        if live.state.spending.funding.is_empty() {
            return None;
        }
        let agent = Arc::clone(&live.agent);
        let (model, _) = check_model(&live.state, &agent.spec, check)?;
        let bounds = estimate_check(&live.state, &agent.spec, check)?;
        let mut paid = self.paid_within(key, model, bounds.likely, bounds)?;
        let live = self.lives.get(&key)?;
        if paid.refused.is_none() && model.price.is_none() {
            let funding = &live.state.spending.funding;
            let bare = AgentSpec { models: vec![model.clone()], ..AgentSpec::default() };
            paid.refused = self.config.budgets.check(funding, &bare).err();
        }
        Some(paid)
    }

    /// Who pays for a summary; none if nobody does.
    pub(crate) fn paid_summary(&mut self, key: Key, summary: &ActiveSummary) -> Option<Paid> {
        let live = self.lives.get(&key)?;
        let likely = live.state.spending.reserved?;
        let bounds = estimate_summary(&live.agent.spec, summary);
        let agent = Arc::clone(&live.agent);
        self.paid_within(key, agent.spec.models.get(summary.tier as usize)?, likely, bounds)
    }

    fn paid_within(
        &mut self,
        key: Key,
        model: &ModelSpec,
        likely: Amount,
        bounds: Estimate,
    ) -> Option<Paid> {
        let at_us = self.now_us();
        let budgets = self.config.budgets.clone();
        let live = self.lives.get_mut(&key)?;
        let spending = &live.state.spending;
        let tenant = budgets.account(&spending.funding.tenant, at_us);
        live.payer = tenant.as_ref().map(|(account, _)| account.clone());
        let mut accounts: Vec<Account> = live.payer.iter().cloned().collect();
        accounts.extend(spending.funding.within.iter().map(Account::session));
        if let Some(budget) = live.state.budget() {
            let own = Account::session(&live.id);
            budgets.ledger.open(&own, budget.clone(), spending.spent);
            accounts.push(own);
        }
        if accounts.is_empty() {
            return None;
        }
        let spec = &live.agent.spec;
        let shared = self.config.journal.is_shared();
        let ask = tenant.filter(|(account, _)| shared || !budgets.ledger.keeps(account));
        let loader = self.config.loader.clone();
        Some(Paid {
            path: BudgetPath::new(accounts),
            ask: ask.map(|(account, budget)| (account, budget, loader)),
            refused: budgets.check(&spending.funding, spec).err(),
            wanted: Wanted {
                likely,
                most: Most { usd_nanos: bounds.usd_nanos_max, tokens: bounds.tokens_max },
            },
            read: bounds.read,
            price: model.price,
            until: Instant::now() + Duration::from_millis(model.total_ms_max),
            budgets,
        })
    }
}

impl Paid {
    /// What a second call beside this one reserves, if one is made.
    pub(crate) fn second(&self) -> Arc<SecondCall> {
        let (ledger, path) = (self.budgets.ledger.clone(), self.path.clone());
        Arc::new(SecondCall { ledger, path, wanted: self.wanted })
    }
}

/// Makes a call within what its payers have left, and settles it.
pub(crate) async fn within(
    paid: Option<Paid>,
    call: impl Future<Output = Result<ModelReply, HttpFailure>>,
) -> Result<ModelReply, HttpFailure> {
    let Some(paid) = paid else { return call.await };
    if let Some(refused) = paid.refused {
        return Err(refused.into());
    }
    if let Some((account, budget, loader)) = &paid.ask {
        paid.budgets.learn(account, budget, loader).await?;
    }
    let ledger = &paid.budgets.ledger;
    let reservation = ledger.admit(&paid.path, paid.wanted, paid.until).await?;
    let mut result = call.await;
    let likely = paid.wanted.likely;
    let used = match &result {
        Ok(reply) => {
            let other = reply.notes.hedge.and_then(|hedge| hedge.cost_usd_estimate);
            let cost_usd = paid.price.map(|price| price.of(reply.usage) + other.unwrap_or(0.0));
            charge_of_answer(reply.usage, cost_usd, &reply.notes, likely)
        }
        Err(error) => charge_of_failure(&error.failure.code, likely, paid.read),
    };
    reservation.settle(used);
    if let Ok(reply) = &mut result {
        reply.notes.budget_low = ledger.is_low(&paid.path);
    }
    result
}

impl Budgets {
    /// Asks the store what a tenant has spent in all processes.
    async fn learn(
        &self,
        account: &Account,
        budget: &Budget,
        loader: &Loader,
    ) -> Result<(), Failure> {
        let (told, answer) = oneshot::channel();
        let name = account.to_shared();
        let mark = self.ledger.mark(account);
        loader.run(move |journal| drop(told.send(journal.spent(&[name]))));
        let gone = || Failure::new(ErrorCode::ENGINE_CLOSED, "the engine was closed");
        let spent = answer.await.map_err(|_| gone())?.map_err(|error| error.failure())?;
        self.ledger.told(account, budget, mark, spent.first().copied().unwrap_or_default());
        Ok(())
    }
}

/// What a session had been charged before a decision: a fork begins at nothing.
pub(crate) fn charged_before(live: &Live) -> Amount {
    match live.mode {
        AppendMode::Fork { .. } => Amount::default(),
        _ => live.state.spending.charged,
    }
}

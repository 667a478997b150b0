//! What a call may cost before it is made.

use mainspring_session::{Amount, Failure};

use super::account::BudgetPath;
use super::ledger::{Ledger, Reservation};

/// What a call surely does not exceed; none where there is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Most {
    /// US dollars, in billionths.
    pub usd_nanos: Option<u64>,
    /// Tokens read and written.
    pub tokens: Option<u64>,
}

/// What a call wants to reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// What it is expected to use: charged if nobody ever learns what it did use.
    pub likely: Amount,
    /// What it cannot exceed.
    pub most: Most,
}

impl From<Amount> for Wanted {
    /// A call that uses exactly this.
    fn from(amount: Amount) -> Self {
        let most = Most { usd_nanos: Some(amount.usd_nanos), tokens: Some(amount.tokens) };
        Self { likely: amount, most }
    }
}

/// What it takes to pay for a second call beside one that is paid for.
#[derive(Debug)]
pub struct SecondCall {
    /// Who keeps the accounts.
    pub ledger: Ledger,
    /// Who pays.
    pub path: BudgetPath,
    /// What it may use: as much as the first.
    pub wanted: Wanted,
}

impl SecondCall {
    /// Reserves for the second call, without waiting. Whoever settles the first counts what this one
    /// has used, so that it gives back all that it holds.
    ///
    /// # Errors
    /// `budget_exhausted`.
    pub(crate) fn reserve(&self) -> Result<Loan, Failure> {
        self.ledger.reserve(&self.path, self.wanted).map(|held| Loan(Some(held)))
    }
}

/// A reservation that is given back whole.
pub(crate) struct Loan(Option<Reservation>);

impl Loan {
    /// Both calls failed, so nobody else counts the second one.
    pub(crate) fn spend_call(mut self) {
        if let Some(held) = self.0.take() {
            held.settle(Amount::one_call());
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            held.settle(Amount::default());
        }
    }
}

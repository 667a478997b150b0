//! Budgets that many sessions share: reserve before a call, settle after it.
//!
//! A call is let pass only if it fits at every level of its [`BudgetPath`] (tenant, session, child)
//! at once. Invariant: what is spent at a level is never above its budget by more than what one
//! call wrote beyond its estimate. `level.rs` has the rule and its proof; reading starts there.

mod account;
mod ledger;
mod level;
mod wanted;

pub use account::{Account, BudgetPath};
pub use ledger::{AccountReport, Ledger, LedgerLimits, Reservation};
pub use wanted::{Most, SecondCall, Wanted};

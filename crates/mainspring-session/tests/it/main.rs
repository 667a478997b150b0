//! Tests of the pure core: what each fact leads to, and what holds for every log.
//!
//! `transitions.rs` has a row for every pair of phase and fact; `laws.rs` says what no sequence
//! of facts may break. The other files tell one behaviour each. Nothing here has a clock: time
//! and seeds are values.

#[cfg(test)]
mod approvals;
#[cfg(test)]
mod budgets;
#[cfg(test)]
mod cancelling;
#[cfg(test)]
mod catalogue;
#[cfg(test)]
mod checking;
#[cfg(test)]
mod context;
#[cfg(test)]
mod effects;
#[cfg(test)]
mod event;
#[cfg(test)]
mod fact;
#[cfg(test)]
mod forks;
#[cfg(test)]
mod format;
#[cfg(test)]
mod held;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod models;
#[cfg(test)]
mod play;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tool_search;
#[cfg(test)]
mod tools;
#[cfg(test)]
mod transitions;
#[cfg(test)]
mod upcast;
#[cfg(test)]
mod values;
#[cfg(test)]
mod world;

//! Runs of the simulation: seeds that once found something, and a short range; and the bill of routing.

mod bill;
mod found;
mod range;

/// Runs a seed and fails with what happened last.
fn check(seed: u64) {
    let report = mainspring_sim::run(seed);
    assert!(report.violations.is_empty(), "{report}");
}

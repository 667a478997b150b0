//! What the journal promises, tested through its public interface: the contract of every store,
//! the SQLite file, its limits, wrong input, and processes killed for real.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail a test by panicking")]

mod bad_input;
mod batching;
mod contract;
mod crash;
mod file;
mod full_disk;
mod support;

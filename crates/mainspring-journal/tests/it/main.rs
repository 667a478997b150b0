//! What the journal promises, tested through its public interface: the contract of every store,
//! the SQLite file, its limits, wrong input, and processes killed for real.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail a test by panicking")]

mod bad_input;
mod batching;
mod charges;
mod contract;
mod crash;
mod crash_pruning;
mod file;
mod forks;
mod full_disk;
mod histories;
mod many_sessions;
mod owners;
mod postgres_faults;
mod postgres_nodes;
mod postgres_open;
mod postgres_pooler;
mod postgres_races;
mod postgres_together;
mod proxy;
mod pruning;
mod server;
mod support;
mod upgrade;

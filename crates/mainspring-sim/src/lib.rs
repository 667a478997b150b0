//! The simulation: the engine's own shards and core under virtual time, on a store, a host and
//! models that go wrong as a seed says.
//!
//! Two nodes share one store. Their processes die at any call of a port, are stopped, drained and
//! have their clocks set; clients use both at once. A witness looks at every append, a ledger at
//! every effect. When the faults end, every session must come to an end or say whom it waits for.
//! The same seed gives the same run, to the last event.
//!
//! Start reading at [`run`], then `process.rs` (what dies), `journal.rs` (what the store does) and
//! `witness.rs` (what must hold).

mod agents;
pub mod bill;
mod client;
mod cluster;
mod final_checks;
mod host;
mod journal;
mod ledger;
mod models;
mod process;
mod rng;
mod scenario;
mod trouble;
mod truth;
mod witness;
mod world;

pub use scenario::{Report, run};
pub use world::Counts;

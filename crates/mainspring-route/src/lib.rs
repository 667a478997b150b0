//! Which model a step goes to, and whether its answer may count: pure functions over plain numbers.
//!
//! No clock, randomness or I/O: seeds arrive as arguments, learnt weights as data. The same arguments
//! give the same decision, so that a log can be replayed, also under another policy.
//!
//! Start reading at [`choose`] (`decide.rs`), then [`signals`] and [`score`].

mod arithmetic;
mod class;
mod decide;
mod eligible;
mod features;
mod file;
mod gate;
mod ground;
mod learnt;
mod policy;
mod score;
mod signals;
mod weights;

pub use class::StepClass;
pub use decide::{Decision, Scored, choose};
pub use features::{FEATURE_BITS, Features, SURFACE_COUNT, SURFACE_NAMES};
pub use gate::Gate;
pub use policy::{Candidate, Policy, Prices, Step};
pub use score::{Verdict, score};
pub use signals::{Evidence, SIGNAL_COUNT, SIGNAL_NAMES, Signals, signals};
pub use weights::{Estimate, Prior, Weights, WeightsError};

//! Behaviour of the routing policy, through its public functions.

mod answers;
mod choosing;
mod features;
mod gates;
mod laws;
mod support;
mod weights;

//! Model calls over HTTP: one request out, one answer or one classified failure back.
//!
//! The bytes are those of `mainspring-wire`; this crate adds turns, connections, deadlines and bounds.
//! A call that failed is never made again here: whether and when is decided, and recorded, by the
//! session. No message and no `Debug` output holds a key. Reading starts at `client.rs`.

mod adapter;
mod admission;
pub mod budget;
mod call;
mod client;
mod direct;
mod endpoint;
mod endpoint_set;
mod exchange;
mod failure;
mod limits;
mod pool;
mod race;
mod transport;

pub use adapter::{AdapterCall, AdapterReport, ModelHost};
pub use admission::{Admission, AdmissionLimits, ChannelReport, Readiness};
pub use client::{ModelClient, ModelReply, ModelRequest};
pub use endpoint::Endpoint;
pub use endpoint_set::{CallPolicy, EndpointSet, Weighted};
pub use limits::TransportLimits;

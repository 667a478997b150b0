//! Model calls over HTTP: one request out, one answer or one classified failure back.
//!
//! The bytes are those of `mainspring-wire`; this crate adds connections, deadlines and bounds. A
//! call never retries: whether and when to try again is decided, and recorded, by the session. No
//! message and no `Debug` output holds a key. Reading starts at `client.rs`.

mod client;
mod direct;
mod endpoint;
mod exchange;
mod failure;
mod limits;
mod pool;
mod transport;

pub use client::{ModelClient, ModelReply, ModelRequest};
pub use endpoint::Endpoint;
pub use limits::TransportLimits;

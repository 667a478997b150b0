//! The gateway: routes as an OpenAI-compatible HTTP server, so that any framework can use them.
//!
//! Invariants: no request is read past its limits, and no client holds a connection that makes no
//! progress; a client that is gone ends the calls made for it; without tokens only this machine is
//! listened to; neither a token nor a model's key is in any answer or log.
//!
//! Each worker is a thread with a runtime and model connections of its own; all accept from one
//! socket. Start reading at [`Gateway`], then `connection.rs` and `chat.rs`.

mod auth;
mod chat;
mod config;
mod connection;
mod gateway;
mod io;
mod metrics;
mod refusal;
mod service;
mod stream;

pub use config::{ClientToken, GatewayConfig, GatewayLimits, MemberConfig, ServedRoute};
pub use gateway::Gateway;

//! The MCP client: one broker that owns every connection to a tool server.
//!
//! Invariants: a server process never outlives this process, however it ends (`watchdog`); memory
//! per server is bounded by [`McpLimits`] whatever the server writes (`transport`); a bad answer
//! costs the call that got it, and a dead server costs the calls in flight, once (`connection`).
//! The protocol library stays inside this crate: no type of it is public.
//!
//! Start reading in `broker`, then `connection`.

mod broker;
mod call;
mod config;
mod connection;
mod content;
mod error;
mod process;
mod transport;
mod watchdog;

pub use broker::{McpBroker, McpServer};
pub use call::{Guard, McpCall, McpResult, McpTool};
pub use config::{McpLimits, StdioConfig};
pub use error::McpError;

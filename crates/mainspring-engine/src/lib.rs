//! The engine: carries out what the pure core decides.
//!
//! It owns mailboxes, dispatch, deadlines and recovery, and decides nothing about a session
//! itself: facts go into `mainspring_session::decide`, the events that come out are made durable,
//! and only then are their commands carried out. Each session lives on one shard, a thread with
//! its own mailbox; a shard shares nothing with another, so no lock is held across sessions.
//!
//! Start reading at [`Engine`], then `shard.rs` (the loop) and `live.rs` (one session).

mod agent;
mod budgets;
mod cache;
mod check;
mod checking;
mod claims;
mod completion;
mod decisions;
mod deferred;
mod dispatch;
mod drain;
mod engine;
mod follow;
mod history;
mod host;
mod live;
mod loader;
mod mail;
mod outcome;
mod ports;
mod replay;
mod requests;
mod route;
mod shard;
mod summary;
mod timers;
mod watch;

pub use agent::{Agent, AgentConfig, Binding, EndpointAccess, ModelAccess};
pub use completion::{
    Attempt, Completer, CompleterConfig, Completion, CompletionError, CompletionLimits,
    CompletionRecord, CompletionRequest, Hook, ModelRoute, Piece, RouteConfig, Streaming,
    TenantBudgets, ToolDef, Verify,
};
pub use engine::{Engine, EngineConfig, EngineLimits, Parts, ShardTask, raise_descriptor_limit};
pub use host::{CallContext, Host, HostCall, HostJob, HostOutcome, HostResult, Ticket};
pub use loader::{pending, state_json};
pub use mail::{
    ClaimRequest, DecideRequest, Decision, DrainReport, Edit, ForkRequest, OnChange, Opened,
    Payment, Reply, ResumeRequest, StartRequest,
};
pub use outcome::{Pending, PendingKind, SessionOutcome, SessionReport};
pub use ports::{Clock, Models, SystemClock};
pub use replay::{Replay, replay};
pub use watch::{WatchBatch, WatchItem};

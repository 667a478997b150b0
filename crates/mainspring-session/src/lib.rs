//! The pure core of a session: what may happen, and what follows from it.
//!
//! A session is its append-only list of events; nothing else is true. This crate owns the event
//! types, the [`State`] folded from them, and [`decide`], which turns a [`Fact`] from the outside
//! world into new events. It holds no clock, no randomness and no I/O: time and seeds arrive with
//! each fact ([`Moment`]), so every run can be repeated exactly.
//!
//! ```text
//! fact ──decide──▶ events ──(journal: durable)──▶ fold ──commands──▶ the world ──▶ facts
//! ```
//!
//! Start reading at `decide.rs`; its table of transitions is the whole behaviour.

mod asking;
mod calls;
mod command;
mod decide;
mod error;
mod event;
mod fold;
mod follow;
mod ids;
mod limits;
mod message;
mod recover;
mod replay;
mod retry;
mod snapshot;
mod spec;
mod state;
mod upcast;

pub use asking::{
    ApprovalDecided, ApprovalDecision, ApprovalRequested, EffectOutcome, EffectResolved,
    EffectUnknown,
};
pub use command::{Command, commands};
pub use decide::{Fact, FactKind, Moment, Refused, TRANSITIONS, decide};
pub use error::{CATALOGUE, CatalogueEntry, ErrorCode, Failure};
pub use event::{
    AnswerRejected, AnswerVerified, EpochTaken, Event, FinishReason, ForkEdit, InputReceived,
    ModelCallFailed, ModelCallFinished, ModelCallStarted, Origin, Problem, Record, RejectAction,
    RouteDecided, SCHEMA_VERSION, SessionFinished, SessionForked, SessionStarted, Timing,
    ToolCallFailed, ToolCallFinished, ToolCallLate, ToolCallStarted,
};
pub use ids::{ApprovalId, BlobHash, CallIndex, EffectId, Epoch, InvalidSessionId, Seq, SessionId};
pub use limits::Limits;
pub use message::{Answer, Message, Part, ToolCall, Usage};
pub use replay::{Divergence, Recorded, Replayed, replay};
pub use retry::WAIT_MS_MAX;
pub use spec::{AgentSpec, Approve, Effect, ModelSpec, OutputMode, Price, ToolMode, ToolSpec};
pub use state::{
    ActiveModelCall, CallStatus, Outcome, PendingAnswer, Phase, PhaseKind, State, ToolCallState,
};
pub use upcast::{STEPS as UPCAST_STEPS, Upcast, read_with};

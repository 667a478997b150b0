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
mod budget;
mod calls;
mod checks;
mod command;
mod compact;
mod compaction;
mod context;
mod decide;
mod deferred;
mod error;
mod event;
mod fold;
mod follow;
mod ids;
mod limits;
mod message;
mod notes;
mod recover;
mod replay;
mod retry;
mod routing;
mod snapshot;
mod spec;
mod spending;
mod state;
mod summary;
mod tokens;
mod tool_search;
mod upcast;
mod view;

pub use asking::{
    ApprovalDecided, ApprovalDecision, ApprovalRequested, EffectOutcome, EffectResolved,
    EffectUnknown,
};
pub use budget::{
    Amount, Budget, Funding, Left, NANOS_PER_USD, Period, TENANT_CHARS_MAX, check_tenant,
    usd_to_nanos,
};
pub use checks::{
    AnswerScore, Check, CheckFinding, CheckFinished, CheckStarted, JUDGE_CONTEXT_BYTES_MAX,
    JUDGE_TEXT_BYTES_MAX, check_model, estimate_check,
};
pub use command::{Command, commands};
pub use compaction::Compaction;
pub use context::{
    ActiveSummary, CompactionMethod, CompactionReason, ContextCompacted, ContextState,
    SummaryFailed, SummaryFinished, SummaryStarted, Trim, View,
};
pub use decide::{Fact, FactKind, Moment, Refused, TRANSITIONS, decide};
pub use deferred::{TOOL_CALL, TOOL_SEARCH, meant, stand_ins};
pub use error::{CATALOGUE, CatalogueEntry, ErrorCode, Failure};
pub use event::{
    AnswerRejected, AnswerRestarted, AnswerVerified, EpochTaken, Event, FinishReason, ForkEdit,
    InputReceived, ModelCallFailed, ModelCallFinished, ModelCallStarted, Origin, Problem, Record,
    RejectAction, RouteDecided, SCHEMA_VERSION, SessionFinished, SessionForked, SessionStarted,
    Timing, ToolCallFailed, ToolCallFinished, ToolCallLate, ToolCallStarted, TurnClock,
};
pub use ids::{ApprovalId, BlobHash, CallIndex, EffectId, Epoch, InvalidSessionId, Seq, SessionId};
pub use limits::Limits;
pub use mainspring_route::{Policy, StepClass, Weights, WeightsError};
pub use message::{Answer, Message, Part, Reasoning, ReasoningKind, ToolCall, Usage};
pub use notes::{CacheBust, CacheBustReason, CallNotes, HedgeNote};
pub use replay::{Divergence, Recorded, Replayed, replay};
pub use retry::{Asked as RetryAsked, WAIT_MS_MAX, model_retry_at, model_wait_ms_max};
pub use routing::{
    CACHE_US_MAX, DOWN_US_MAX, ESCALATIONS_MAX, RouteDecision, RouteSpec, RouteState,
    TEXT_BYTES_MAX, TierState, question, step_class, step_text,
};
pub use spec::{
    Ability, AgentSpec, Api, Approve, Effect, LongPrice, ModelLimits, ModelSpec, OutputMode, Price,
    ToolChoice, ToolMode, ToolSpec,
};
pub use spending::{
    Estimate, InputTokens, OUTPUT_TOKENS_LIKELY, Spending, charge_of_answer, charge_of_failure,
    estimate, estimate_summary,
};
pub use state::{
    ActiveModelCall, CallStatus, Outcome, PendingAnswer, Phase, PhaseKind, State, ToolCallState,
};
pub use summary::{SUMMARY_INSTRUCTIONS, Summary};
pub use tokens::{Meter, Weight};
pub use tool_search::{FOUND_MAX, ToolIndex};
pub use upcast::{STEPS as UPCAST_STEPS, Upcast, read_with};

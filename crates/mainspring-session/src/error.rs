//! Errors that may enter a log: plain data, the same before and after a crash.
//!
//! Every code of the whole project is listed once, in [`CATALOGUE`].

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A stable, `snake_case` name for a kind of failure.
///
/// A log of a newer version may hold codes this version does not list; they read and write as
/// they are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(Cow<'static, str>);

impl ErrorCode {
    /// The code as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Wraps a code by name, listed or not.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match CATALOGUE.iter().find(|entry| entry.code.as_str() == name) {
            Some(entry) => entry.code.clone(),
            None => Self(Cow::Owned(name.to_owned())),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line of the catalogue of errors.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// The code.
    pub code: ErrorCode,
    /// Whether trying again, unchanged, can help.
    pub retryable: bool,
    /// What it means, for the reference page.
    pub meaning: &'static str,
}

macro_rules! catalogue {
    ($($constant:ident $name:literal $retryable:literal $meaning:literal;)*) => {
        impl ErrorCode {
            $(#[doc = $meaning] pub const $constant: ErrorCode = ErrorCode(Cow::Borrowed($name));)*
        }

        /// Every error code of the project, in alphabetical order within its area.
        pub const CATALOGUE: &[CatalogueEntry] = &[
            $(CatalogueEntry {
                code: ErrorCode::$constant,
                retryable: $retryable,
                meaning: $meaning,
            },)*
        ];
    };
}

catalogue! {
    AGENT_CHANGED "agent_changed" false "the agent differs from the one that the session was started with";
    AGENT_INVALID "agent_invalid" false "an agent, a tool or an input cannot be used as given";
    ANSWER_REJECTED "answer_rejected" false "the last model's answer failed its checks and could not be repaired";
    APPROVAL_DENIED "approval_denied" false "a person refused a tool call";
    APPROVAL_USED "approval_used" false "the call waits for no decision, or for another one than was given";
    BUDGET_EXHAUSTED "budget_exhausted" false "a model call does not fit into what is left of a budget";
    BUDGET_INVALID "budget_invalid" false "a budget or a tenant's name cannot be used as given";
    BUDGET_UNPRICED "budget_unpriced" false "a budget counts dollars and the price of a model is not known";
    CANCELLED "cancelled" false "the session or the call was cancelled";
    ENGINE_CLOSED "engine_closed" false "the engine has been closed";
    ENGINE_DRAINING "engine_draining" true "the engine is shutting down and begins nothing new";
    ENGINE_OVERLOADED "engine_overloaded" true "the engine holds as many sessions as its limit allows";
    INTERNAL "internal" false "a broken invariant inside the engine; the session was stopped, the process goes on";
    REPLAY_DIVERGED "replay_diverged" false "a replay led to other events than the recorded ones";
    ROUTE_INVALID "route_invalid" false "a routing policy, outcomes or weights cannot be used as given";
    ROUTE_VERSION "route_version" false "the routing weights are of another version";
    SESSION_BUSY "session_busy" true "the session is running a turn and takes no second input";
    SESSION_INVALID_ID "session_invalid_id" false "a session id has characters that are not allowed";
    SESSION_NOT_FOUND "session_not_found" false "the journal holds no session of this id";
    SESSION_NOT_OPEN "session_not_open" false "the session has no turn to continue";
    SESSION_OWNED "session_owned" true "another process runs the session";
    LEASE_LOST "lease_lost" true "this process lost the sessions it ran to another";
    JOURNAL_CONFLICT "journal_conflict" false "another writer appended to the session or took it over";
    JOURNAL_CORRUPT "journal_corrupt" false "the journal holds something that cannot be read";
    JOURNAL_FULL "journal_full" true "the disk that holds the journal is full";
    JOURNAL_IO "journal_io" true "the journal could not be read or written";
    JOURNAL_LIMIT_REACHED "journal_limit_reached" false "one append is larger than the journal takes";
    JOURNAL_LOCKED "journal_locked" true "another process has the journal open for writing";
    JOURNAL_NEWER "journal_newer" false "the journal was written by a newer version";
    JOURNAL_READ_ONLY "journal_read_only" false "the journal cannot be written here";
    JOURNAL_URL_INVALID "journal_url_invalid" false "a journal address names no known kind of store";
    LIMIT_STEPS "limit_steps" false "a turn took as many model steps as its limit allows";
    LIMIT_TIME "limit_time" false "a turn took as long as its limit allows";
    LIMIT_TOKENS "limit_tokens" false "a turn used as many tokens as its limit allows";
    LOCAL_CACHE_UNUSABLE "local_cache_unusable" false "the folder for model files cannot be used";
    LOCAL_CHECKSUM_MISMATCH "local_checksum_mismatch" false "a pulled model file is not the published one";
    LOCAL_DISK_FULL "local_disk_full" true "the disk has no room for a model file";
    LOCAL_MODEL_NOT_GGUF "local_model_not_gguf" false "a file is no GGUF model";
    LOCAL_MODEL_NOT_PULLED "local_model_not_pulled" false "a model of the catalogue has not been pulled yet";
    LOCAL_MODEL_UNKNOWN "local_model_unknown" false "a name is neither a model of the catalogue nor a file";
    LOCAL_PORT_UNUSABLE "local_port_unusable" false "a local model server cannot use the port";
    LOCAL_PULL_FAILED "local_pull_failed" true "no source delivered a model file";
    LOCAL_RUNTIME_MISSING "local_runtime_missing" false "the runtime for local models is not installed";
    LOCAL_SERVER_FAILED "local_server_failed" false "a local model server ended before it was ready";
    LOCAL_SERVER_SLOW "local_server_slow" true "a local model server was not ready in time";
    MCP_EXITED "mcp_exited" true "an MCP server's process ended while a call was under way";
    MCP_LIMIT_REACHED "mcp_limit_reached" false "an MCP server sent more than its limits allow";
    MCP_PROTOCOL_ERROR "mcp_protocol_error" false "an MCP server broke the protocol or refused a request";
    MCP_START_FAILED "mcp_start_failed" false "an MCP server could not be started";
    MCP_TIMEOUT "mcp_timeout" true "an MCP server did not answer in time";
    MCP_UNKNOWN_TOOL "mcp_unknown_tool" false "an MCP server has no tool of this name";
    MODEL_ADAPTER_FAILED "model_adapter_failed" true "the Python function behind a model raised an error";
    MODEL_AUTH "model_auth" false "the key of a model is missing, or its server refused it";
    MODEL_BAD_REQUEST "model_bad_request" false "the model server refused the request";
    MODEL_BAD_RESPONSE "model_bad_response" true "the model server's answer could not be understood";
    MODEL_CONNECT "model_connect" true "the model server could not be reached";
    MODEL_CONTENT_FILTER "model_content_filter" false "the model server refused the request for its content";
    MODEL_CONTEXT_OVERFLOW "model_context_overflow" false "the conversation is longer than the model can read";
    MODEL_INTERRUPTED "model_interrupted" true "the connection ended before the model's answer was complete";
    MODEL_NOT_FOUND "model_not_found" false "the model server does not know the model or the path";
    MODEL_OVERLOADED "model_overloaded" true "more calls wait for a model than may, or this one could not get its turn in time";
    MODEL_RATE_LIMITED "model_rate_limited" true "the model server asked to slow down";
    MODEL_SERVER_ERROR "model_server_error" true "the model server failed";
    MODEL_TIMEOUT "model_timeout" true "the model server did not answer in time";
    MODEL_UNAVAILABLE "model_unavailable" true "a model's endpoints have failed so often that they are left alone for a while";
    OUTPUT_INVALID "output_invalid" false "the final answer does not have the type that was asked for";
    PROCESS_LOST "process_lost" true "the process that made the call ended before its result was recorded";
    TOOL_ARGUMENTS_INVALID "tool_arguments_invalid" false "the arguments of a tool call do not fit the tool's schema";
    TOOL_CALLS_TOO_MANY "tool_calls_too_many" false "one answer asked for more tool calls than the limit allows";
    TOOL_FAILED "tool_failed" false "a tool raised an error";
    TOOL_OUTCOME_UNKNOWN "tool_outcome_unknown" false "an unsafe tool was running when the process ended; whether it took effect is not known";
    TOOL_RESULT_INVALID "tool_result_invalid" false "a tool's result cannot be written as JSON";
    TOOL_SCHEMA_INVALID "tool_schema_invalid" false "no JSON schema can be made from a tool's signature";
    TOOL_TIMEOUT "tool_timeout" true "a tool ran longer than its limit";
    TOOL_UNKNOWN "tool_unknown" false "the model asked for a tool that does not exist";
    VERIFY_FAILED "verify_failed" false "the function that checks answers raised an error";
}

/// A failure as plain data: what a log holds, a model reads and a Python exception carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which kind of failure.
    pub code: ErrorCode,
    /// What failed, on what, the value seen, the value allowed. Lower case, no full stop.
    pub message: String,
    /// How to cure it, if there is a cure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether trying again, unchanged, can help.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retryable: bool,
}

impl Failure {
    /// A failure with the catalogue's word on whether a retry can help.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let listed = CATALOGUE.iter().find(|entry| entry.code == code);
        let retryable = listed.is_some_and(|entry| entry.retryable);
        Self { code, message: message.into(), hint: None, retryable }
    }

    /// The same failure with a cure.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Message and hint as a person or a model reads them: one line, or two.
    #[must_use]
    pub fn to_text(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}\nhint: {hint}", self.message),
            None => self.message.clone(),
        }
    }
}

//! The crate's one error type.
//!
//! Invariant: plain data that can be cloned, so that one failed start is told to everyone who
//! waited for it, and a stable code per cause. Values of environment variables never appear.

use std::fmt;

/// Longest piece of foreign text (stderr, a server's own error message) quoted in a message.
const QUOTE_BYTES_MAX: usize = 400;

/// Why a server or a call failed. [`code`](Self::code) is stable; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum McpError {
    /// The server could not be started or did not shake hands.
    StartFailed {
        /// Name of the server.
        server: String,
        /// What happened.
        reason: String,
        /// What to do about it.
        cure: Option<String>,
        /// The end of the server's stderr.
        stderr: String,
        /// Whether the same start may work later.
        may_work_later: bool,
    },
    /// The server process ended while it was needed.
    Exited {
        /// Name of the server.
        server: String,
        /// How it ended, for instance `exit status: 7`.
        status: String,
        /// The end of the server's stderr.
        stderr: String,
    },
    /// The broker, or the runtime it works on, was closed.
    Closed {
        /// Name of the server.
        server: String,
    },
    /// The call's guard did not let it pass: nothing was sent.
    Withheld {
        /// Name of the server.
        server: String,
        /// What was withheld, for instance `tool "search"`.
        what: String,
    },
    /// The deadline passed.
    Timeout {
        /// Name of the server.
        server: String,
        /// What was waited for, for instance `tool "search"`.
        what: String,
        /// The deadline.
        limit_ms: u64,
        /// The server had not finished starting.
        starting: bool,
    },
    /// The server answered with an error of the protocol, or with something that is not an answer.
    Protocol {
        /// Name of the server.
        server: String,
        /// What it was asked, for instance `tool "search"`.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The server or the call went past a limit.
    LimitReached {
        /// Name of the server.
        server: String,
        /// What went past it, for instance `result of tool "search"`.
        what: String,
        /// The value seen, with its unit.
        seen: String,
        /// Name of the limit in [`McpLimits`](crate::McpLimits).
        limit: &'static str,
        /// Its value.
        allowed: u64,
        /// Whether the same call may work later.
        may_work_later: bool,
    },
    /// The server has no such tool.
    UnknownTool {
        /// Name of the server.
        server: String,
        /// The tool asked for.
        tool: String,
        /// The tools it has.
        known: Vec<String>,
    },
}

impl McpError {
    /// The stable name of the cause.
    pub fn code(&self) -> &'static str {
        match self {
            Self::StartFailed { .. } => "mcp_start_failed",
            Self::Exited { .. } | Self::Closed { .. } => "mcp_exited",
            Self::Withheld { .. } => "lease_lost",
            Self::Timeout { .. } => "mcp_timeout",
            Self::Protocol { .. } => "mcp_protocol_error",
            Self::LimitReached { .. } => "mcp_limit_reached",
            Self::UnknownTool { .. } => "mcp_unknown_tool",
        }
    }

    /// Whether doing the same again may work.
    pub fn retryable(&self) -> bool {
        match self {
            Self::StartFailed { may_work_later, .. }
            | Self::LimitReached { may_work_later, .. } => *may_work_later,
            Self::Exited { .. } | Self::Timeout { .. } | Self::Withheld { .. } => true,
            Self::Closed { .. } | Self::Protocol { .. } | Self::UnknownTool { .. } => false,
        }
    }

    /// What failed, on what, the value seen and the value allowed, on one line.
    pub fn message(&self) -> String {
        match self {
            Self::StartFailed { server, reason, stderr, .. } => {
                format!("mcp server {server:?} did not start: {reason}{}", stderr_end(stderr))
            }
            Self::Exited { server, status, stderr } => format!(
                "mcp server {server:?} ended ({status}) while it was in use{}",
                stderr_end(stderr)
            ),
            Self::Closed { server } => {
                format!("mcp server {server:?} cannot be used: its broker was closed")
            }
            Self::Withheld { server, what } => {
                format!("{what} of mcp server {server:?} was withheld, its owner may have lost it")
            }
            Self::Timeout { server, what, limit_ms, .. } => {
                let limit_s = std::time::Duration::from_millis(*limit_ms).as_secs_f64();
                format!("{what} of mcp server {server:?} gave no answer, limit {limit_s} s")
            }
            Self::Protocol { server, what, reason } => {
                format!("{what} of mcp server {server:?} failed: {}", cut(reason))
            }
            Self::LimitReached { server, what, seen, limit, allowed, .. } => {
                format!("{what} of mcp server {server:?} is {seen}, {limit} is {allowed}")
            }
            Self::UnknownTool { server, tool, .. } => {
                format!("mcp server {server:?} has no tool {tool:?}")
            }
        }
    }

    /// What to do about it, where there is a cure.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::StartFailed { cure, .. } => cure.clone(),
            Self::Exited { .. } => Some("the next call starts the server again".into()),
            Self::Closed { .. } => Some("make a new McpBroker".into()),
            Self::Timeout { starting: true, .. } => Some(
                "the server was still starting; allow the first call more time, or list its \
                 tools before"
                    .into(),
            ),
            Self::Timeout { .. } => Some("raise the timeout of the call".into()),
            Self::Protocol { .. } | Self::Withheld { .. } => None,
            Self::LimitReached { limit, .. } => Some(format!("raise McpLimits.{limit}")),
            Self::UnknownTool { known, .. } => Some(format!("it has: {}", cut(&known.join(", ")))),
        }
    }

    /// The end of what the server wrote to stderr, where the error is about its process.
    pub fn stderr(&self) -> Option<&str> {
        match self {
            Self::StartFailed { stderr, .. } | Self::Exited { stderr, .. } => Some(stderr),
            _ => None,
        }
    }
}

impl fmt::Display for McpError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message())?;
        match self.hint() {
            Some(hint) => write!(formatter, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The last lines of stderr as a quoted clause, or nothing.
fn stderr_end(stderr: &str) -> String {
    let text = stderr.trim_end();
    if text.is_empty() {
        return String::new();
    }
    let mut from = text.len().saturating_sub(QUOTE_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    format!("; its stderr ends {:?}", &text[from..])
}

/// The text, shortened to what a message may quote, on one line.
fn cut(text: &str) -> String {
    let mut to = text.len().min(QUOTE_BYTES_MAX);
    while !text.is_char_boundary(to) {
        to -= 1;
    }
    let mut line = text[..to].replace(['\n', '\r'], " ");
    if to < text.len() {
        line.push('…');
    }
    line
}

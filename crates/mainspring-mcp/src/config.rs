//! How a server is started, and how much it may use.
//!
//! Invariant: two equal configurations mean one shared server process, so every field takes part
//! in equality and hashing.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::Deserialize;

/// A server that speaks MCP on its standard input and output.
///
/// Equal configurations share one process and one connection per broker.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdioConfig {
    /// What people and error messages call the server.
    pub name: String,
    /// The program: a name looked up in `PATH`, or a path (relative to `cwd`).
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables set on top of the few that are inherited. Values are never logged.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working folder; this process's own one when absent.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// What the server may use.
    #[serde(default)]
    pub limits: McpLimits,
}

impl fmt::Debug for StdioConfig {
    /// Shows the names of the variables only: their values are often secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StdioConfig")
            .field("name", &self.name)
            .field("command", &self.command)
            .field("args", &self.args)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("limits", &self.limits)
            .finish()
    }
}

/// Bounds of one server connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct McpLimits {
    /// Longest line the server may write; a longer one ends the connection. Default 16 MiB.
    pub line_bytes_max: usize,
    /// Most bytes that may wait for the server to read them; a call past that is refused.
    /// Default 16 MiB.
    pub write_bytes_max: usize,
    /// How much of the end of the server's stderr is kept for errors. Default 64 KiB.
    pub stderr_bytes_max: usize,
    /// Longest text of one tool result; a longer one fails its call. Default 4 MiB.
    pub result_bytes_max: usize,
    /// Most tools a server may list, all pages together. Default 1,000.
    pub tools_count_max: usize,
    /// Calls the server works on at once; the others wait. Default 64.
    pub concurrent_calls_max: usize,
    /// Calls that may wait; one more is refused. Default 4,096.
    pub waiting_calls_max: usize,
    /// Time to start and shake hands, and then to list the tools. Default 30,000.
    pub start_ms_max: u64,
    /// Time to leave after standard input closes, before the process group is killed.
    /// Default 2,000.
    pub close_ms_max: u64,
}

impl Default for McpLimits {
    fn default() -> Self {
        Self {
            line_bytes_max: 16 << 20,
            write_bytes_max: 16 << 20,
            stderr_bytes_max: 64 << 10,
            result_bytes_max: 4 << 20,
            tools_count_max: 1_000,
            concurrent_calls_max: 64,
            waiting_calls_max: 4_096,
            start_ms_max: 30_000,
            close_ms_max: 2_000,
        }
    }
}

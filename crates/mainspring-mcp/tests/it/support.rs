//! What the tests share: a broker, the servers beside this file, and short ways to call them.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use mainspring_mcp::{
    Guard, McpBroker, McpCall, McpError, McpLimits, McpResult, McpServer, StdioConfig,
};
use serde_json::{Value, value::to_raw_value};
use tokio::runtime::Handle;

/// Far longer than anything here takes; only a broken client reaches it.
pub const LONG: Duration = Duration::from_secs(60);

/// Configuration of `servers/FILE`.
pub fn config(file: &str) -> StdioConfig {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers").join(file);
    StdioConfig {
        name: file.trim_end_matches(".py").to_owned(),
        command: "python3".to_owned(),
        args: vec!["-B".to_owned(), script.to_str().unwrap().to_owned()],
        env: BTreeMap::new(),
        cwd: None,
        limits: McpLimits::default(),
    }
}

/// The same, with other limits.
pub fn limited(file: &str, change: impl FnOnce(&mut McpLimits)) -> StdioConfig {
    let mut config = config(file);
    change(&mut config.limits);
    config
}

/// A broker on the runtime of the test.
pub fn broker() -> McpBroker {
    McpBroker::new(Handle::current()).unwrap()
}

/// A call without a deadline that matters.
pub fn call(tool: &str, arguments: Value) -> McpCall {
    McpCall {
        tool: tool.to_owned(),
        arguments: to_raw_value(&arguments).unwrap(),
        timeout: LONG,
        effect_id: "effect-1".to_owned(),
        guard: Guard::default(),
    }
}

/// Calls a tool without arguments.
pub async fn ask(server: &McpServer, tool: &str) -> Result<McpResult, McpError> {
    server.call(call(tool, serde_json::json!({}))).await
}

/// The text that a tool answers.
pub async fn text(server: &McpServer, tool: &str) -> String {
    ask(server, tool).await.unwrap().text
}

/// Calls the tool until it answers the wanted text.
pub async fn until_text(server: &McpServer, tool: &str, wanted: &str) {
    let reached = async { while text(server, tool).await != wanted {} };
    tokio::time::timeout(LONG, reached).await.expect("the tool never said so");
}

/// Waits until no such process is left. One that nobody has collected yet is gone too.
pub async fn gone(pid: &str) {
    let poll = async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        while alive(pid) {
            tick.tick().await;
        }
    };
    tokio::time::timeout(LONG, poll).await.expect("the process is still there");
}

/// Whether the process exists and is not a zombie.
pub fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

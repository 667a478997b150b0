//! What can be asked of a running server: its tools, and one call.
//!
//! Invariant: a call that ends early, by deadline or because nobody waits for it any more, tells
//! the server so and touches no other call.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rmcp::{
    Peer, ServiceError,
    model::{
        CallToolRequest, CallToolRequestParams, ClientRequest, ErrorCode, ErrorData, JsonObject,
        ListToolsRequest, MetaObject, PaginatedRequestParams, RequestMetaObject, ServerResult,
        Tool,
    },
    service::{PeerRequestOptions, RequestHandle, RoleClient},
};
use serde_json::{Value, value::RawValue};
use tokio::{
    runtime::Handle,
    sync::{Mutex, Semaphore, watch},
    time::timeout,
};

use crate::{
    config::StdioConfig,
    content::text_of,
    error::McpError,
    transport::{MALFORMED_ANSWER, SendError},
};

/// Where the effect id travels, so that a server can tell a repeated call from a new one.
const EFFECT_ID_KEY: &str = "mainspring/effect_id";

/// How long the owner of a connection may take, past `close_ms_max`, to say how it ended.
const DEATH_WAIT: Duration = Duration::from_secs(2);

/// A tool as its server describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct McpTool {
    /// The name to call it by.
    pub name: String,
    /// What it does, for the model; empty when the server says nothing.
    pub description: String,
    /// JSON Schema of its arguments, always an object.
    pub input_schema: Value,
    /// The server says that it changes nothing. A hint: the server may be wrong.
    pub read_only_hint: Option<bool>,
    /// The server says that a second call with the same arguments changes nothing more.
    pub idempotent_hint: Option<bool>,
    /// The server says that it may destroy something.
    pub destructive_hint: Option<bool>,
}

/// One call of one tool.
#[derive(Debug, Clone)]
pub struct McpCall {
    /// Name of the tool.
    pub tool: String,
    /// A JSON object.
    pub arguments: Box<RawValue>,
    /// Deadline, counted from here and including the start of the server.
    pub timeout: Duration,
    /// Sent along in `_meta`; the same for every attempt of one effect.
    pub effect_id: String,
    /// Asked just before the request is sent.
    pub guard: Guard,
}

/// Whether a call may still be made: asked at the last moment, since time may have passed in a
/// queue, or the whole process may have been stopped.
#[derive(Clone, Default)]
pub struct Guard(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Guard {
    /// Lets a call pass only if this function says so.
    pub fn new(may_act: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(may_act)))
    }

    fn passes(&self) -> bool {
        self.0.as_ref().is_none_or(|may_act| may_act())
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Guard(..)" } else { "Guard(none)" })
    }
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpResult {
    /// Text parts joined by newlines; other parts described, as `[image image/png, 1234 bytes]`;
    /// structured content as JSON where there is no text.
    pub text: String,
    /// The tool itself says that it failed.
    pub is_error: bool,
}

/// A server that has shaken hands. Shared by all calls.
pub(crate) struct Live {
    pub(crate) config: Arc<StdioConfig>,
    pub(crate) peer: Peer<RoleClient>,
    /// Set once, when the connection has ended.
    pub(crate) death: watch::Receiver<Option<McpError>>,
    /// Raised by the server when its list of tools changes.
    pub(crate) tools_version: Arc<AtomicU64>,
    pub(crate) tools: Mutex<Option<(u64, Arc<[McpTool]>)>>,
    pub(crate) slots: Semaphore,
    pub(crate) waiting_count: AtomicUsize,
}

impl Live {
    pub(crate) fn is_dead(&self) -> bool {
        self.death.borrow().is_some()
    }

    /// All tools, all pages; asked once until the server says that they changed.
    pub(crate) async fn tools(&self) -> Result<Arc<[McpTool]>, McpError> {
        // Held while asking, so that many who ask at once cost one question.
        let mut cached = self.tools.lock().await;
        let version = self.tools_version.load(Ordering::Acquire);
        if let Some((_, tools)) = cached.as_ref().filter(|(known, _)| *known == version) {
            return Ok(tools.clone());
        }
        let tools: Arc<[McpTool]> = self.list_tools().await?.into();
        *cached = Some((version, tools.clone()));
        Ok(tools)
    }

    async fn list_tools(&self) -> Result<Vec<McpTool>, McpError> {
        let count_max = self.config.limits.tools_count_max;
        let mut tools = Vec::new();
        let mut cursor = None;
        // A page may be empty, so pages are counted too.
        for _ in 0..=count_max {
            let params = PaginatedRequestParams::default().with_cursor(cursor.take());
            let request = ListToolsRequest::with_param(params);
            let request = ClientRequest::ListToolsRequest(request);
            let page = match self.ask(request, None, "tools/list").await? {
                ServerResult::ListToolsResult(page) => page,
                _ => return Err(self.protocol("tools/list", "the answer is not a list of tools")),
            };
            tools.extend(page.tools.into_iter().map(tool));
            cursor = page.next_cursor;
            if tools.len() > count_max {
                break;
            }
            if cursor.is_none() {
                return Ok(tools);
            }
        }
        Err(McpError::LimitReached {
            server: self.config.name.clone(),
            what: "list of tools".into(),
            seen: format!("longer than {} tools", tools.len().saturating_sub(1)),
            limit: "tools_count_max",
            allowed: count_max as u64,
            may_work_later: false,
        })
    }

    /// Calls a tool. Dropping the future cancels the call at the server.
    pub(crate) async fn call(&self, call: &McpCall) -> Result<McpResult, McpError> {
        let what = format!("tool {:?}", call.tool);
        let _waiting = self.wait_in_line(&what)?;
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let arguments: JsonObject = serde_json::from_str(call.arguments.get())
            .map_err(|error| self.protocol(&what, format!("arguments: {error}")))?;
        let params = CallToolRequestParams::new(call.tool.clone()).with_arguments(arguments);
        let mut meta = MetaObject::new();
        meta.insert(EFFECT_ID_KEY.into(), Value::String(call.effect_id.clone()));
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        if !call.guard.passes() {
            let server = self.config.name.clone();
            return Err(McpError::Withheld { server, what });
        }
        let answer = self.ask(request, Some(RequestMetaObject(meta)), &what).await;
        let answer = answer.map_err(|error| match error {
            McpError::Protocol { .. } => self.unknown_tool(call).unwrap_or(error),
            error => error,
        })?;
        self.read_result(answer, &what)
    }

    fn read_result(&self, answer: ServerResult, what: &str) -> Result<McpResult, McpError> {
        let (text, is_error) = match answer {
            ServerResult::CallToolResult(result) => {
                (text_of(&result), result.is_error.unwrap_or(false))
            }
            ServerResult::EmptyResult(_) | ServerResult::TaskAckResult(_) => (String::new(), false),
            ServerResult::InputRequiredResult(_) => {
                let reason = "the server asks for input, which this client does not offer";
                return Err(self.protocol(what, reason));
            }
            _ => return Err(self.protocol(what, "the answer is not a tool result")),
        };
        let bytes_max = self.config.limits.result_bytes_max;
        if text.len() > bytes_max {
            return Err(McpError::LimitReached {
                server: self.config.name.clone(),
                what: format!("result of {what}"),
                seen: format!("{} bytes", text.len()),
                limit: "result_bytes_max",
                allowed: bytes_max as u64,
                may_work_later: false,
            });
        }
        Ok(McpResult { text, is_error })
    }

    fn wait_in_line(&self, what: &str) -> Result<InLine<'_>, McpError> {
        let limits = &self.config.limits;
        let in_line = InLine(&self.waiting_count);
        let count = self.waiting_count.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= limits.concurrent_calls_max.saturating_add(limits.waiting_calls_max) {
            return Ok(in_line);
        }
        Err(McpError::LimitReached {
            server: self.config.name.clone(),
            what: format!("queue for {what}"),
            seen: format!("{} calls long", limits.waiting_calls_max + 1),
            limit: "waiting_calls_max",
            allowed: limits.waiting_calls_max as u64,
            may_work_later: true,
        })
    }

    /// Sends one request and waits for its answer.
    async fn ask(
        &self,
        request: ClientRequest,
        meta: Option<RequestMetaObject>,
        what: &str,
    ) -> Result<ServerResult, McpError> {
        let mut options = PeerRequestOptions::no_options();
        options.meta = meta;
        let handle = match self.peer.send_cancellable_request(request, options).await {
            Ok(handle) => handle,
            Err(_) => return Err(self.cause_of_death().await),
        };
        let mut asked = Unanswered(Some(handle));
        let answer = match &mut asked.0 {
            Some(handle) => (&mut handle.rx).await,
            None => unreachable!("just put there"),
        };
        // Answered or lost: either way there is nothing to cancel.
        asked.0 = None;
        match answer {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(ServiceError::McpError(error))) => Err(self.protocol(what, describe(&error))),
            Ok(Err(ServiceError::TransportSend(error))) => {
                match error.error.downcast_ref::<SendError>() {
                    Some(SendError::Full { waiting_bytes }) => Err(McpError::LimitReached {
                        server: self.config.name.clone(),
                        what: format!("input waiting for {what}"),
                        seen: format!("{waiting_bytes} bytes"),
                        limit: "write_bytes_max",
                        allowed: self.config.limits.write_bytes_max as u64,
                        may_work_later: true,
                    }),
                    Some(SendError::Unwritable) => {
                        Err(self.protocol(what, "the request has no json form"))
                    }
                    Some(SendError::Closed) | None => Err(self.cause_of_death().await),
                }
            }
            Ok(Err(_)) | Err(_) => Err(self.cause_of_death().await),
        }
    }

    /// Waits until the owner of the connection says how it ended.
    async fn cause_of_death(&self) -> McpError {
        let mut death = self.death.clone();
        let close = Duration::from_millis(self.config.limits.close_ms_max);
        let told = timeout(close + DEATH_WAIT, death.wait_for(Option::is_some)).await;
        match told {
            Ok(Ok(error)) => error.clone().expect("waited until it was there"),
            Ok(Err(_)) | Err(_) => McpError::Closed { server: self.config.name.clone() },
        }
    }

    /// The better error for a refused call, where we know that the tool does not exist.
    fn unknown_tool(&self, call: &McpCall) -> Option<McpError> {
        let cached = self.tools.try_lock().ok()?;
        let (_, tools) = cached.as_ref()?;
        let known: Vec<String> = tools.iter().map(|tool| tool.name.clone()).collect();
        (!known.contains(&call.tool)).then(|| McpError::UnknownTool {
            server: self.config.name.clone(),
            tool: call.tool.clone(),
            known,
        })
    }

    fn protocol(&self, what: &str, reason: impl Into<String>) -> McpError {
        McpError::Protocol {
            server: self.config.name.clone(),
            what: what.into(),
            reason: reason.into(),
        }
    }
}

/// One place among the calls that run or wait.
struct InLine<'a>(&'a AtomicUsize);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request without an answer yet. Dropping it tells the server to stop working on it.
struct Unanswered(Option<RequestHandle<RoleClient>>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(handle.cancel(Some("no longer needed".into())));
        }
    }
}

fn describe(error: &ErrorData) -> String {
    match error.code {
        MALFORMED_ANSWER => error.message.to_string(),
        ErrorCode(code) => format!("the server answered error {code}: {}", error.message),
    }
}

fn tool(tool: Tool) -> McpTool {
    let hints = tool.annotations.unwrap_or_default();
    McpTool {
        name: tool.name.into_owned(),
        description: tool.description.map(String::from).unwrap_or_default(),
        input_schema: Value::Object(Arc::unwrap_or_clone(tool.input_schema)),
        read_only_hint: hints.read_only_hint,
        idempotent_hint: hints.idempotent_hint,
        destructive_hint: hints.destructive_hint,
    }
}

//! The wire: lines of JSON-RPC over a server's pipes, with every buffer bounded.
//!
//! Invariants: a line longer than `line_bytes_max` ends the connection and is never held in
//! memory whole; at most `write_bytes_max` bytes wait to be written; what is not a message, or
//! answers nothing that was asked, is counted and dropped. An answer is decoded by the method it
//! answers, because trying every result type in turn is slow and can pick the wrong one.

use std::{
    borrow::Cow,
    collections::HashMap,
    future::{Future, ready},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::{Buf, BytesMut};
use rmcp::{
    model::{
        CallToolResult, ClientNotification, ClientRequest, ErrorCode, ErrorData, JsonRpcMessage,
        ListToolsResult, RequestId, ServerResult,
    },
    service::{RoleClient, RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{ChildStdin, ChildStdout},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{config::McpLimits, process::Pipes};

/// Smallest room a read is given.
const READ_BYTES_MIN: usize = 16 << 10;

/// Largest empty read buffer that is kept, so that one huge result is not paid for ever after.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// Messages that one write joins at most.
const WRITE_JOIN_COUNT_MAX: usize = 64;

/// How many dropped lines are logged in full before only powers of two are.
const NOISE_LOGGED_COUNT: u64 = 5;

/// How much of a dropped line is logged.
const NOISE_LOGGED_BYTES_MAX: usize = 200;

/// Our own mark on an answer that could not be decoded. Not a code that JSON-RPC assigns.
pub(crate) const MALFORMED_ANSWER: ErrorCode = ErrorCode(1);

/// A notification that changes what we know; the others are of no use to this client yet.
const TOOLS_CHANGED: &str = "notifications/tools/list_changed";

/// What the connection's owner can see of the wire and do to it.
#[derive(Clone, Default)]
pub(crate) struct WireHandle {
    fault: Arc<OnceLock<Fault>>,
    stop_writing: CancellationToken,
}

/// Why the transport itself gave the connection up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Bytes of the line when it was given up.
    pub(crate) line_bytes: usize,
}

impl WireHandle {
    /// The fault that ended the connection, if one did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }

    /// Closes the server's standard input, which asks it to leave.
    pub(crate) fn stop_writing(&self) {
        self.stop_writing.cancel();
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The server reads too slowly, or the message is too long.
    #[error("{waiting_bytes} bytes wait to be written")]
    Full {
        /// Bytes that would have been waiting.
        waiting_bytes: usize,
    },
    /// The server's standard input is closed.
    #[error("standard input is closed")]
    Closed,
    /// The message has no JSON form.
    #[error("the message has no json form")]
    Unwritable,
}

/// The bounded transport that the protocol library talks through.
pub(crate) struct LineTransport {
    stdout: ChildStdout,
    buffer: BytesMut,
    /// Bytes at the start of `buffer` known to hold no newline.
    scanned: usize,
    line_bytes_max: usize,
    outbox: Outbox,
    pending: HashMap<i64, Asked>,
    noise_count: AtomicU64,
    handle: WireHandle,
}

/// What a request asked for, as far as it decides how its answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Discover,
    ListTools,
    CallTool,
    Other,
}

/// A message as it stands on a line.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl LineTransport {
    /// Takes the pipes and starts the task that writes.
    pub(crate) fn new(pipes: Pipes, limits: &McpLimits) -> (Self, WireHandle) {
        let handle = WireHandle::default();
        let outbox = Outbox::start(pipes.stdin, limits.write_bytes_max, &handle.stop_writing);
        let transport = Self {
            stdout: pipes.stdout,
            buffer: BytesMut::new(),
            scanned: 0,
            line_bytes_max: limits.line_bytes_max,
            outbox,
            pending: HashMap::new(),
            noise_count: AtomicU64::new(0),
            handle: handle.clone(),
        };
        (transport, handle)
    }

    fn enqueue(&mut self, message: &TxJsonRpcMessage<RoleClient>) -> Result<(), SendError> {
        let mut line = serde_json::to_vec(message).map_err(|_| SendError::Unwritable)?;
        line.push(b'\n');
        self.outbox.push(line)?;
        match message {
            JsonRpcMessage::Request(request) => {
                let asked = match &request.request {
                    ClientRequest::DiscoverRequest(_) => Asked::Discover,
                    ClientRequest::ListToolsRequest(_) => Asked::ListTools,
                    ClientRequest::CallToolRequest(_) => Asked::CallTool,
                    ClientRequest::InitializeRequest(_) => {
                        // The probe was given up. Its late answer must not be taken for the
                        // answer to the handshake that follows.
                        self.pending.retain(|_, asked| *asked != Asked::Discover);
                        Asked::Other
                    }
                    _ => Asked::Other,
                };
                if let RequestId::Number(id) = request.id {
                    self.pending.insert(id, asked);
                }
            }
            JsonRpcMessage::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) =
                    &notification.notification
                    && let Some(RequestId::Number(id)) = &cancelled.params.request_id
                {
                    self.pending.remove(id);
                }
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
        }
        Ok(())
    }

    /// The next message in the buffer: `None` when more bytes are needed.
    fn next_buffered(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let newline = memchr::memchr(b'\n', &self.buffer[self.scanned..]);
            let Some(end) = newline.map(|idx| self.scanned + idx) else {
                self.scanned = self.buffer.len();
                return None;
            };
            self.scanned = 0;
            if end > self.line_bytes_max {
                // Put back as unscanned: `receive` finds the buffer over the limit and gives up.
                self.scanned = self.buffer.len();
                return None;
            }
            let line = self.buffer[..end].trim_ascii();
            let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
            let message = if line.is_empty() {
                None
            } else {
                let message = decode(line, &mut self.pending);
                if message.is_none() {
                    log_noise(line, self.noise_count.fetch_add(1, Ordering::Relaxed) + 1);
                }
                message.flatten()
            };
            self.buffer.advance(end + 1);
            if message.is_some() {
                return message;
            }
        }
    }
}

impl Transport<RoleClient> for LineTransport {
    type Error = SendError;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), SendError>> + Send + 'static {
        // Queued here and not in the future, so that messages keep their order.
        ready(self.enqueue(&item))
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        // Dropped at any await by the caller: all progress is in `self`.
        loop {
            if let Some(message) = self.next_buffered() {
                return Some(message);
            }
            if self.scanned > self.line_bytes_max {
                let _ = self.handle.fault.set(Fault { line_bytes: self.scanned });
                return None;
            }
            if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES_MAX {
                self.buffer = BytesMut::new();
            }
            self.buffer.reserve(READ_BYTES_MIN);
            match self.stdout.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    async fn close(&mut self) -> Result<(), SendError> {
        self.handle.stop_writing();
        Ok(())
    }
}

/// Reads one line. Outer `None`: not a message. Inner `None`: a message of no interest.
fn decode(
    line: &[u8],
    pending: &mut HashMap<i64, Asked>,
) -> Option<Option<RxJsonRpcMessage<RoleClient>>> {
    let envelope: Envelope<'_> = serde_json::from_slice(line).ok()?;
    if let Some(method) = envelope.method {
        if envelope.id.is_none() && method != TOOLS_CHANGED {
            return Some(None);
        }
        return serde_json::from_slice(line).ok().map(Some);
    }
    let Some(id) = envelope.id.and_then(number) else {
        // An error without an id answers a request that the server could not read.
        let error = read_error(envelope.error?);
        return Some(Some(JsonRpcMessage::error(error, None)));
    };
    // A late answer to a cancelled call, or an answer to nothing.
    let Some(asked) = pending.remove(&id) else {
        return Some(None);
    };
    let id = RequestId::Number(id);
    Some(Some(match (envelope.result, envelope.error) {
        (_, Some(error)) => JsonRpcMessage::error(read_error(error), Some(id)),
        (Some(result), None) => match read_result(asked, result) {
            Ok(result) => JsonRpcMessage::response(result, id),
            Err(error) => malformed(error.to_string(), id),
        },
        (None, None) => malformed("it has neither a result nor an error".into(), id),
    }))
}

/// The number in an id, which some servers send back as text.
fn number(id: &RawValue) -> Option<i64> {
    id.get().trim_matches('"').parse().ok()
}

fn read_error(error: &RawValue) -> ErrorData {
    serde_json::from_str(error.get())
        .unwrap_or_else(|_| ErrorData::new(MALFORMED_ANSWER, error.get().to_owned(), None))
}

fn malformed(reason: String, id: RequestId) -> RxJsonRpcMessage<RoleClient> {
    let text = format!("the answer does not follow the protocol: {reason}");
    JsonRpcMessage::error(ErrorData::new(MALFORMED_ANSWER, text, None), Some(id))
}

fn read_result(asked: Asked, result: &RawValue) -> Result<ServerResult, serde_json::Error> {
    let text = result.get();
    match asked {
        Asked::ListTools => {
            serde_json::from_str::<ListToolsResult>(text).map(ServerResult::ListToolsResult)
        }
        Asked::CallTool => {
            let error = match serde_json::from_str::<CallToolResult>(text) {
                Ok(result) => return Ok(ServerResult::CallToolResult(result)),
                Err(error) => error,
            };
            // Other answers that a call may get: a question back, a task, nothing at all.
            match serde_json::from_str::<ServerResult>(text)? {
                ServerResult::CustomResult(_) => Err(error),
                other => Ok(other),
            }
        }
        Asked::Discover | Asked::Other => serde_json::from_str(text),
    }
}

fn log_noise(line: &[u8], count: u64) {
    if count <= NOISE_LOGGED_COUNT || count.is_power_of_two() {
        let shown = String::from_utf8_lossy(&line[..line.len().min(NOISE_LOGGED_BYTES_MAX)]);
        tracing::warn!(count, line = %shown, "mcp server wrote a line that is not a message");
    }
}

/// Messages on their way to the server. The queue has no length limit but a byte limit.
struct Outbox {
    lines: mpsc::UnboundedSender<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Outbox {
    fn start(stdin: ChildStdin, bytes_max: usize, stop: &CancellationToken) -> Self {
        let (lines, queue) = mpsc::unbounded_channel();
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let write = write_lines(stdin, queue, waiting_bytes.clone());
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(write).await });
        Self { lines, waiting_bytes, bytes_max }
    }

    fn push(&self, line: Vec<u8>) -> Result<(), SendError> {
        let length = line.len();
        let waiting_bytes = self.waiting_bytes.fetch_add(length, Ordering::Relaxed) + length;
        if waiting_bytes > self.bytes_max {
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            return Err(SendError::Full { waiting_bytes });
        }
        self.lines.send(line).map_err(|_| SendError::Closed)
    }
}

/// Writes what comes until the queue or the pipe closes; joins what has gathered meanwhile.
async fn write_lines(
    mut stdin: ChildStdin,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
) {
    let mut lines = Vec::new();
    while queue.recv_many(&mut lines, WRITE_JOIN_COUNT_MAX).await > 0 {
        let joined = if lines.len() == 1 { lines.swap_remove(0) } else { lines.concat() };
        lines.clear();
        if stdin.write_all(&joined).await.is_err() {
            return;
        }
        waiting_bytes.fetch_sub(joined.len(), Ordering::Relaxed);
    }
}

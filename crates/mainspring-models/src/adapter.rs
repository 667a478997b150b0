//! Models that are functions of the host: any SDK, or a model in the process.
//!
//! A function gets the body of a Chat Completions request and gives the body of an answer, so one
//! codec serves it and a server alike. Its call has the same deadlines, and dropping the call tells
//! the host to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use mainspring_session::{ErrorCode, Failure};
use mainspring_wire::HttpFailure;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::client::ModelRequest;

/// The top byte of every id, which no ticket of a tool call has.
const ID_SPACE: u64 = 0xFF << 56;
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Runs the functions behind models. Neither method may block.
pub trait ModelHost: Send + Sync {
    /// Takes a call; its end goes to [`AdapterCall::reports`]. A host without models drops it.
    fn ask(&self, call: AdapterCall) {
        drop(call);
    }

    /// Asks for a call to stop: nobody waits for it any more.
    fn give_up(&self, id: u64) {
        let _ = id;
    }
}

impl ModelHost for () {}

/// One call of a function behind a model.
#[derive(Debug)]
pub struct AdapterCall {
    /// Names the call.
    pub id: u64,
    /// The function, by the number the host gave it.
    pub model: u32,
    /// The body of a Chat Completions request.
    pub body: Bytes,
    /// Where what it says goes. Dropping it ends the call with an error.
    pub reports: UnboundedSender<AdapterReport>,
}

/// What a function behind a model said.
#[derive(Debug)]
pub enum AdapterReport {
    /// A piece of the answer's text.
    Delta(String),
    /// The whole answer: the body of a chat completion.
    Answered(Vec<u8>),
    /// It failed.
    Failed(HttpFailure),
}

/// A call that the host is working on; dropping it before its end tells the host to stop.
pub(crate) struct Asked {
    host: Arc<dyn ModelHost>,
    id: u64,
    reports: UnboundedReceiver<AdapterReport>,
    over: bool,
}

impl Asked {
    /// Hands a call to the host.
    pub(crate) fn new(host: &Arc<dyn ModelHost>, model: u32, request: &ModelRequest) -> Self {
        let id = ID_SPACE | (NEXT_ID.fetch_add(1, Ordering::Relaxed) & !ID_SPACE);
        let (sender, reports) = unbounded_channel();
        host.ask(AdapterCall { id, model, body: request.body.clone(), reports: sender });
        Self { host: Arc::clone(host), id, reports, over: false }
    }

    /// The next report; none if the host dropped the call.
    pub(crate) async fn next(&mut self) -> Option<AdapterReport> {
        let report = self.reports.recv().await;
        self.over = !matches!(report, Some(AdapterReport::Delta(_)));
        report
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.over {
            self.host.give_up(self.id);
        }
    }
}

/// The failure of a call that the host has no function for, or dropped.
pub(crate) fn dropped(server: &str) -> HttpFailure {
    let message = format!("{server} ended without an answer");
    Failure::new(ErrorCode::MODEL_INTERRUPTED, message).into()
}

//! Bodies of answers: of one piece, or a stream of events that is made while it is sent.
//!
//! A stream has no task and no queue: the connection asks for the next bytes, and that drives the
//! call of the model. A client that reads slowly slows the model down, and one that is gone drops
//! the call.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http_body::{Frame, SizeHint};
use mainspring_engine::{Completion, CompletionError, CompletionRequest, ModelRoute, Piece};
use mainspring_wire::{ChatHead, DONE_CHUNK, Delta};

use crate::chat::{head, usage_of};
use crate::gateway::Shared;
use crate::refusal::Refusal;
use crate::service::{Service, UnderWay};

/// The body of an answer.
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Stream(Box<Streamed>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Body::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Body::Stream(streamed) => {
                streamed.poll_bytes(ctx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Whole(body) => body.is_none(),
            Body::Stream(streamed) => streamed.future.is_none() && streamed.out.borrow().is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// A streamed answer that is being made.
pub(crate) struct Streamed {
    shared: Arc<Shared>,
    /// None once it has ended.
    future: Option<LocalBoxFuture<'static, Result<Completion, CompletionError>>>,
    out: Rc<RefCell<Out>>,
    include_usage: bool,
    _under_way: UnderWay,
}

/// Events that are not sent yet.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    head: Option<ChatHead>,
}

impl Out {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn piece(&mut self, shared: &Shared, piece: Piece<'_>) {
        match piece {
            Piece::Begin { model, .. } => {
                let head = head(shared, model);
                head.first_chunk(&mut self.bytes);
                self.head = Some(head);
            }
            Piece::Delta(Delta::Text(text)) => {
                if let Some(head) = &self.head {
                    head.text_chunk(text, &mut self.bytes);
                }
            }
            // Other pieces are passed on whole, and nothing here is begun anew.
            Piece::Delta(_) | Piece::Restart => {}
        }
    }
}

impl Streamed {
    pub(crate) fn new(
        service: Arc<Service>,
        route: &Arc<ModelRoute>,
        request: CompletionRequest,
        include_usage: bool,
        under_way: UnderWay,
    ) -> Self {
        let out = Rc::new(RefCell::new(Out::default()));
        let (shared, route, sink) = (Arc::clone(&service.shared), Arc::clone(route), out.clone());
        let future = async move {
            let mut on_piece = |piece: Piece<'_>| sink.borrow_mut().piece(&service.shared, piece);
            service.completer.complete(&route, &request, &mut on_piece).await
        };
        let future = Some(Box::pin(future) as LocalBoxFuture<'static, _>);
        Self { shared, future, out, include_usage, _under_way: under_way }
    }

    /// Waits until there is something to send.
    pub(crate) async fn begin(&mut self) -> Result<(), Refusal> {
        poll_fn(|ctx| {
            let ended = self.poll_end(ctx);
            match ended {
                Poll::Ready(Err(refusal)) => Poll::Ready(Err(refusal)),
                _ if !self.out.borrow().is_empty() => Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// The model that answers; empty as long as none does.
    pub(crate) fn model(&self) -> String {
        self.out.borrow().head.as_ref().map(|head| head.model.clone()).unwrap_or_default()
    }

    fn poll_bytes(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let ended = self.poll_end(ctx);
        let mut out = self.out.borrow_mut();
        if let Poll::Ready(Err(refusal)) = &ended {
            out.bytes.extend_from_slice(b"data: ");
            out.bytes.extend_from_slice(&refusal.body());
            out.bytes.extend_from_slice(b"\n\n");
        }
        if !out.is_empty() {
            return Poll::Ready(Some(std::mem::take(&mut out.bytes).into()));
        }
        if ended.is_ready() { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Drives the call; once it has ended, its last events are there too.
    fn poll_end(&mut self, ctx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let Some(future) = &mut self.future else { return Poll::Ready(Ok(())) };
        let Poll::Ready(result) = future.as_mut().poll(ctx) else { return Poll::Pending };
        self.future = None;
        match result {
            Ok(done) => {
                self.finish(&done);
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn finish(&mut self, done: &Completion) {
        let mut out = self.out.borrow_mut();
        let Out { bytes, head: begun } = &mut *out;
        let begun = begun.get_or_insert_with(|| {
            let head = head(&self.shared, &done.model);
            head.first_chunk(bytes);
            head
        });
        if !done.answer.tool_calls.is_empty() {
            begun.tools_chunk(&done.answer.tool_calls, bytes);
        }
        begun.finish_chunk(done.finish_reason, bytes);
        if self.include_usage {
            let mut extra = format!("\"mainspring\":{{\"attempts\":{}", done.attempts.len());
            if let Some(cost) = done.cost_usd {
                extra.push_str(&format!(",\"cost_usd\":{cost:.9}"));
            }
            extra.push('}');
            begun.usage_chunk(usage_of(&done.attempts), &extra, bytes);
        }
        bytes.extend_from_slice(DONE_CHUNK);
    }
}

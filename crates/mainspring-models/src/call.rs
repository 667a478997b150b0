//! One call on the wire: send, wait with deadlines, decode.
//!
//! A call has one timer. It first stands at the deadline of the first token and moves to the total
//! deadline once the model has begun to write; the connect deadline lies inside the connector.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use mainspring_session::{ErrorCode, Failure, Timing};
use mainspring_wire::{Decoded, Delta, HttpFailure, RetryHeaders, classify_error};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use tokio::time::{Instant, Sleep};

use crate::adapter::{self, AdapterReport, Asked, ModelHost};
use crate::admission::{Permit, Rates};
use crate::client::{ModelReply, ModelRequest};
use crate::endpoint::Endpoint;
use crate::failure;
use crate::limits::TransportLimits;
use crate::pool::Pools;
use crate::transport::{Reply, TransportError};

/// How long the end of a response may take after the end of its answer.
const READ_END_MAX: Duration = Duration::from_secs(1);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Statuses by which a server says that it has more to do than it can.
const OVERLOAD: [u16; 2] = [503, 529];

/// A request and the endpoint that it goes to.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) request: &'a ModelRequest,
    pub(crate) endpoint: &'a Arc<Endpoint>,
}

impl Target<'_> {
    /// The server as messages name it.
    pub(crate) fn server(&self) -> String {
        format!("model \"{}\" at {}", self.request.codec.model(), self.endpoint.host)
    }
}

/// A call under way.
pub(crate) struct Call<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) limits: &'a TransportLimits,
    pub(crate) started: Instant,
    pub(crate) timer: Pin<&'a mut Sleep>,
    pub(crate) permit: &'a Permit,
    /// Told when the model has begun to write.
    pub(crate) on_first: Option<&'a dyn Fn()>,
    /// Whether the server said that it has more to do than it can.
    pub(crate) is_overload: bool,
}

/// What the timer stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of the answer has come.
    FirstToken,
    /// The answer has begun.
    Total,
}

impl Call<'_> {
    pub(crate) async fn run(
        &mut self,
        pools: &Pools,
        host: &Arc<dyn ModelHost>,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<ModelReply, HttpFailure> {
        if let Some(model) = self.target.endpoint.adapter {
            let asked = Asked::new(host, model, self.target.request);
            return Box::pin(self.ask(asked, on_delta)).await;
        }
        let response = self.send(pools).await?;
        let status = response.status();
        match Rates::read(response.headers(), unix_s()) {
            Some(rates) => self.permit.hear(&rates),
            None if self.permit.is_scout() => self.permit.hear(&Rates::default()),
            None => {}
        }
        // What few calls need, or only late, is boxed: waiting calls are many.
        if status != 200 {
            return Err(Box::pin(self.refused(response, status)).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let contains = |word: &[u8]| kind.windows(word.len()).any(|part| part == word);
        // Some servers ignore the wish for a stream, and say so by the type of what they send.
        let is_stream = contains(b"event-stream")
            || (self.target.request.codec.streams() && !contains(b"application/json"));
        if is_stream {
            return Box::pin(self.read_stream(response, on_delta)).await;
        }
        self.answer_began();
        let body_bytes_max = self.limits.body_bytes_max;
        let (body, is_whole) = self.read_body(response, body_bytes_max, Phase::Total).await?;
        if !is_whole {
            return Err(self.too_long(body_bytes_max).into());
        }
        let decoded = self.target.request.codec.decode(&body, self.target.request.ids)?;
        Ok(self.reply(decoded, None))
    }

    /// Waits for a function of the host, under the same deadlines as for a server.
    async fn ask(
        &mut self,
        mut asked: Asked,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<ModelReply, HttpFailure> {
        let request = self.target.request;
        let mut first_token_us = None;
        loop {
            let phase = if first_token_us.is_none() { Phase::FirstToken } else { Phase::Total };
            match self.before_deadline(phase, asked.next()).await? {
                Some(AdapterReport::Delta(text)) => {
                    if first_token_us.is_none() {
                        first_token_us = Some(micros_since(self.started));
                        self.answer_began();
                        if let Some(on_first) = self.on_first {
                            on_first();
                        }
                    }
                    on_delta(Delta::Text(&text));
                }
                Some(AdapterReport::Answered(body)) => {
                    let decoded = request.codec.decode(&body, request.ids)?;
                    return Ok(self.reply(decoded, first_token_us));
                }
                Some(AdapterReport::Failed(failure)) => return Err(failure),
                None => return Err(adapter::dropped(&self.target.server())),
            }
        }
    }

    async fn send(&mut self, pools: &Pools) -> Result<Reply, HttpFailure> {
        let Target { request, endpoint } = self.target;
        let sent = if let Some(direct) = pools.direct(endpoint) {
            let sending = direct.send(endpoint, &request.body, request.connect_ms_max);
            let sent = self.before_deadline(Phase::FirstToken, sending).await?;
            sent.map(|exchange| Reply::Direct(Box::new(exchange)))
        } else {
            let client = pools.client(endpoint, request.connect_ms_max)?;
            let mut message = reqwest::Request::new(Method::POST, endpoint.url.clone());
            *message.headers_mut() = endpoint.headers.clone();
            message.headers_mut().insert(CONTENT_TYPE, JSON);
            *message.body_mut() = Some(request.body.clone().into());
            let sending = Box::pin(client.execute(message));
            let sent = self.before_deadline(Phase::FirstToken, sending).await?;
            sent.map(|response| Reply::Client(Box::new(response))).map_err(TransportError::Client)
        };
        sent.map_err(|error| failure::of_transport(self.target, &error).into())
    }

    async fn read_stream(
        &mut self,
        mut response: Reply,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<ModelReply, HttpFailure> {
        let target = self.target;
        let request = target.request;
        let mut decoder = request.codec.stream(request.ids);
        let mut first_token_us = None;
        let mut bytes_left = self.limits.body_bytes_max;
        while !decoder.is_done() {
            let phase = if first_token_us.is_none() { Phase::FirstToken } else { Phase::Total };
            let chunk = self.before_deadline(phase, response.chunk()).await?;
            let chunk = chunk.map_err(|error| failure::of_transport(target, &error))?;
            let Some(chunk) = chunk else { break };
            if chunk.len() > bytes_left {
                return Err(self.too_long(self.limits.body_bytes_max).into());
            }
            bytes_left -= chunk.len();
            decoder.push(&chunk, on_delta)?;
            if first_token_us.is_none() && decoder.saw_token() {
                first_token_us = Some(micros_since(self.started));
                self.answer_began();
                if let Some(on_first) = self.on_first {
                    on_first();
                }
            }
        }
        let is_done = decoder.is_done();
        let decoded = decoder.finish()?;
        if is_done {
            read_end(response).await;
        }
        Ok(self.reply(decoded, first_token_us))
    }

    /// The body, up to `bytes_max`, and whether that was all of it. A body of one piece, the usual
    /// case, is not copied.
    async fn read_body(
        &mut self,
        mut response: Reply,
        bytes_max: usize,
        phase: Phase,
    ) -> Result<(Bytes, bool), Failure> {
        let mut whole = Bytes::new();
        let mut joined = BytesMut::new();
        loop {
            let chunk = self.before_deadline(phase, response.chunk()).await?;
            let chunk = chunk.map_err(|error| failure::of_transport(self.target, &error))?;
            let Some(chunk) = chunk else { break };
            if joined.is_empty() && whole.is_empty() {
                whole = chunk;
            } else {
                if joined.is_empty() {
                    joined.reserve(whole.len() + chunk.len());
                    joined.extend_from_slice(&whole);
                }
                joined.extend_from_slice(&chunk);
            }
            if whole.len().max(joined.len()) > bytes_max {
                let body = if joined.is_empty() { whole } else { joined.freeze() };
                return Ok((body.slice(..bytes_max), false));
            }
        }
        Ok((if joined.is_empty() { whole } else { joined.freeze() }, true))
    }

    async fn refused(&mut self, response: Reply, status: u16) -> HttpFailure {
        let headers = response.headers().clone();
        let bytes_max = self.limits.error_body_bytes_max;
        // The status says enough where the body does not arrive.
        let body = match self.read_body(response, bytes_max, Phase::FirstToken).await {
            Ok((body, _)) => body,
            Err(_) => Bytes::new(),
        };
        self.is_overload = OVERLOAD.contains(&status);
        let retry = RetryHeaders {
            retry_after: text_of(&headers, RETRY_AFTER.as_str()),
            retry_after_ms: text_of(&headers, "retry-after-ms"),
            now_unix_s: unix_s(),
        };
        classify_error(&self.target.server(), status, retry, &body)
    }

    /// Moves the timer to the total deadline.
    fn answer_began(&mut self) {
        let total = Duration::from_millis(self.target.request.total_ms_max);
        self.timer.as_mut().reset(self.started + total);
    }

    async fn before_deadline<T>(
        &mut self,
        phase: Phase,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        match first_of(pin!(work), self.timer.as_mut()).await {
            Some(output) => Ok(output),
            None => Err(self.timed_out(phase)),
        }
    }

    fn timed_out(&self, phase: Phase) -> Failure {
        let ModelRequest { first_token_ms_max, total_ms_max, .. } = *self.target.request;
        let server = self.target.server();
        let streams = self.target.request.codec.streams();
        let (what, ms_max, name) = match phase {
            Phase::FirstToken if first_token_ms_max < total_ms_max => {
                let what = if streams { "sent no first token" } else { "sent no answer" };
                (what, first_token_ms_max, "first_token_s")
            }
            _ => ("did not finish its answer", total_ms_max, "total_s"),
        };
        let limit = failure::seconds(ms_max);
        Failure::new(ErrorCode::MODEL_TIMEOUT, format!("{server} {what} within {limit}"))
            .with_hint(format!("raise the model's {name}, or check how busy the server is"))
    }

    fn too_long(&self, bytes_max: usize) -> Failure {
        let server = self.target.server();
        Failure::new(
            ErrorCode::MODEL_BAD_RESPONSE,
            format!("{server} answered with more than {bytes_max} bytes"),
        )
    }

    fn reply(&self, decoded: Decoded, first_token_us: Option<u64>) -> ModelReply {
        let Decoded { answer, finish_reason, usage, notes, problems } = decoded;
        let timing = Timing { first_token_us, total_us: micros_since(self.started) };
        ModelReply { answer, finish_reason, usage, timing, notes, problems }
    }
}

/// Reads past the end of an answer, without keeping the caller waiting: only a connection whose
/// response was read to its end can be used again.
async fn read_end(mut response: Reply) {
    {
        let end = pin!(response.chunk());
        if !matches!(first_of(end, pin!(std::future::ready(()))).await, None | Some(Ok(Some(_)))) {
            return;
        }
    }
    tokio::spawn(async move {
        let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
        // What takes longer is not worth a connection.
        let _ = tokio::time::timeout(READ_END_MAX, rest).await;
    });
}

/// The output of `work`, or none if `deadline` comes first. Work that is ready wins.
async fn first_of<T, D>(
    mut work: Pin<&mut impl Future<Output = T>>,
    mut deadline: Pin<&mut impl Future<Output = D>>,
) -> Option<T> {
    std::future::poll_fn(|ctx| {
        if let std::task::Poll::Ready(output) = work.as_mut().poll(ctx) {
            return std::task::Poll::Ready(Some(output));
        }
        deadline.as_mut().poll(ctx).map(|_| None)
    })
    .await
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn micros_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

//! One model call: send, wait with deadlines, decode.
//!
//! A call has one timer. It first stands at the deadline of the first token and moves to the total
//! deadline once the model has begun to write; the connect deadline lies inside the connector.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use mainspring_session::{Answer, ErrorCode, Failure, FinishReason, Problem, Timing, Usage};
use mainspring_wire::{
    CallIds, ChatCodec, Decoded, Delta, HttpFailure, RetryHeaders, classify_error,
};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use tokio::time::Sleep;

use crate::endpoint::Endpoint;
use crate::failure;
use crate::limits::TransportLimits;
use crate::pool::Pools;
use crate::transport::{Reply, TransportError};

/// How long the end of a response may take after the end of its answer.
const READ_END_MAX: Duration = Duration::from_secs(1);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Calls models; clones share their connections. To be used inside one tokio runtime, since its
/// connections live there.
#[derive(Debug, Clone)]
pub struct ModelClient {
    pools: Arc<Pools>,
    limits: TransportLimits,
}

/// One call.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// Where to.
    pub endpoint: Arc<Endpoint>,
    /// How to read the answer; it also made the body.
    pub codec: Arc<ChatCodec>,
    /// The request body.
    pub body: Bytes,
    /// How to name calls without an id.
    pub ids: CallIds,
    /// Milliseconds to connect.
    pub connect_ms_max: u64,
    /// Milliseconds from the request to the first token, or to the response without streaming.
    pub first_token_ms_max: u64,
    /// Milliseconds from the request to the end of the answer.
    pub total_ms_max: u64,
}

impl ModelRequest {
    /// The server as messages name it.
    pub(crate) fn server(&self) -> String {
        format!("model \"{}\" at {}", self.codec.model(), self.endpoint.host)
    }
}

/// A model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelReply {
    /// What it said.
    pub answer: Answer,
    /// Why it stopped.
    pub finish_reason: FinishReason,
    /// Tokens, as the provider counted them.
    pub usage: Usage,
    /// How long it took.
    pub timing: Timing,
    /// What is wrong with the form of a constrained answer.
    pub problems: Vec<Problem>,
}

impl ModelClient {
    /// A client without connections; the first call to a server makes one.
    ///
    /// # Errors
    /// `agent_invalid` if a limit is zero.
    pub fn new(limits: TransportLimits) -> Result<Self, Failure> {
        let TransportLimits { body_bytes_max, error_body_bytes_max, pools_max, .. } = limits;
        if body_bytes_max == 0 || error_body_bytes_max == 0 || pools_max == 0 {
            return Err(Failure::new(
                ErrorCode::AGENT_INVALID,
                "a transport limit is 0, at least 1 is needed",
            ));
        }
        Ok(Self { pools: Arc::new(Pools::new(limits)), limits })
    }

    /// Makes one call and reports pieces of a streamed answer as they arrive.
    ///
    /// Dropping the future ends the call and closes its connection.
    ///
    /// # Errors
    /// The failure, with the wait that the server asked for: `model_connect`, `model_timeout`,
    /// `model_interrupted`, `model_bad_response`, or what the server's status means.
    pub async fn call(
        &self,
        request: ModelRequest,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<ModelReply, HttpFailure> {
        let started = Instant::now();
        let first_ms_max = request.first_token_ms_max.min(request.total_ms_max);
        let timer = pin!(tokio::time::sleep(Duration::from_millis(first_ms_max)));
        let mut call = Call { request: &request, limits: &self.limits, started, timer };
        let result = call.run(&self.pools, on_delta).await;
        result.map_err(|HttpFailure { failure, retry_after_ms }| HttpFailure {
            failure: request.endpoint.without_key(failure),
            retry_after_ms,
        })
    }
}

/// A call under way.
struct Call<'a> {
    request: &'a ModelRequest,
    limits: &'a TransportLimits,
    started: Instant,
    timer: Pin<&'a mut Sleep>,
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
    async fn run(
        &mut self,
        pools: &Pools,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<ModelReply, HttpFailure> {
        let response = self.send(pools).await?;
        let status = response.status();
        // What few calls need, or only late, is boxed: waiting calls are many.
        if status != 200 {
            return Err(Box::pin(self.refused(response, status)).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let contains = |word: &[u8]| kind.windows(word.len()).any(|part| part == word);
        // Some servers ignore the wish for a stream, and say so by the type of what they send.
        let is_stream = contains(b"event-stream")
            || (self.request.codec.streams() && !contains(b"application/json"));
        if is_stream {
            return Box::pin(self.read_stream(response, on_delta)).await;
        }
        self.answer_began();
        let body_bytes_max = self.limits.body_bytes_max;
        let (body, is_whole) = self.read_body(response, body_bytes_max, Phase::Total).await?;
        if !is_whole {
            return Err(self.too_long(body_bytes_max).into());
        }
        let decoded = self.request.codec.decode(&body, self.request.ids)?;
        Ok(self.reply(decoded, None))
    }

    async fn send(&mut self, pools: &Pools) -> Result<Reply, HttpFailure> {
        let request = self.request;
        let sent = if let Some(direct) = pools.direct(&request.endpoint) {
            let sending = direct.send(&request.endpoint, &request.body, request.connect_ms_max);
            let sent = self.before_deadline(Phase::FirstToken, sending).await?;
            sent.map(|exchange| Reply::Direct(Box::new(exchange)))
        } else {
            let client = pools.client(&request.endpoint, request.connect_ms_max)?;
            let mut message = reqwest::Request::new(Method::POST, request.endpoint.url.clone());
            *message.headers_mut() = request.endpoint.headers.clone();
            message.headers_mut().insert(CONTENT_TYPE, JSON);
            *message.body_mut() = Some(request.body.clone().into());
            let sending = Box::pin(client.execute(message));
            let sent = self.before_deadline(Phase::FirstToken, sending).await?;
            sent.map(|response| Reply::Client(Box::new(response))).map_err(TransportError::Client)
        };
        sent.map_err(|error| failure::of_transport(request, &error).into())
    }

    async fn read_stream(
        &mut self,
        mut response: Reply,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<ModelReply, HttpFailure> {
        let request = self.request;
        let mut decoder = request.codec.stream(request.ids);
        let mut first_token_us = None;
        let mut bytes_left = self.limits.body_bytes_max;
        while !decoder.is_done() {
            let phase = if first_token_us.is_none() { Phase::FirstToken } else { Phase::Total };
            let chunk = self.before_deadline(phase, response.chunk()).await?;
            let chunk = chunk.map_err(|error| failure::of_transport(request, &error))?;
            let Some(chunk) = chunk else { break };
            if chunk.len() > bytes_left {
                return Err(self.too_long(self.limits.body_bytes_max).into());
            }
            bytes_left -= chunk.len();
            decoder.push(&chunk, on_delta)?;
            if first_token_us.is_none() && decoder.saw_token() {
                first_token_us = Some(micros_since(self.started));
                self.answer_began();
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
            let chunk = chunk.map_err(|error| failure::of_transport(self.request, &error))?;
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
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let retry = RetryHeaders {
            retry_after: text_of(&headers, RETRY_AFTER.as_str()),
            retry_after_ms: text_of(&headers, "retry-after-ms"),
            now_unix_s: now.map_or(0, |now| now.as_secs()),
        };
        classify_error(&self.request.server(), status, retry, &body)
    }

    /// Moves the timer to the total deadline.
    fn answer_began(&mut self) {
        let total = Duration::from_millis(self.request.total_ms_max);
        self.timer.as_mut().reset((self.started + total).into());
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
        let ModelRequest { first_token_ms_max, total_ms_max, .. } = *self.request;
        let server = self.request.server();
        let streams = self.request.codec.streams();
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
        let server = self.request.server();
        Failure::new(
            ErrorCode::MODEL_BAD_RESPONSE,
            format!("{server} answered with more than {bytes_max} bytes"),
        )
    }

    fn reply(&self, decoded: Decoded, first_token_us: Option<u64>) -> ModelReply {
        let Decoded { answer, finish_reason, usage, problems } = decoded;
        let timing = Timing { first_token_us, total_us: micros_since(self.started) };
        ModelReply { answer, finish_reason, usage, timing, problems }
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

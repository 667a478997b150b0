//! What a client is told that gets no answer: a status, and the JSON of an OpenAI error.
//!
//! # Source
//! OpenAI API reference, "Error codes", and the classes of `openai/_exceptions.py` (2.x), which go
//! by status.

use hyper::StatusCode;
use mainspring_session::Failure;
use mainspring_wire::{BadRequest, error_body};

use mainspring_engine::CompletionError;

/// Seconds to wait where nobody knows better.
const RETRY_AFTER_S: u64 = 1;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    kind: &'static str,
    code: String,
    message: String,
    param: Option<String>,
    /// Milliseconds after which another try makes sense.
    pub(crate) retry_after_ms: Option<u64>,
    /// Model calls that were made for nothing.
    pub(crate) attempts: usize,
}

const BAD_REQUEST: &str = "invalid_request_error";
const EXHAUSTED: &str = "insufficient_quota";
/// Seconds after which somebody whose budget is spent may look again.
const EXHAUSTED_RETRY_AFTER_S: u64 = 60;

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: code.to_owned(),
            message: message.into(),
            param: None,
            retry_after_ms: None,
            attempts: 0,
        }
    }

    /// The error as JSON.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(128 + self.message.len());
        error_body(self.kind, &self.code, &self.message, self.param.as_deref(), &mut body);
        body
    }

    /// The `Retry-After` header in whole seconds, rounded up.
    pub(crate) fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1))
    }

    /// Whether another try soon makes no sense, although its status says so.
    pub(crate) fn is_lasting(&self) -> bool {
        self.kind == EXHAUSTED
    }

    pub(crate) fn no_path(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let message = format!(
            "path {path:?} is not served, there are /v1/chat/completions, /v1/models, /healthz, \
             /metrics"
        );
        Self::new(StatusCode::NOT_FOUND, BAD_REQUEST, "path_not_found", message)
    }

    pub(crate) fn method(allowed: &str) -> Self {
        let message = format!("the method is not served here, allowed is {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, BAD_REQUEST, "method_not_allowed", message)
    }

    pub(crate) fn content_type() -> Self {
        let message = "the content type must be application/json";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(status, BAD_REQUEST, "unsupported_media_type", message)
    }

    pub(crate) fn no_token() -> Self {
        let message = "the header \"Authorization: Bearer TOKEN\" is missing";
        Self::new(StatusCode::UNAUTHORIZED, BAD_REQUEST, "invalid_api_key", message)
    }

    pub(crate) fn wrong_token() -> Self {
        let message = "the token is not one of this gateway";
        Self::new(StatusCode::UNAUTHORIZED, BAD_REQUEST, "invalid_api_key", message)
    }

    pub(crate) fn forbidden_host() -> Self {
        let message = "a gateway without tokens answers to names of this machine only, such as \
                       127.0.0.1 and localhost";
        Self::new(StatusCode::FORBIDDEN, BAD_REQUEST, "host_not_allowed", message)
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        let message = format!("the body has more than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, BAD_REQUEST, "request_too_large", message)
    }

    pub(crate) fn too_slow(ms_max: u64) -> Self {
        let seconds = ms_max as f64 / 1000.0;
        let message = format!("the body did not arrive within {seconds} s");
        Self::new(StatusCode::REQUEST_TIMEOUT, BAD_REQUEST, "request_timeout", message)
    }

    pub(crate) fn broken_body() -> Self {
        let message = "the body ended before it was complete";
        Self::new(StatusCode::BAD_REQUEST, BAD_REQUEST, "bad_body", message)
    }

    pub(crate) fn overloaded(requests_max: usize) -> Self {
        let message = format!("{requests_max} requests are under way, the limit of this gateway");
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut refusal = Self::new(status, "rate_limit_error", "engine_overloaded", message);
        refusal.retry_after_ms = Some(RETRY_AFTER_S * 1000);
        refusal
    }

    pub(crate) fn no_model<'a>(name: &str, served: impl Iterator<Item = &'a str>) -> Self {
        let name: String = name.chars().take(200).collect();
        let served: Vec<&str> = served.collect();
        let message = format!("model {name:?} is not served here, allowed: {}", served.join(", "));
        let mut refusal = Self::new(StatusCode::NOT_FOUND, BAD_REQUEST, "model_not_found", message);
        refusal.param = Some("model".to_owned());
        refusal
    }

    fn of_failure(failure: &Failure) -> Self {
        let (status, kind) = match failure.code.as_str() {
            "agent_invalid" | "tool_schema_invalid" => (StatusCode::BAD_REQUEST, BAD_REQUEST),
            "model_bad_request" | "model_context_overflow" => {
                (StatusCode::BAD_REQUEST, BAD_REQUEST)
            }
            "model_rate_limited" | "model_overloaded" | "engine_overloaded" => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error")
            }
            "budget_exhausted" => (StatusCode::TOO_MANY_REQUESTS, EXHAUSTED),
            "model_timeout" => (StatusCode::GATEWAY_TIMEOUT, "api_error"),
            "model_unavailable" => (StatusCode::SERVICE_UNAVAILABLE, "api_error"),
            "internal" | "budget_unpriced" => (StatusCode::INTERNAL_SERVER_ERROR, "api_error"),
            _ => (StatusCode::BAD_GATEWAY, "api_error"),
        };
        Self::new(status, kind, failure.code.as_str(), failure.to_text())
    }
}

impl From<BadRequest> for Refusal {
    fn from(bad: BadRequest) -> Self {
        let code = "invalid_value";
        let mut refusal = Self::new(StatusCode::BAD_REQUEST, BAD_REQUEST, code, bad.message);
        refusal.param = bad.param;
        refusal
    }
}

impl From<CompletionError> for Refusal {
    fn from(error: CompletionError) -> Self {
        let mut refusal = Self::of_failure(&error.failure);
        refusal.attempts = error.attempts.len();
        if refusal.is_lasting() {
            refusal.retry_after_ms = Some(EXHAUSTED_RETRY_AFTER_S * 1000);
        } else if matches!(
            refusal.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            refusal.retry_after_ms = error.retry_after_ms.or(Some(RETRY_AFTER_S * 1000));
        }
        refusal
    }
}

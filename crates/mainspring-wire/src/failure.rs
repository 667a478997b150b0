//! What a model server's error means: one code, one sentence, one cure, and when to try again.
//!
//! A server's own words go into the message, cut short and without anything that looks like a key;
//! when a key is refused they are left out, because they often repeat a part of it.

use mainspring_session::{ErrorCode, Failure};
use serde_json::Value;

use crate::http_date;

/// Longest wait that a server's `Retry-After` can ask for, in milliseconds: one day.
pub const RETRY_AFTER_MS_MAX: u64 = 86_400_000;
/// Characters of a server's own words in a message.
const DETAIL_CHARS_MAX: usize = 300;

/// A failed model call, and how long the server asked to wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct HttpFailure {
    /// What went wrong.
    pub failure: Failure,
    /// Milliseconds that the server asked to wait, at most [`RETRY_AFTER_MS_MAX`].
    pub retry_after_ms: Option<u64>,
}

impl From<Failure> for HttpFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, retry_after_ms: None }
    }
}

/// The headers that say when to try again, and the time that a date in them is compared with.
#[derive(Debug, Clone, Copy, Default)]
pub struct RetryHeaders<'a> {
    /// `Retry-After`: seconds, or a date.
    pub retry_after: Option<&'a str>,
    /// `Retry-After-Ms`, which goes before the other.
    pub retry_after_ms: Option<&'a str>,
    /// Seconds since the epoch, now.
    pub now_unix_s: u64,
}

impl RetryHeaders<'_> {
    /// The wait in milliseconds, bounded; none if the headers say nothing that can be read.
    #[must_use]
    pub fn wait_ms(&self) -> Option<u64> {
        let positive = |text: &str, scale: f64| {
            let number: f64 = text.trim().parse().ok()?;
            // A float-to-integer cast saturates, so the bound below holds for any number.
            (number >= 0.0).then_some((number * scale) as u64)
        };
        let date = |text: &str| {
            let at = http_date::parse(text)?;
            Some(at.saturating_sub(self.now_unix_s).saturating_mul(1000))
        };
        let wait = self
            .retry_after_ms
            .and_then(|text| positive(text, 1.0))
            .or_else(|| self.retry_after.and_then(|text| positive(text, 1000.0)))
            .or_else(|| self.retry_after.and_then(date))?;
        Some(wait.min(RETRY_AFTER_MS_MAX))
    }
}

/// The failure that a response with an error status stands for. `server` begins the message and
/// names who answered: `model "x" at HOST`.
#[must_use]
pub fn classify_error(
    server: &str,
    status: u16,
    retry: RetryHeaders<'_>,
    body: &[u8],
) -> HttpFailure {
    let detail = Detail::read(body);
    let failure = failure_of(server, &format!("status {status}"), status, &detail);
    HttpFailure { failure, retry_after_ms: retry.wait_ms() }
}

/// The failure in a body `{"error": ...}` that came with status 200 or inside a stream; none if the
/// body holds no error.
#[must_use]
pub fn error_of_body(server: &str, body: &[u8]) -> Option<HttpFailure> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error").filter(|error| !error.is_null())?;
    let detail = Detail::of(error);
    let status = detail.status();
    Some(failure_of(server, "an error", status, &detail).into())
}

/// What an error body says.
#[derive(Debug, Default)]
struct Detail {
    message: String,
    code: String,
    kind: String,
}

impl Detail {
    fn read(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(Value::Array(elements)) => elements.first().map(Self::of_body).unwrap_or_default(),
            Ok(value) => Self::of_body(&value),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                // A page of HTML tells a reader nothing that the status does not.
                let message = if text.trim_start().starts_with('<') { "" } else { &text };
                Self { message: message.to_owned(), ..Self::default() }
            }
        }
    }

    fn of_body(body: &Value) -> Self {
        let inner = ["error", "detail"].iter().find_map(|key| body.get(key));
        Self::of(inner.filter(|inner| !inner.is_null()).unwrap_or(body))
    }

    fn of(error: &Value) -> Self {
        let field = |key: &str| match error.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        match error {
            Value::Object(_) => {
                Self { message: field("message"), code: field("code"), kind: field("type") }
            }
            Value::String(text) => Self { message: text.clone(), ..Self::default() },
            Value::Null => Self::default(),
            other => Self { message: other.to_string(), ..Self::default() },
        }
    }

    /// The status that an error without one would have had.
    fn status(&self) -> u16 {
        if let Ok(status @ 400..=599) = self.code.parse() {
            return status;
        }
        let names = format!("{} {}", self.code, self.kind).to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| names.contains(word));
        if says(&["rate_limit", "insufficient_quota"]) {
            429
        } else if says(&["overloaded"]) {
            529
        } else if says(&["request_too_large"]) {
            413
        } else if says(&["authentication", "invalid_api_key", "permission", "billing"]) {
            401
        } else if says(&["not_found"]) {
            404
        } else if says(&["invalid_", "context_length", "exceed_context", "content_filter", "image"])
        {
            400
        } else {
            500
        }
    }

    fn is_named(&self, name: &str) -> bool {
        self.code == name || self.kind == name
    }

    fn is_context_overflow(&self) -> bool {
        let named = ["context_length_exceeded", "exceed_context_size_error"];
        let said = [
            "context length",
            "context window",
            "context size",
            "prompt is too long",
            "context limit",
            "maximum context",
            "maximum model length",
            "maximum number of tokens allowed",
            "input is too long",
            "reduce the length of the messages",
            "too many tokens",
        ];
        let message = self.message.to_ascii_lowercase();
        named.iter().any(|name| self.is_named(name)) || said.iter().any(|s| message.contains(s))
    }

    /// Azure and OpenAI name the filter in the code, others in the kind.
    fn is_content_filter(&self) -> bool {
        let named =
            ["content_filter", "content_policy_violation", "invalid_prompt", "cyber_policy"];
        named.iter().any(|name| self.is_named(name))
    }

    /// The server's words behind a colon; empty if it has none.
    fn shown(&self) -> String {
        let words = redact(&self.message);
        let words = words.trim_end_matches('.');
        if words.is_empty() { String::new() } else { format!(": {words}") }
    }
}

fn failure_of(server: &str, what: &str, status: u16, detail: &Detail) -> Failure {
    let code = code_of(status, detail);
    let shown = if code == ErrorCode::MODEL_AUTH { String::new() } else { detail.shown() };
    let named = match [&detail.code, &detail.kind].into_iter().find(|name| is_name(name)) {
        Some(name) => format!(" ({name})"),
        None => String::new(),
    };
    let mut failure =
        Failure::new(code.clone(), format!("{server} answered with {what}{named}{shown}"));
    if detail.is_named("insufficient_quota") || matches!(status, 501 | 505) {
        failure.retryable = false;
    }
    match hint_of(&code, status, detail) {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}

fn code_of(status: u16, detail: &Detail) -> ErrorCode {
    match status {
        401..=403 => ErrorCode::MODEL_AUTH,
        429 => ErrorCode::MODEL_RATE_LIMITED,
        413 if detail.is_named("rate_limit_exceeded") => ErrorCode::MODEL_RATE_LIMITED,
        413 => ErrorCode::MODEL_CONTEXT_OVERFLOW,
        400..=599 if detail.is_context_overflow() => ErrorCode::MODEL_CONTEXT_OVERFLOW,
        400..=499 if detail.is_named("invalid_api_key") => ErrorCode::MODEL_AUTH,
        400..=499 if detail.is_content_filter() => ErrorCode::MODEL_CONTENT_FILTER,
        400..=499 if detail.is_named("model_not_found") => ErrorCode::MODEL_NOT_FOUND,
        300..=399 | 404 | 405 | 410 => ErrorCode::MODEL_NOT_FOUND,
        407 => ErrorCode::MODEL_CONNECT,
        408 => ErrorCode::MODEL_TIMEOUT,
        409 | 425 | 500..=599 => ErrorCode::MODEL_SERVER_ERROR,
        400..=499 => ErrorCode::MODEL_BAD_REQUEST,
        _ => ErrorCode::MODEL_BAD_RESPONSE,
    }
}

fn hint_of(code: &ErrorCode, status: u16, detail: &Detail) -> Option<&'static str> {
    Some(match (status, code) {
        (402, _) => "the account behind the key has no credit left",
        (_, c) if *c == ErrorCode::MODEL_AUTH => "check the API key and that it may use this model",
        (300..=399, _) => "the server redirects: set base_url to the final address",
        (_, c) if *c == ErrorCode::MODEL_NOT_FOUND => {
            "check the model's name and that base_url ends where the API begins, often in /v1"
        }
        (_, c) if *c == ErrorCode::MODEL_CONTEXT_OVERFLOW => {
            "shorten the input or the tool results, or use a model with a longer context"
        }
        (_, c) if *c == ErrorCode::MODEL_CONTENT_FILTER => {
            "ask in other words, or let another provider's model follow in the route"
        }
        (407, _) => "the proxy wants a user name and password: set them in HTTPS_PROXY",
        (429, _) if detail.is_named("insufficient_quota") => {
            "the account behind the key has used up its quota"
        }
        (429, _) => "lower the concurrency, or ask the provider for a higher rate",
        (503, _) => "the server is overloaded or still loading the model",
        (_, c) if *c == ErrorCode::MODEL_BAD_REQUEST => {
            "check the model's params and that the server knows tools and response_format"
        }
        _ => return None,
    })
}

/// Whether a provider's error code is a name worth showing, and nothing that could be a key.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    (1..=50).contains(&name.len()) && name.bytes().all(allowed)
}

/// One line of at most [`DETAIL_CHARS_MAX`] characters, with what looks like a key taken out.
fn redact(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(if looks_like_key(word) { "[redacted]" } else { word });
        if line.chars().count() > DETAIL_CHARS_MAX {
            let cut: String = line.chars().take(DETAIL_CHARS_MAX).collect();
            return format!("{cut}...");
        }
    }
    line
}

fn looks_like_key(word: &str) -> bool {
    let prefixes = ["sk-", "sk_", "gsk_", "xai-", "hf_", "AIza", "key-", "pplx-", "nvapi-"];
    let core = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*');
    word.split(|c| !core(c)).any(|part| {
        let has_digit = part.bytes().any(|byte| byte.is_ascii_digit());
        let has_letter = part.bytes().any(|byte| byte.is_ascii_alphabetic());
        prefixes.iter().any(|prefix| part.starts_with(prefix) && part.len() > prefix.len() + 4)
            || part.contains("***")
            || (part.len() >= 32 && has_digit && has_letter)
    })
}

//! `POST /v1/chat/completions`: a request read, a route asked, an answer written.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use mainspring_engine::{Attempt, Completion, CompletionRequest, Streaming};
use mainspring_session::Usage;
use mainspring_wire::{ChatHead, ChatRequest};

use crate::gateway::{Served, Shared};
use crate::refusal::Refusal;
use crate::service::{JSON, Service, UnderWay, whole};
use crate::stream::{Body, Streamed};

/// Answers one request.
pub(crate) async fn answer(
    service: Arc<Service>,
    tenant: Arc<str>,
    body: &[u8],
    under_way: UnderWay,
) -> Result<Response<Body>, Refusal> {
    let chat = ChatRequest::parse(body)?;
    let shared = Arc::clone(&service.shared);
    let served = shared
        .routes
        .get(&chat.model)
        .ok_or_else(|| Refusal::no_model(&chat.model, shared.routes.keys().map(String::as_str)))?;
    let (stream, include_usage) = (chat.stream, chat.include_usage);
    let request = request_of(chat, served, tenant, shared.limits.request_ms_max);
    if !stream {
        let done = service.completer.complete(&served.route, &request, &mut |_| {}).await?;
        return Ok(written(&shared, &done));
    }
    let mut streamed = Streamed::new(service, &served.route, request, include_usage, under_way);
    // Until there is something to send, a failure still has a status of its own.
    streamed.begin().await?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    insert(&mut headers, "x-mainspring-model", &streamed.model());
    let mut response = Response::new(Body::Stream(Box::new(streamed)));
    *response.headers_mut() = headers;
    Ok(response)
}

fn request_of(
    chat: ChatRequest,
    served: &Served,
    tenant: Arc<str>,
    request_ms_max: u64,
) -> CompletionRequest {
    let streaming = if chat.stream { served.streaming } else { Streaming::Off };
    CompletionRequest {
        streaming,
        tenant,
        timeout: Some(Duration::from_millis(request_ms_max)),
        ..CompletionRequest::of_chat(chat)
    }
}

fn written(shared: &Shared, done: &Completion) -> Response<Body> {
    let head = head(shared, &done.model);
    let mut body = Vec::with_capacity(512 + done.answer.text.len());
    head.completion(&done.answer, done.finish_reason, usage_of(&done.attempts), &mut body);
    let mut response = whole(StatusCode::OK, JSON, body.into());
    let headers = response.headers_mut();
    insert(headers, "x-mainspring-model", &done.model);
    headers.insert("x-mainspring-attempts", done.attempts.len().into());
    if let Some(cost) = done.cost_usd {
        insert(headers, "x-mainspring-cost-usd", &format!("{cost:.9}"));
    }
    if !done.problems.is_empty() {
        let checks: Vec<_> = done.problems.iter().map(|found| found.check.as_str()).collect();
        insert(headers, "x-mainspring-problems", &checks.join(","));
    }
    response
}

/// What a client counts: the tokens of the call whose answer it gets. What the route used besides
/// is in its price.
pub(crate) fn usage_of(attempts: &[Attempt]) -> Usage {
    attempts.last().map(|attempt| attempt.usage).unwrap_or_default()
}

/// What an answer begins with.
pub(crate) fn head(shared: &Shared, model: &str) -> ChatHead {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ChatHead { id: shared.next_id(), created_s: now.as_secs(), model: model.to_owned() }
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A name that no header can carry is a model's, and only informs.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

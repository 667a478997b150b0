//! From a request's head to who answers it: paths, methods, tokens, limits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use mainspring_engine::Completer;

use crate::gateway::Shared;
use crate::refusal::Refusal;
use crate::stream::Body;

/// Bytes past its limit that are read of a body, so that the client comes to read its refusal.
const DISCARD_BYTES_MAX: usize = 64 << 20;

/// What one worker answers with.
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) completer: Completer,
}

/// A request that is under way; counted until this is dropped.
pub(crate) struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.metrics.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    /// Answers a request, one way or the other.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let shared = Arc::clone(&self.shared);
        let response = match self.route(request).await {
            Ok(response) => response,
            Err(refusal) => refused(&refusal),
        };
        shared.metrics.answered(response.status().as_u16());
        response
    }

    async fn route(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/v1/chat/completions" | "/chat/completions" => {
                if request.method() != Method::POST {
                    return Err(Refusal::method("POST"));
                }
                self.chat(request).await
            }
            "/healthz" | "/metrics" | "/v1/models" | "/models" if !is_read => {
                Err(Refusal::method("GET"))
            }
            // Says nothing about anything, so that a load balancer needs no token.
            "/healthz" => Ok(whole(StatusCode::OK, "text/plain", Bytes::from_static(b"ok\n"))),
            "/metrics" => {
                self.shared.clients.tenant(request.headers())?;
                let text = self.shared.metrics.text();
                Ok(whole(StatusCode::OK, "text/plain; version=0.0.4", text.into()))
            }
            "/v1/models" | "/models" => {
                self.shared.clients.tenant(request.headers())?;
                Ok(whole(StatusCode::OK, JSON, self.shared.models_json.clone()))
            }
            path => match path.strip_prefix("/v1/models/") {
                Some(name) => {
                    self.shared.clients.tenant(request.headers())?;
                    let served = self.shared.model_json(name);
                    let names = self.shared.routes.keys().map(String::as_str);
                    let json = served.ok_or_else(|| Refusal::no_model(name, names))?;
                    Ok(whole(StatusCode::OK, JSON, json.into()))
                }
                None => Err(Refusal::no_path(path)),
            },
        }
    }

    async fn chat(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let tenant = self.shared.clients.tenant(request.headers())?;
        let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        // What a page of another site sends without asking is never JSON.
        if !kind.to_ascii_lowercase().starts_with(b"application/json") {
            return Err(Refusal::content_type());
        }
        let under_way = self.shared.begin()?;
        let body = self.read(request.into_body()).await?;
        crate::chat::answer(self, tenant, &body, under_way).await
    }

    /// A body, within its limits of size and time.
    async fn read(&self, body: Incoming) -> Result<Bytes, Refusal> {
        let limits = &self.shared.limits;
        let within = Duration::from_millis(limits.body_ms_max);
        match tokio::time::timeout(within, read_within(body, limits.body_bytes_max)).await {
            Ok(read) => read,
            Err(_) => Err(Refusal::too_slow(limits.body_ms_max)),
        }
    }
}

impl Shared {
    /// Counts a request in, if there is room.
    fn begin(self: &Arc<Self>) -> Result<UnderWay, Refusal> {
        let requests_max = self.limits.requests_max;
        let under_way = UnderWay(Arc::clone(self));
        if self.metrics.under_way.fetch_add(1, Ordering::Relaxed) >= requests_max {
            drop(under_way);
            return Err(Refusal::overloaded(requests_max));
        }
        Ok(under_way)
    }
}

async fn read_within(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Refusal> {
    let announced = body.size_hint().lower();
    let mut is_too_large = announced > bytes_max as u64;
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    let mut seen = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::broken_body())?.into_data() else { continue };
        seen += data.len();
        is_too_large |= seen > bytes_max;
        if is_too_large {
            (first, joined) = (Bytes::new(), BytesMut::new());
            if seen > bytes_max.saturating_add(DISCARD_BYTES_MAX) {
                break;
            }
        } else if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                joined.reserve(usize::try_from(announced).unwrap_or(0).max(first.len()));
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&data);
        }
    }
    if is_too_large {
        return Err(Refusal::too_large(bytes_max));
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}

pub(crate) const JSON: &str = "application/json";

/// An answer of one piece.
pub(crate) fn whole(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Some(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = whole(refusal.status, JSON, refusal.body().into());
    let headers = response.headers_mut();
    if let Some(seconds) = refusal.retry_after_s() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(ms) = refusal.retry_after_ms {
        // Read by the official SDKs, before the other.
        headers.insert("retry-after-ms", ms.into());
    }
    if refusal.is_lasting() {
        // Read by the official SDKs: they try again no sooner.
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    match refusal.status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, POST"));
        }
        // The rest of the body may still be under way.
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    if refusal.attempts > 0 {
        headers.insert("x-mainspring-attempts", refusal.attempts.into());
    }
    response
}

//! What went wrong between us and a model server, in words.

use std::error::Error;
use std::io;

use mainspring_session::{ErrorCode, Failure};

use crate::call::Target;
use crate::endpoint::Endpoint;
use crate::transport::TransportError;

/// The causes from the outermost on.
pub(crate) fn causes(outermost: Option<&(dyn Error + 'static)>) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut source = outermost;
    while let Some(cause) = source {
        let text = cause.to_string();
        // Many layers repeat the message of the layer below, or only name themselves.
        let is_news = texts.last().is_none_or(|last| !last.contains(&text));
        if is_news && !text.starts_with("client error (") {
            texts.push(text);
        }
        source = cause.source();
    }
    if texts.is_empty() { "no further reason is known".to_owned() } else { texts.join(": ") }
}

/// The failure behind an error of either way.
pub(crate) fn of_transport(target: Target<'_>, error: &TransportError) -> Failure {
    let server = target.server();
    if error.is_connect() {
        return of_connect(target, error);
    }
    // A body that breaks off counts as undecodable too, but then the connection is the cause.
    let is_cut = has_cause(error, |cause: &hyper::Error| !cause.is_parse());
    if !is_cut && (error.is_decode() || has_cause(error, hyper::Error::is_parse)) {
        return Failure::new(
            ErrorCode::MODEL_BAD_RESPONSE,
            format!("{server} answered with something that is not HTTP: {}", causes(error.cause())),
        )
        .with_hint("check that base_url is the API of an OpenAI-compatible server");
    }
    Failure::new(
        ErrorCode::MODEL_INTERRUPTED,
        format!(
            "connection to {server} ended before the answer was complete: {}",
            causes(error.cause())
        ),
    )
}

fn of_connect(target: Target<'_>, error: &TransportError) -> Failure {
    let server = target.server();
    if error.is_timeout() {
        let limit = seconds(target.request.connect_ms_max);
        let message = format!("no connection to {server} within {limit}");
        return Failure::new(ErrorCode::MODEL_CONNECT, message)
            .with_hint("check the address and the network, or raise the model's connect_s");
    }
    let why = causes(error.cause());
    let hint = if has_cause(error, |_: &rustls::Error| true) {
        "check that the server's certificate is trusted here; SSL_CERT_FILE names further ones"
    } else {
        connect_hint(target.endpoint, &why)
    };
    Failure::new(ErrorCode::MODEL_CONNECT, format!("cannot connect to {server}: {why}"))
        .with_hint(hint)
}

fn connect_hint(endpoint: &Endpoint, why: &str) -> &'static str {
    if endpoint.is_loopback() {
        "is the server running? a local model is started with `mainspring models serve`"
    } else if why.contains("dns error") {
        "check the host name in base_url, and that this machine can look names up"
    } else {
        "check the address, and whether a proxy (HTTPS_PROXY) is needed"
    }
}

/// Milliseconds as seconds: `120 s`, `0.25 s`.
pub(crate) fn seconds(ms: u64) -> String {
    format!("{} s", ms as f64 / 1000.0)
}

fn has_cause<E: Error + 'static>(error: &TransportError, accepts: impl Fn(&E) -> bool) -> bool {
    let mut source = error.cause();
    while let Some(cause) = source {
        if cause.downcast_ref::<E>().is_some_and(&accepts) {
            return true;
        }
        // An I/O error hides the error inside it from the chain, even one that hides another.
        let mut outer = cause.downcast_ref::<io::Error>();
        while let Some(inner) = outer.and_then(io::Error::get_ref) {
            if inner.downcast_ref::<E>().is_some_and(&accepts) {
                return true;
            }
            outer = inner.downcast_ref::<io::Error>();
        }
        source = cause.source();
    }
    false
}
